// A tile: up to Geometry::tile positions of one group (an image, or a quarter of one), packed for the
// products. Blocks of six positions lie side by side: element (d, p) is at block(p / 6) + d * 6 + p % 6.
// Both products read it so: over d for the logits (rows = positions), over p for the aggregation (rows = d).

constexpr int64_t kBlockPad = 48;  // sets apart in L1 what would otherwise lie 4 KiB apart

// Positions [h0, h1) x [w0, w1) of one image, row by row.
struct Group {
  int64_t image, region;
  int64_t h0, w0, width, count;
};

struct Segment {
  int64_t offset;  // elements from the image's first, at d = 0
  int64_t index;   // h * W + w of the first position
  int64_t count;
};

// How the work falls into groups and tiles; tiles are numbered through all groups.
struct Geometry {
  int64_t regions, height, width, tile;
  int64_t first_tile[5];  // of each region, within an image
  Group parts[4];         // image = 0

  Geometry(const FeatureMap& x, int64_t region_count, int64_t tile_size)
      : regions(region_count), height(x.height), width(x.width), tile(tile_size) {
    int64_t row = regions == 1 ? 0 : height / 2, column = regions == 1 ? 0 : width / 2;
    first_tile[0] = 0;
    for (int64_t r = 0; r < regions; ++r) {
      bool bottom = regions == 1 || r >= 2, right = regions == 1 || r % 2;
      Group& part = parts[r];
      part.image = 0;
      part.region = r;
      part.h0 = bottom ? row : 0;
      part.w0 = right ? column : 0;
      part.width = right ? width - column : column;
      part.count = part.width * (bottom ? height - row : row);
      // An empty group has one empty tile, so that its result is written like any other.
      first_tile[r + 1] = first_tile[r] + larger<int64_t>((part.count + tile - 1) / tile, 1);
    }
  }

  int64_t tiles(int64_t batch) const { return batch * first_tile[regions]; }
  Group group(int64_t tile_index, int64_t* tile_in_group) const {
    int64_t image = tile_index / first_tile[regions], t = tile_index % first_tile[regions], r = 0;
    while (t >= first_tile[r + 1]) ++r;
    *tile_in_group = t - first_tile[r];
    Group g = parts[r];
    g.image = image;
    return g;
  }
  int64_t tiles_of(const Group& g) const { return first_tile[g.region + 1] - first_tile[g.region]; }

  // Equal shares of a group instead of full tiles and a rest; multiples of 6.
  void range(const Group& g, int64_t tile_in_group, int64_t* begin, int64_t* count) const {
    int64_t share = round_up((g.count + tiles_of(g) - 1) / tiles_of(g), kTileRows);
    *begin = smaller(tile_in_group * share, g.count);
    *count = smaller(share, g.count - *begin);
  }
};

// The row segments of positions [begin, begin + count) of a group.
struct Segments {
  const FeatureMap& x;
  const Group& g;
  int64_t position, end;

  Segments(const FeatureMap& map, const Group& group, int64_t begin, int64_t count)
      : x(map), g(group), position(begin), end(begin + count) {}

  bool next(Segment* s) {
    if (position >= end) return false;
    int64_t h = g.h0 + position / g.width, w = g.w0 + position % g.width;
    s->offset = h * x.stride_h + w * x.stride_w;
    s->index = h * x.width + w;
    s->count = smaller(g.w0 + g.width - w, end - position);
    // Rows that touch are one segment.
    while (g.width == x.width && x.stride_h == x.width * x.stride_w && position + s->count < end)
      s->count = smaller(s->count + g.width, end - position);
    position += s->count;
    return true;
  }
};

template <class S>
SFRS_INLINE S* image_of(const FeatureMap& x, const Group& g) {
  return (S*)x.data + g.image * x.stride_b;
}

// The rows of a tile, plane by plane, asked for ahead of their use: they are too short for the processor to
// foresee, and while a product runs the memory has nothing else to do.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const FeatureMap& x, int64_t element, const Group& g, int64_t begin, int64_t count)
      : planes_(x.stride_w == 1 ? x.dim : 0), stride_(x.stride_d * element) {
    Segments segments(x, g, begin, count);
    Segment s;
    while (rows_ < kMostRows && segments.next(&s)) {
      row_[rows_] = (char*)x.data + (g.image * x.stride_b + s.offset) * element;
      bytes_[rows_++] = s.count * element;
    }
  }
  // A share of planes [d, d + 6), into L2, or into L1 and to be written if kWrite. Shares, since the
  // processor stalls when too many lines are on their way.
  template <bool kWrite = false>
  SFRS_INLINE void fetch(int64_t d, int64_t share, int64_t shares) const {
    int64_t end = smaller(planes_, d + kTileRows * (share + 1) / shares);
    for (d += kTileRows * share / shares; d < end; ++d)
      for (int64_t r = 0; r < rows_; ++r)
        for (int64_t at = 0; at < bytes_[r] + 63; at += 64)
          __builtin_prefetch(row_[r] + d * stride_ + smaller(at, bytes_[r] - 1), kWrite, kWrite ? 3 : 2);
  }

 private:
  static constexpr int64_t kMostRows = 16;
  int64_t planes_ = 0, stride_ = 0, rows_ = 0;
  char* row_[kMostRows];
  int64_t bytes_[kMostRows];
};

