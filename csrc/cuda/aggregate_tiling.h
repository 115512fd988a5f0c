// How the work of one aggregation is cut, decided on the host and read by both sides.
//
// A group is one image (R = 1) or one quarter of one (R = 4). Its positions are cut into tiles, its tiles
// into `splits` units of consecutive tiles. Blocks (x, y) take consecutive units and, of every unit, one
// chunk of dimensions: as many as fit the registers of a block as a K x chunk matrix of sums. Assignments
// need all dimensions, so blocks of one unit repeat them; for K D <= 64 * 512 there is one chunk.
#pragma once

#include "../aggregation.h"
#include "launch.h"

namespace sfrs::cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMaxLogits = 320, kMaxLogits64 = 256;  // K + G, of float64
constexpr int kLogitTask = 32;                       // columns of logits that one warp makes at a time
constexpr int kWindow = 64;                          // clusters that the softmax takes at a time
constexpr int kMaxSlices = 4;
constexpr int kAssigners = 4;   // warps that make assignments while the others are at the tile before
constexpr int kStepBytes = 96;  // of a Step, see aggregate_tiles.cuh

// How the warps of a block go from tile to tile: all together; kAssigners ahead of kWarps others that sum up
// the tile before (forward); or half of them ahead of the other half, which then changes (backward).
enum class Crews { together, apart, in_turns };

SFRS_HOST_DEVICE constexpr int log2_of(int power) { return power == 1 ? 0 : 1 + log2_of(power / 2); }

// Where the parts of a block's shared memory begin, in bytes; the stages come first. Known to the host, so
// that no register has to remember them.
struct SharedOffsets {
  int assignment, logit_gradient;  // left operands of dW and dx, of the sums in the forward
  int weight, gradient;            // right operands, if resident
  int logits, products;            // W x and <x, dV>
  int squares;                     // of the forward: |x|^2, a share of every slice, [slices, positions]
  int along;                       // of dx along x, and the power that scales it, [2, positions]
  int masses;                      // sums of assignments, [cluster_columns], and of the logits' gradients
  int bias;                        // -infinity behind the last cluster, [logit_columns]
  int gradient_facts;              // scale of dV and <c, dV>, zero behind the last, [2, cluster_columns]
  int shares;                      // of the squares of the sums, by warp, and what normalises them
  int steps;
};

struct Tiling {
  int dim, clusters, logits;  // D, K, K + G
  int element_bytes;          // of the storage type
  bool logits_given;
  bool by_position;     // whether something but x is read or written by position: mask, saved norms, logits
  int positions;        // of a tile: 16, 32 or 64
  int position_bits;    // their logarithm
  int chunk, chunks;    // dimensions that one block sums up, and blocks that share a unit
  int cluster_warps;    // warps side by side along clusters
  int along_bits;       // logarithm of the warps side by side along dimensions
  int cluster_rows;     // of the sums, padded to whole warps
  int logit_columns;    // K + G, padded to whole tasks
  int cluster_columns;  // K, padded to whole tasks
  int slices, slice_bits;  // of the dimensions, given to different warps when making logits; their logarithm
  int slice_depth;         // dimensions of a slice of a chunk
  int stages;              // tiles of x in shared memory: the next one travels while one is used
  Crews crews;
  bool weight_resident, gradient_resident;  // in shared memory, else read through L1
  int load_bytes, store_bytes;              // of one copy of x, dx
  int splits, unit_tiles;                   // units of a group, tiles of a unit
  int groups, units, blocks;
  int stage_bytes;
  SharedOffsets at;
  int64_t shared;  // bytes of a block

  static constexpr bool kKnown = false, kOverlaps = false, kAlternates = false;

  SFRS_HOST_DEVICE int padded_dim() const { return chunk * chunks; }
  // D of sums in scratch, which are written four at a time.
  SFRS_HOST_DEVICE int sums_dim() const { return (dim + 3) & ~3; }
  // Where row i of logits or products begins. Of two neighbours half a line each, of four a quarter of a line
  // each lie in different banks: that is how lanes read and write them.
  SFRS_HOST_DEVICE int logit_row(int i) const { return i * (logit_columns + 16) + (i & 2) * 4; }
  SFRS_HOST_DEVICE int product_row(int i) const { return i * (cluster_columns + 16) + (i & 2) * 4; }
};

