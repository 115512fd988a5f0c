// A tile: up to Geometry::tile positions of one group (an image, or a quarter of one), copied to where both
// products find it in cache: over d for the logits (rows = positions), over p for the aggregation (rows = d).
#pragma once

#include "gemm.inl"

namespace sfrs::cpu::SFRS_ISA {
namespace {

// Positions [h0, h1) x [w0, w1) of one image, row by row.
struct Group {
  int64_t image, part;
  int64_t h0, w0, width, count;
};

struct Segment {
  int64_t at;      // of the first position, within the tile
  int64_t offset;  // elements from the image's first, at d = 0
  int64_t index;   // h * W + w of the first position
  int64_t count;
};

// Positions [begin, begin + count) of a group: what one step of a task works on.
struct Tile {
  Group group;
  int64_t begin, count;
  int64_t next;        // the unit behind it
  bool opens, closes;  // the first, the last of the task's part of the group
  bool from_start;     // that part begins with the group
  bool whole;          // and is all of it
};

// How the work falls into groups and units of six positions, which are numbered through all groups. Tasks own
// consecutive units: shares of tiles would leave one of two threads 13 of the 25 tiles of a single image.
struct Geometry {
  int64_t parts, tile;
  int64_t tiles = 0;      // of an image
  int64_t first_unit[5];  // of each part, within an image
  Group groups[4];        // image = 0

  Geometry(const FeatureMap& x, int64_t part_count, int64_t tile_size) : parts(part_count), tile(tile_size) {
    int64_t height = x.height, width = x.width;
    int64_t row = parts == 1 ? 0 : height / 2, column = parts == 1 ? 0 : width / 2;
    first_unit[0] = 0;
    for (int64_t r = 0; r < parts; ++r) {
      bool bottom = parts == 1 || r >= 2, right = parts == 1 || r % 2;
      Group& group = groups[r];
      group.image = 0;
      group.part = r;
      group.h0 = bottom ? row : 0;
      group.w0 = right ? column : 0;
      group.width = right ? width - column : column;
      group.count = group.width * (bottom ? height - row : row);
      // An empty group has one empty unit, so that its result is written like any other.
      first_unit[r + 1] = first_unit[r] + larger<int64_t>((group.count + kTileRows - 1) / kTileRows, 1);
      tiles += larger<int64_t>((group.count + tile - 1) / tile, 1);
    }
  }

  int64_t units(int64_t batch) const { return batch * first_unit[parts]; }
  int64_t units_of(const Group& g) const { return first_unit[g.part + 1] - first_unit[g.part]; }
  int64_t tasks(int64_t batch, int64_t threads) const {
    return larger<int64_t>(smaller(threads, batch * tiles), 1);
  }

  // The tile that begins at `unit`, of the task that owns units [begin, end). Its part of a group falls into
  // equal shares, instead of full tiles and a rest.
  Tile at(int64_t unit, int64_t begin, int64_t end) const {
    int64_t image = unit / first_unit[parts], base = image * first_unit[parts], r = 0;
    while (unit - base >= first_unit[r + 1]) ++r;
    Tile t;
    t.group = groups[r];
    t.group.image = image;
    int64_t first = base + first_unit[r], behind = base + first_unit[r + 1];
    int64_t from = larger(begin, first), to = smaller(end, behind), most = tile / kTileRows;
    int64_t shares = (to - from + most - 1) / most, share = (to - from + shares - 1) / shares;
    t.next = smaller(unit + share, to);
    t.begin = (unit - first) * kTileRows;
    t.count = smaller((t.next - first) * kTileRows, t.group.count) - t.begin;
    t.opens = unit == from;
    t.closes = t.next == to;
    t.from_start = from == first;
    t.whole = t.from_start && to == behind;
    return t;
  }
};

constexpr int64_t kLargestTile = 192, kLargestPairedTile = 384;

// The row segments of positions [begin, begin + count) of a group.
class Segments {
 public:
  Segments(const FeatureMap& x, const Group& g, int64_t begin, int64_t count) {
    bool touch = g.width == x.width && x.stride_h == x.width * x.stride_w;  // all rows are one segment
    for (int64_t position = begin, stop = begin + count; position < stop;) {
      int64_t h = g.h0 + position / g.width, w = g.w0 + position % g.width;
      int64_t most = touch ? count : g.w0 + g.width - w;
      Segment s = {position - begin, h * x.stride_h + w * x.stride_w, h * x.width + w,
                   smaller(most, stop - position)};
      position += s.count;
      list_[size_++] = s;
    }
  }
  const Segment* begin() const { return list_; }
  const Segment* end() const { return list_ + size_; }