SFRS_INLINE Ahead ahead_of(const FeatureMap& x, int64_t element, const Geometry& geometry, int64_t tile,
                           int64_t end) {
  if (tile >= end) return Ahead();
  int64_t within, position, count;
  Group g = geometry.group(tile, &within);
  geometry.range(g, within, &position, &count);
  return Ahead(x, element, g, position, count);
}

// Packs a tile and adds the squares of every position to squares[tile], which begins as zero. `row` is
// scratch of one tile plus a vector, and at least two values more.
template <class S, class T = Acc<S>>
SFRS_INLINE void pack_planes(const FeatureMap& x, const Group& g, int64_t begin, int64_t count, T* packed,
                             int64_t block, T* squares, T* row) {
  const S* image = image_of<S>(x, g);
  int64_t padded = round_up(count, kTileRows);
  for (int64_t p = count; p < padded; ++p) row[p] = 0;
  for (int64_t d = 0; d < x.dim; ++d) {
    const S* plane = image + d * x.stride_d;
    Segments segments(x, g, begin, count);
    Segment s;
    for (int64_t p = 0; segments.next(&s); p += s.count) {
      const S* from = plane + s.offset;
      for (int64_t i = 0; i < s.count; i += kLanes<T>) {
        int64_t at = overlapped<T>(i, s.count);
        store_n(row + p + at, load_n(from + at, s.count - at), s.count - at);
      }
    }
    for (int64_t p = 0; p < padded; p += kLanes<T>) {
      Vec<T> v = load(row + p);
      store(squares + p, load(squares + p) + v * v);
    }
    // Eight values for six: the two behind are the next plane's, or padding, and are written after.
    T* to = packed + d * kTileRows;
    for (int64_t p = 0; p < padded; p += kTileRows, to += block) __builtin_memcpy(to, row + p, 8 * sizeof(T));
  }
}

template <class T>
SFRS_INLINE void store_transposed(const Vec<T>* rows, T* to) {
  for (int i = 0; i < kLanes<T>; ++i)
    for (int r = 0; r < kTileRows; ++r) to[i * kTileRows + r] = rows[r][i];
}
typedef float F4 __attribute__((vector_size(16)));
typedef float F2 __attribute__((vector_size(8)));
SFRS_INLINE void store_transposed(const Vec<float>* rows, float* to) {
  // 4 x 4 transposes of rows 0..3 and 4 x 2 of rows 4, 5.
  float lanes[kTileRows][kLanes<float>];
  for (int r = 0; r < kTileRows; ++r) store(lanes[r], rows[r]);
#pragma GCC unroll 4
  for (int i = 0; i < kLanes<float>; i += 4, to += 4 * kTileRows) {
    F4 a = load_bits<F4>(lanes[0] + i), b = load_bits<F4>(lanes[1] + i), c = load_bits<F4>(lanes[2] + i),
       d = load_bits<F4>(lanes[3] + i), e = load_bits<F4>(lanes[4] + i), f = load_bits<F4>(lanes[5] + i);
    F4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    F4 cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    F4 ef = __builtin_shufflevector(e, f, 0, 4, 1, 5), EF = __builtin_shufflevector(e, f, 2, 6, 3, 7);
    store_bits(to, __builtin_shufflevector(ab, cd, 0, 1, 4, 5));
    store_bits(to + 4, __builtin_shufflevector(ef, ef, 0, 1));
    store_bits(to + 6, __builtin_shufflevector(ab, cd, 2, 3, 6, 7));
    store_bits(to + 10, __builtin_shufflevector(ef, ef, 2, 3));
    store_bits(to + 12, __builtin_shufflevector(AB, CD, 0, 1, 4, 5));
    store_bits(to + 16, __builtin_shufflevector(EF, EF, 0, 1));
    store_bits(to + 18, __builtin_shufflevector(AB, CD, 2, 3, 6, 7));
    store_bits(to + 22, __builtin_shufflevector(EF, EF, 2, 3));
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
SFRS_INLINE void pack_tokens(const FeatureMap& x, const Group& g, int64_t begin, int64_t count, T* packed,
                             int64_t block, T* squares) {
  const S* image = image_of<S>(x, g);
  for (int64_t p = 0; p < count; p += kTileRows, packed += block) {
    const S* from[kTileRows];
    int64_t rows = smaller<int64_t>(count - p, kTileRows), index;
    for (int64_t r = 0; r < rows; ++r) {
      int64_t offset;
      locate(x, g, begin + p + r, &offset, &index);
      from[r] = image + offset;
    }
    Vec<T> sums[kTileRows] = {}, lanes[kTileRows] = {};
    for (int64_t d = 0; d < x.dim; d += kLanes<T>) {
      for (int64_t r = 0; r < rows; ++r) {
        lanes[r] = load_n(from[r] + d, x.dim - d);
        sums[r] += lanes[r] * lanes[r];
      }
      // The last vector may write into the block's padding, which holds a vector of six rows.
      store_transposed(lanes, packed + d * kTileRows);
    }
    for (int64_t r = 0; r < kTileRows; ++r) squares[p + r] = sum_lanes<T>(sums[r]);
  }
}