// The same with what hot loops depend on known to the compiler: for 33 to 64 clusters and logits, all weights
// in shared memory, and chunks that fill the rows of a panel. Kernels are templates of one or the other and
// take members by their names.
template <int kPositions, int kSlices, int kStages, bool kGradient, Crews kCrews>
struct Fixed : Tiling {
  static constexpr bool kKnown = true, kOverlaps = kCrews == Crews::apart,
                        kAlternates = kCrews == Crews::in_turns;
  static constexpr bool logits_given = false, weight_resident = true, gradient_resident = kGradient;
  static constexpr int positions = kPositions, position_bits = log2_of(kPositions);
  static constexpr int slices = kSlices, slice_bits = log2_of(kSlices), stages = kStages;
  static constexpr int cluster_warps = 1, along_bits = log2_of(kWarps), cluster_rows = 64, logit_columns = 64,
                       cluster_columns = 64;

  static bool fits(const Tiling& n) {
    return n.logits_given == logits_given && n.chunk * n.element_bytes >= 128 && n.weight_resident &&
           n.gradient_resident == kGradient && n.positions == kPositions && n.slices == kSlices &&
           n.stages == kStages && n.crews == kCrews && (!kAlternates || n.chunks == 1) &&
           n.cluster_warps == cluster_warps && n.cluster_rows == cluster_rows &&
           n.logit_columns == logit_columns && n.cluster_columns == cluster_columns;
  }
  SFRS_HOST_DEVICE static constexpr int logit_row(int i) { return i * (logit_columns + 16) + (i & 2) * 4; }
  SFRS_HOST_DEVICE static constexpr int product_row(int i) {
    return i * (cluster_columns + 16) + (i & 2) * 4;
  }
};

SFRS_HOST_DEVICE inline int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }
SFRS_HOST_DEVICE inline int64_t round_up(int64_t n, int unit) { return (n + unit - 1) / unit * unit; }

// Lays out a block's shared memory.
template <class S, class T>
void lay_out(Tiling* n, bool backward) {
  int64_t end = 0;
  auto take = [&](int64_t bytes) {
    int64_t begin = end;
    end = round_up(end + bytes, 128);
    return (int)begin;
  };
  auto panels = [&](int columns) {
    return round_up(round_up((int64_t)columns * (int64_t)sizeof(S), 128) * n->positions, 1024);
  };
  int64_t sum = sizeof(T), cores = (int64_t)n->padded_dim() * (int64_t)sizeof(S);
  n->stage_bytes = (int)round_up((int64_t)n->positions * n->chunk * (int64_t)sizeof(S), 1024);
  take((int64_t)n->stage_bytes * n->stages);
  SharedOffsets& at = n->at;
  at.assignment = take(panels(backward ? n->cluster_columns : n->cluster_rows));
  at.logit_gradient = take(backward ? panels(n->cluster_rows) : 0);
  at.weight = take(n->weight_resident ? n->logit_columns * cores : 0);
  at.gradient = take(n->gradient_resident ? n->cluster_columns * cores : 0);
  at.logits = take(n->logit_row(n->positions) * sum);
  at.products = take(backward ? n->product_row(n->positions) * sum : 0);
  at.squares = take(backward ? 0 : kMaxSlices * n->positions * sum);
  at.along = take(backward ? 2 * n->positions * sum : 0);
  // Of crews apart a share of every assigner, for a unit and the next one; of those in turns one of every
  // warp.
  bool apart = n->crews == Crews::apart, shared = n->crews == Crews::in_turns;
  at.masses = take((apart ? 2 * kAssigners * n->cluster_columns
                          : (shared ? kWarps : 1) * (n->cluster_columns + n->logit_columns)) *
                   sum);
  at.bias = take(n->logit_columns * sum);
  at.gradient_facts = take(backward ? 2 * n->cluster_columns * sum : 0);
  at.shares = apart ? take((kWarps + 1) * n->cluster_rows * sum) : at.logits;
  at.steps = take(4 * kStepBytes);
  n->shared = end;
}

// The tile, the stages and what is resident: the first of these that fits. Resident weights before a second
// stage, since weights from L2 cost a block as much traffic as x itself.
struct Choice {
  int positions, stages;
  bool weight, gradient;
};

template <class S, class T>
bool choose_tile(Tiling* n, bool backward, int64_t limit, int most_positions) {
  static constexpr Choice kChoices[] = {{64, 2, true, true},   {32, 2, true, true},   {64, 1, true, true},
                                        {32, 1, true, true},   {16, 2, true, true},   {16, 1, true, true},
                                        {32, 2, true, false},  {16, 2, true, false},  {16, 1, true, false},
                                        {64, 2, false, false}, {32, 2, false, false}, {64, 1, false, false},
                                        {16, 2, false, false}, {32, 1, false, false}, {16, 1, false, false}};
  for (const Choice& c : kChoices) {
    if (c.positions > most_positions) continue;
    n->positions = c.positions;
    n->position_bits = log2_of(c.positions);
    n->stages = c.stages;
    n->weight_resident = c.weight && !n->logits_given;
    n->gradient_resident = backward && c.gradient;
    lay_out<S, T>(n, backward);
    if (n->shared <= limit) return true;
  }
  return false;
}