 private:
  int64_t size_ = 0;
  Segment list_[kLargestPairedTile];
};

template <class S>
SFRS_INLINE S* image_of(const FeatureMap& x, const Group& g) {
  return (S*)x.data + g.image * x.stride_b;
}

// The positions of a tile, plane by plane or, of tokens, one after the other.
SFRS_INLINE Ahead ahead_of(const FeatureMap& x, int64_t element, const Group& g, int64_t begin, int64_t count,
                           bool written = false) {
  bool planes = x.stride_w == 1;
  Ahead ahead(planes ? x.dim : 1, x.stride_d * element, written);
  for (const Segment& s : Segments(x, g, begin, count))
    ahead.add_row((const char*)x.data + (g.image * x.stride_b + s.offset) * element,
                  (planes ? s.count : (s.count - 1) * x.stride_w + x.dim) * element);
  return ahead;
}

// What follows a tile of the task that owns units [begin, end).
SFRS_INLINE Ahead ahead_of(const FeatureMap& x, int64_t element, const Geometry& geometry, const Tile& tile,
                           int64_t begin, int64_t end) {
  if (tile.next >= end) return Ahead();
  Tile next = geometry.at(tile.next, begin, end);
  return ahead_of(x, element, next.group, next.begin, next.count);
}

// N vectors of positions of all planes, the last one at `last`, and the squares of each position.
template <int N, class S, class T = Acc<S>>
SFRS_INLINE void pack_vectors(const S* from, int64_t stride, int64_t dim, int64_t last, T* to, int64_t step,
                              T* squares) {
  Vec<T> sums[N] = {};
  for (int64_t d = 0; d < dim; ++d, from += stride, to += step) {
#pragma GCC unroll 6
    for (int i = 0; i < N; ++i) {
      int64_t at = i + 1 < N ? i * kLanes<T> : last;
      Vec<T> v = load(from + at);
      sums[i] += v * v;
      store(to + at, v);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; ++i) store(squares + (i + 1 < N ? i * kLanes<T> : last), sums[i]);
}

// Fewer positions than a vector holds.
template <class S, class T = Acc<S>>
SFRS_NOINLINE void pack_part(const S* from, int64_t stride, int64_t dim, int64_t count, T* to, int64_t step,
                             T* squares) {
  Vec<T> sum = {};
  for (int64_t d = 0; d < dim; ++d, from += stride, to += step) {
    Vec<T> v = load_part(from, count);
    sum += v * v;
    store_part(to, v, count);
  }
  store_part(squares, sum, count);
}

template <class S, class T = Acc<S>>
SFRS_NOINLINE void pack_planes(const FeatureMap& x, const Group& g, int64_t begin, int64_t count, T* packed,
                               int64_t step, T* squares) {
  constexpr int64_t lanes = kLanes<T>;
  for (const Segment& s : Segments(x, g, begin, count)) {
    const S* from = image_of<S>(x, g) + s.offset;
    if (s.count < lanes) {
      pack_part(from, x.stride_d, x.dim, s.count, packed + s.at, step, squares + s.at);
      continue;
    }
    auto vectors = [&](auto n, int64_t at, int64_t last) {
      int64_t to = s.at + at;
      pack_vectors<n.value>(from + at, x.stride_d, x.dim, last, packed + to, step, squares + to);
    };
    int64_t at = 0;
    for (; at + 6 * lanes < s.count; at += 6 * lanes) vectors(Count<6>(), at, 5 * lanes);
    // One to six vectors that end with the segment.
    at = smaller(at, s.count - lanes);
    int64_t last = s.count - at - lanes;
    switch ((last + lanes - 1) / lanes) {
      case 0: vectors(Count<1>(), at, last); break;
      case 1: vectors(Count<2>(), at, last); break;
      case 2: vectors(Count<3>(), at, last); break;
      case 3: vectors(Count<4>(), at, last); break;
      case 4: vectors(Count<5>(), at, last); break;
      default: vectors(Count<6>(), at, last);
    }
  }
}

// Where position `begin + i` of a group lies, for maps whose features are contiguous.
SFRS_INLINE void locate(const FeatureMap& x, const Group& g, int64_t position, int64_t* offset,
                        int64_t* index) {
  int64_t h = g.h0 + position / g.width, w = g.w0 + position % g.width;
  *offset = h * x.stride_h + w * x.stride_w;
  *index = h * x.width + w;
}

template <class S, class T = Acc<S>>
SFRS_NOINLINE void pack_tokens(const FeatureMap& x, const Group& g, int64_t begin, int64_t count, T* packed,
                               int64_t step, T* squares) {
  constexpr int lanes = kLanes<T>;
  const S* image = image_of<S>(x, g);
  for (int64_t p = 0; p < count; p += lanes) {
    const S* from[lanes];
    for (int64_t i = 0; i < lanes; ++i) {  // behind the last position it stands again
      int64_t offset, index;
      locate(x, g, begin + smaller(p + i, count - 1), &offset, &index);
      from[i] = image + offset;
    }
    Vec<T> sum = {};
    for (int64_t d = 0; d < x.dim; d += lanes) {
      Vec<T> rows[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) rows[i] = load_n(from[i] + d, x.dim - d);
      transpose<T>(rows);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        sum += rows[i] * rows[i];
        store(packed + (d + i) * step + p, rows[i]);
      }
    }
    store(squares + p, sum);
  }
}

// Copies a tile, element (d, p) to packed[d * step + p], and the square of every position's norm to squares.
template <class S, class T = Acc<S>>
SFRS_INLINE void pack(const FeatureMap& x, const Group& g, int64_t begin, int64_t count, T* packed,
                      int64_t step, T* squares) {
  if (x.stride_w == 1)
    pack_planes<S>(x, g, begin, count, packed, step, squares);
  else
    pack_tokens<S>(x, g, begin, count, packed, step, squares);
}

// Features so large that their squares, or products with them, may leave the range of T are worked on as
// f x, f a power of two: what is normalised afterwards keeps every bit. `factors` says f of each position.
template <class T>
constexpr T kLargeSquare = (T)0x1p40;

// f of features whose largest is this; one if that is infinite.
template <class T>
SFRS_INLINE T shrinking(T largest) {
  if (largest == (T)__builtin_inf()) return 1;
  // No further than the smallest normal number.
  int64_t exponent = smaller(__builtin_ilogb(largest), std::numeric_limits<T>::max_exponent - 2);
  return (T)__builtin_ldexp(1, -exponent);
}

template <class T>
SFRS_NOINLINE void shrink_large(int64_t count, int64_t dim, T* packed, int64_t step, T* squares, T* factors) {
  for (int64_t p = 0; p < count; ++p) {
    factors[p] = 1;
    if (!(squares[p] > kLargeSquare<T>)) continue;
    T largest = 0, square = 0;
    for (int64_t d = 0; d < dim; ++d) largest = larger(largest, (T)__builtin_fabs(packed[d * step + p]));
    T factor = shrinking(largest);
    if (factor == 1) continue;
    for (int64_t d = 0; d < dim; ++d) {
      T v = packed[d * step + p] *= factor;
      square += v * v;
    }
    squares[p] = square, factors[p] = factor;
  }
}
// As pack; returns whether there are factors other than one. They are not written otherwise.
template <class S, class T = Acc<S>>
SFRS_INLINE bool pack_in_range(const FeatureMap& x, const Group& g, int64_t begin, int64_t count, T* packed,
                               int64_t step, T* squares, T* factors) {
  pack<S>(x, g, begin, count, packed, step, squares);
  Vec<T> top = {};
  for (int64_t p = 0; p < count; p += kLanes<T>) {
    Vec<T> v = load_n(squares + p, count - p);
    top = v > top ? v : top;
  }
  if (!any(top > kLargeSquare<T>)) return false;
  shrink_large(count, x.dim, packed, step, squares, factors);
  return true;
}

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
