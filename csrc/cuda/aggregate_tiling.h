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
constexpr int kMaxSquareSlots = 16;
constexpr int kStepBytes = 64;  // of a Step, see aggregate_tiles.cuh

// Where the parts of a block's shared memory begin, in bytes; the stages come first. Known to the host, so
// that no register has to remember them.
struct SharedOffsets {
  int assignment, logit_gradient;  // left operands of dW and dx, of the sums in the forward
  int weight, gradient;            // right operands, if resident
  int logits, products;            // W x and <x, dV>
  int squares;                     // shares of |x|^2, [slots, positions]
  int along;                       // of dx along x, and the power that scales it, [2, positions]
  int masses;                      // sums of assignments, and of the logits' gradients, [2, logit_columns]
  int steps;
};

struct Tiling {
  int dim, clusters, logits;  // D, K, K + G
  int element_bytes;          // of the storage type
  bool logits_given;
  int positions;        // of a tile: 16, 32 or 64
  int chunk, chunks;    // dimensions that one block sums up, and blocks that share a unit
  int cluster_warps;    // warps side by side along clusters; the others lie along dimensions
  int cluster_rows;     // of the sums, padded to whole warps
  int logit_columns;    // K + G, padded to whole tasks
  int cluster_columns;  // K, padded to whole tasks
  int slices;           // of the dimensions, given to different warps when making logits
  int stages;           // tiles of x in shared memory: the next one travels while one is used
  bool weight_resident, gradient_resident;  // in shared memory, else read through L1
  int load_bytes, store_bytes;              // of one copy of x, dx; 0: element by element
  int splits, unit_tiles;                   // units of a group, tiles of a unit
  int groups, units, blocks;
  int stage_bytes;
  SharedOffsets at;
  int64_t shared;  // bytes of a block

  SFRS_HOST_DEVICE int padded_dim() const { return chunk * chunks; }
  SFRS_HOST_DEVICE int logit_stride() const { return logit_columns + 8; }  // spreads rows over the banks
  SFRS_HOST_DEVICE int product_stride() const { return cluster_columns + 8; }
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
  at.logits = take(n->positions * n->logit_stride() * sum);
  at.products = take(backward ? n->positions * n->product_stride() * sum : 0);
  at.squares = take(kMaxSquareSlots * n->positions * sum);
  at.along = take(2 * n->positions * sum);
  at.masses = take(2 * n->logit_columns * sum);
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

// Beside 16-byte copies there are those of one wide element, or of four 16-bit ones: the rows of quarters.
SFRS_HOST_DEVICE constexpr int narrow_copy(int64_t element) { return element == 4 ? 4 : 8; }

// The wider copy of the two that never straddles two rows or two features, else 0: element by element.
inline int copy_bytes(const FeatureMap& x, int regions, int64_t element) {
  bool planes = x.stride_w == 1;
  auto fits = [&](int64_t bytes) {
    int64_t unit = bytes / element;
    if (unit < 1 || (uint64_t)x.data % bytes) return false;
    int64_t along_d = planes ? x.stride_d : x.stride_w;
    if (x.stride_b % unit || x.stride_h % unit || along_d % unit) return false;
    if (!planes) return x.dim % unit == 0;
    return x.width % unit == 0 && (regions == 1 || (x.width / 2) % unit == 0);
  };
  for (int bytes : {16, narrow_copy(element)})
    if (fits(bytes)) return bytes;
  return 0;
}

// How many registers a kernel spends: on 16 kClusterTiles clusters of sums per warp, and on 32 kLanes logits
// in the softmax.
template <int kTiles, int kLogitLanes>
struct Size {
  static constexpr int kClusterTiles = kTiles, kLanes = kLogitLanes;
};
// Calls work(Size<...>()) with the smallest that takes so many clusters of sums and logits.
template <class M, class F>
void with_size(int64_t clusters, int64_t logits, const F& work) {
  if constexpr (sizeof(typename M::Storage) == 8) {
    work(Size<2, kMaxLogits64 / 32>());
  } else {
    if (logits > 64) return work(Size<4, kMaxLogits / 32>());
    if (clusters > 32) return work(Size<4, 2>());
    work(Size<2, 2>());
  }
}

// Tasks that the positions of a tile are for products other than the sums.
template <class M>
SFRS_HOST_DEVICE inline int row_tasks(const Tiling& n) {
  return n.positions > 16 * M::kTaskRows ? n.positions / (16 * M::kTaskRows) : 1;
}

template <class M>
Tiling make_tiling(const Aggregation& f, const FeatureMap& x, const Machine& machine, int cluster_tiles,
                   bool backward) {
  using S = typename M::Storage;
  Tiling n{};
  n.dim = (int)x.dim;
  n.clusters = (int)f.clusters;
  n.logits = (int)f.logits();
  n.element_bytes = (int)sizeof(S);
  n.logits_given = f.logits_given != nullptr;
  n.logit_columns = round_up(n.logits, kLogitTask);
  n.cluster_columns = round_up(n.clusters, kLogitTask);
  int rows = backward ? n.logits : n.clusters, warp_rows = 16 * cluster_tiles;
  for (n.cluster_warps = 1; n.cluster_warps * warp_rows < rows;) n.cluster_warps *= 2;
  n.cluster_rows = n.cluster_warps * warp_rows;
  int most = kWarps / n.cluster_warps * M::kColumnTiles * 8;
  n.chunks = (n.dim + most - 1) / most;
  n.chunk = round_up((n.dim + n.chunks - 1) / n.chunks, most < 64 ? most : 64);

  n.groups = (int)(x.batch * f.regions);
  int64_t longest = f.regions == 1 ? x.positions() : (x.height - x.height / 2) * (x.width - x.width / 2);
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
  n.load_bytes = copy_bytes(x, (int)f.regions, sizeof(S));
  int m_tasks = row_tasks<M>(n);
  int tasks = m_tasks * (n.logit_columns + (backward ? n.cluster_columns : 0)) / kLogitTask;
  for (n.slices = 1; n.slices < 4 && tasks * n.slices * 2 <= kWarps;) n.slices *= 2;

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

}  // namespace sfrs::cuda