inline void check_limits(const Aggregation& f) {
  int most = f.x.dtype == DType::f64 ? kMaxLogits64 : kMaxLogits;
  if (f.logits() > most)
    throw std::runtime_error("sfrs_ext: weight or logits have K + G = " + std::to_string(f.logits()) +
                             " clusters, but the CUDA kernels take at most " + std::to_string(most));
  if (f.x.batch > (1 << 20) || f.x.positions() > (1 << 24) || f.x.dim > (1 << 20))
    throw std::runtime_error(
        "sfrs_ext: x has B = " + std::to_string(f.x.batch) + ", H W = " + std::to_string(f.x.positions()) +
        " and D = " + std::to_string(f.x.dim) + ", but the CUDA kernels take at most 2^20, 2^24 and 2^20");
}

// Rows that adjoin in memory are one long row.
inline bool flatten_rows(FeatureMap* x) {
  if (x->height > 1 && x->stride_h != x->width * x->stride_w) return false;
  x->width *= x->height;
  x->height = 1;
  x->stride_h = x->width * x->stride_w;
  return true;
}

// Calls copy(bytes) with the constant that `bytes` of a copy of S are: 16, or what the rows of quarters
// allow.
template <class S, class F>
SFRS_HOST_DEVICE void with_copy_bytes(int bytes, const F& copy) {
  if (bytes == 16) return copy(std::integral_constant<int, 16>());
  if constexpr (sizeof(S) != 4) {
    if (bytes == 8) return copy(std::integral_constant<int, 8>());
  }
  if constexpr (sizeof(S) <= 4) {
    if (bytes == 4) return copy(std::integral_constant<int, 4>());
  }
  if constexpr (sizeof(S) == 2) copy(std::integral_constant<int, 2>());
}

// The widest copy that never straddles two rows or two features, an element if need be.
inline int copy_bytes(const FeatureMap& x, int parts, int64_t element) {
  bool planes = x.stride_w == 1;
  auto fits = [&](int64_t bytes) {
    int64_t unit = bytes / element;
    if (unit < 1 || (element == 4 && unit == 2) || (uint64_t)x.data % bytes) return false;
    int64_t along_d = planes ? x.stride_d : x.stride_w;
    if (x.stride_b % unit || x.stride_h % unit || along_d % unit) return false;
    if (!planes) return x.dim % unit == 0;
    return x.width % unit == 0 && (parts == 1 || (x.width / 2) % unit == 0);
  };
  for (int bytes : {16, 8, 4})
    if (fits(bytes)) return bytes;
  return (int)element;
}

// What a kernel is compiled for: 16 kClusterTiles clusters of sums per warp, whether all logits of a position
// fit the one window that the softmax keeps in registers, and how much of the tiling it knows.
template <int kTiles, bool kInWindow, class Known = Tiling>
struct Size {
  static constexpr int kClusterTiles = kTiles;
  static constexpr bool kOneWindow = kInWindow;
  using Cut = Known;
  static constexpr int kThreadsOfBlock = kThreads + (Known::kOverlaps ? 32 * kAssigners : 0);

  // A Fixed adds nothing to the tiling that it fits.
  SFRS_HOST_DEVICE static const Cut& of(const Tiling& n) { return static_cast<const Cut&>(n); }
};

// The tiling that large maps get on a GPU with the shared memory of sm_90, for 33 to 64 clusters.
template <class M, bool kBackward>
struct Usual {
  static constexpr int kBytes = (int)sizeof(typename M::Storage);
  static constexpr int kPositions = (kBytes == 2 ? 64 : 32) / (kBackward ? 2 : 1);
  static constexpr Crews kCrews = kBytes != 2 ? Crews::together : kBackward ? Crews::in_turns : Crews::apart;
  static constexpr int kTasks =
      (kPositions > 16 * M::kTaskRows ? kPositions / (16 * M::kTaskRows) : 1) * (kBackward ? 4 : 2);
  using Cut = Fixed<kPositions, (kBytes == 2 ? kAssigners : kWarps) / kTasks,
                    kBytes == 2 || kBackward ? 2 : 1, kBackward && kBytes == 2, kCrews>;
};

// Tasks that the positions of a tile are for products other than the sums.
template <class M>
SFRS_HOST_DEVICE inline int row_tasks(const Tiling& n) {
  return n.positions > 16 * M::kTaskRows ? n.positions / (16 * M::kTaskRows) : 1;
}

template <class M>
Tiling make_tiling(const Aggregation& f, const FeatureMap& x, const Machine& machine, int cluster_tiles,
                   bool backward, Crews crews) {
  using S = typename M::Storage;
  Tiling n{};
  n.crews = crews;
  n.dim = (int)x.dim;
  n.clusters = (int)f.clusters;
  n.logits = (int)f.logits();
  n.element_bytes = (int)sizeof(S);
  n.logits_given = f.logits_given != nullptr;
  n.logit_columns = round_up(n.logits, kLogitTask);
  // The widest kernels count on two tasks of columns that share the squares.
  n.cluster_columns =
      round_up(n.clusters, n.logits_given && cluster_tiles == 4 ? 2 * kLogitTask : kLogitTask);
  int rows = backward ? n.logits : n.clusters, warp_rows = 16 * cluster_tiles;
  for (n.cluster_warps = 1; n.cluster_warps * warp_rows < rows;) n.cluster_warps *= 2;
  n.along_bits = log2_of(kWarps / n.cluster_warps);
  n.cluster_rows = n.cluster_warps * warp_rows;
  int most = kWarps / n.cluster_warps * M::kColumnTiles * 8;
  n.chunks = (n.dim + most - 1) / most;
  n.chunk = round_up((n.dim + n.chunks - 1) / n.chunks, most < 64 ? most : 64);

  n.groups = (int)(x.batch * f.parts);
  int64_t longest = f.parts == 1 ? x.positions() : (x.height - x.height / 2) * (x.width - x.width / 2);
  int most_positions = sizeof(S) == 2 ? 64 : 32;
  while (most_positions > 16 && most_positions / 2 >= longest) most_positions /= 2;
  auto tiles = [&] { return (longest + n.positions - 1) / n.positions; };
  for (;; most_positions /= 2) {
    if (!choose_tile<S, typename M::Sum>(&n, backward, machine.shared_memory, most_positions))
      throw std::runtime_error("sfrs_ext: K + G = " + std::to_string(n.logits) + " clusters and D = " +
                               std::to_string(n.dim) + " do not fit the shared memory of this GPU");
    if (n.positions <= 32 || n.groups * tiles() * n.chunks >= machine.multiprocessors) break;
    most_positions = n.positions;
  }
  n.load_bytes = copy_bytes(x, (int)f.parts, sizeof(S));
  int m_tasks = row_tasks<M>(n);
  int tasks = m_tasks * (n.logit_columns + (backward ? n.cluster_columns : 0)) / kLogitTask;
  int most_slices = n.chunk / M::kBlock < kMaxSlices ? n.chunk / M::kBlock : kMaxSlices;
  int makers = crews == Crews::together ? kWarps : kAssigners;
  for (n.slices = 1; n.slices * 2 <= most_slices && tasks * n.slices * 2 <= makers;)
    n.slices *= 2, ++n.slice_bits;
  n.slice_depth = round_up((n.chunk + n.slices - 1) / n.slices, M::kBlock);

  // Splits: the fewest rounds of tiles, where a unit costs about two tiles more than its own.
  int64_t wide = machine.multiprocessors / n.chunks > 1 ? machine.multiprocessors / n.chunks : 1, best = 0;
  for (int64_t splits = 1; splits <= 64 && (splits == 1 || splits <= tiles()); ++splits) {
    int64_t rounds = (n.groups * splits + wide - 1) / wide, share = (tiles() + splits - 1) / splits;
    int64_t cost = rounds * (share + 2) * 64 + splits;
    if (best && cost >= best) continue;
    best = cost;
    n.splits = (int)splits;
    n.unit_tiles = (int)share;
  }
  n.units = n.groups * n.splits;
  n.blocks = (int)(n.units < wide ? n.units : wide);
  return n;
}

// Calls work(Size<...>(), tiling) with the smallest kernel that takes so many clusters of sums and logits.
template <class M, bool kBackward, class F>
void with_size(const Aggregation& f, const FeatureMap& x, const Machine& machine, const F& work) {
  // Sums of a backward are of the logits' gradients, with weights; without, its tasks are of clusters.
  int64_t logits = f.logits(), clusters = kBackward && !f.logits_given ? logits : f.clusters;
  auto cut = [&](int cluster_tiles, Crews crews = Crews::together) {
    return make_tiling<M>(f, x, machine, cluster_tiles, kBackward, crews);
  };
  if constexpr (sizeof(typename M::Storage) == 8) {
    work(Size<2, false>(), cut(2));
  } else {
    if (clusters <= 32 && logits <= kWindow) return work(Size<2, true>(), cut(2));
    using Cut = typename Usual<M, kBackward>::Cut;
    Tiling n = cut(4, Usual<M, kBackward>::kCrews);
    if (Cut::fits(n)) return work(Size<4, true, Cut>(), n);
    work(Size<4, false>(), n.crews == Crews::together ? n : cut(4));
  }
}

}  // namespace sfrs::cuda
