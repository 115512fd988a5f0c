// Nearest neighbours by inner product. Idea: products of a block of rows with a group of columns are looked
// through while they are in cache, so the matrix of all products never exists; a vector of them is compared
// with a bound that the row's k best have set so far, and few pass. Where rows are compared with one another
// each product is looked through along its row and along its column, and is computed once.
// Floor: 2 M N D flops, half of it for the rows' own, compute-bound.

constexpr int64_t kNearestRows = 8 * kTileRows;  // and columns whose products are looked through together
constexpr int64_t kNearestColumns = 64;
constexpr int64_t kSquare = 192;  // a multiple of both
constexpr int64_t kSlice = 256;   // of D: what a tile reads of it stays in L1

// Columns of y in panels at a time: those that fit a part of L2, but enough to pay for the rows, which are
// packed for each chunk, as long as that takes little memory.
constexpr int64_t kChunkBytes = 256 << 10, kMostBytes = 16 << 20;
SFRS_INLINE int64_t chunk_columns(const Nearest& f) {
  int64_t column = sizeof(float) * larger<int64_t>(f.dim, 1);
  int64_t fitting = larger<int64_t>(kChunkBytes / column, smaller<int64_t>(512, kMostBytes / column));
  return round_up(larger<int64_t>(fitting, 1), kSquare);
}
SFRS_INLINE int64_t panel_size(const Nearest& f) { return larger<int64_t>(f.dim, 1) * kPanel<float>; }
SFRS_INLINE int64_t panels_of(const Nearest& f, int64_t columns) {
  return round_up(columns, kPanel<float>) * larger<int64_t>(f.dim, 1);
}

SFRS_INLINE void pack_columns(const Nearest& f, int64_t first, int64_t columns, float* panels) {
  rows_to_panels(f.y + first * f.dim, f.dim, columns, f.dim, panels, f.dim);
}

// Products of `count` packed rows with up to kNearestColumns columns, kNearestColumns apart.
SFRS_INLINE void multiply_block(const Nearest& f, int64_t count, const float* packed, int64_t columns,
                                const float* panels, float* products) {
  constexpr int64_t wide = kPanel<float>;
  Tiles blocks = {(count + kTileRows - 1) / kTileRows, kTileRows * f.dim, 0, kTileRows * kNearestColumns};
  int64_t d = 0;
  do {
    int64_t depth = smaller(kSlice, f.dim - d);
    for (int64_t c = 0; c < columns; c += wide)
      multiply<1, kTileRows>(kTileVecs, 1, depth, packed + d * kTileRows, 0,
                             panels + c / wide * panel_size(f) + d * wide, wide, products + c,
                             kNearestColumns, d > 0, 0, blocks);
    d += depth;
  } while (d < f.dim);
}

// One row's products with `count` columns from `first` on, which end with a whole vector.
SFRS_INLINE void look_along_row(BestOfRows& best, int64_t row, const float* products, int64_t first,
                                int64_t count) {
  Vec<float> top = splat(-__builtin_inff()), low = splat(__builtin_inff());
  for (int64_t i = 0; i < count; i += kLanes<float>) {
    Vec<float> values = load(products + i);
    low = values < low ? values : low;
    top = values > top ? values : top;
  }
  low = -low;
  best.least[row] = smaller(best.least[row], -max_lanes<float>(low));
  if (!any(top > best.bound[row])) return;
  for (int64_t i = 0; i < count; i += kLanes<float>)
    if (any(load(products + i) > best.bound[row])) best.add(row, products + i, first + i);
}

// Calls f with every lane in which a comparison holds.
template <class F>
SFRS_INLINE void each_lane(VecOf<float>::mask mask, const F& f) {
  typedef int8_t Bytes __attribute__((vector_size(SFRS_VECTOR_BYTES / 4)));
  Bytes bytes = __builtin_convertvector(mask, Bytes);
  for (int first = 0; first < kLanes<float>; first += 8) {
    uint64_t set = 0;
    __builtin_memcpy(&set, (char*)&bytes + first, smaller(8, kLanes<float>));
    while (set) {
      int lane = __builtin_ctzll(set) / 8;
      f(first + lane);
      set &= ~(0xffull << 8 * lane);
    }
  }
}

// A vector of columns' products with `count` rows from `first` on.
SFRS_INLINE void look_along_columns(BestOfRows& best, int64_t column, const float* products, int64_t first,
                                    int64_t count) {
  Vec<float> top = splat(-__builtin_inff()), low = load(best.least + column);
  for (int64_t i = 0; i < count; ++i) {
    Vec<float> values = load(products + i * kNearestColumns);
    low = values < low ? values : low;
    top = values > top ? values : top;
  }
  store(best.least + column, low);
  if (!any(top > load(best.bound + column))) return;
  for (int64_t i = 0; i < count; ++i) {
    const float* values = products + i * kNearestColumns;
    each_lane(load(values) > load(best.bound + column),
              [&](int lane) { best.add(column + lane, values[lane], first + i); });
  }
}

// Rows [begin, begin + count) and columns [first, first + columns), of which panels hold those from
// `panels_first` on; also as rows `first` and columns `begin` if `both`.
SFRS_INLINE void look_through(const Nearest& f, BestOfRows& best, int64_t begin, int64_t count,
                              const float* packed, int64_t first, int64_t columns, const float* panels,
                              int64_t panels_first, bool both) {
  constexpr int64_t lanes = kLanes<float>;
  alignas(64) float products[kNearestRows * kNearestColumns];
  const int64_t* excluded[kNearestRows];  // the next one of each row
  for (int64_t i = 0; f.offsets && i < count; ++i)
    excluded[i] =
        std::lower_bound(f.excluded + f.offsets[begin + i], f.excluded + f.offsets[begin + i + 1], first);
  for (int64_t c = first, end = first + columns; c < end; c += kNearestColumns) {
    int64_t found = smaller(kNearestColumns, end - c);
    multiply_block(f, count, packed, found, panels + panels_of(f, c - panels_first), products);
    for (int64_t i = 0; i < count; ++i) {
      float* row = products + i * kNearestColumns;
      for (; f.offsets && excluded[i] < f.excluded + f.offsets[begin + i + 1] && *excluded[i] < c + found;
           ++excluded[i])
        if (*excluded[i] >= c) row[*excluded[i] - c] = __builtin_nanf("");
      for (int64_t j = found; j < round_up(found, lanes); ++j) row[j] = __builtin_nanf("");  // exceeds none
      if (f.own && begin + i >= c && begin + i < c + found) row[begin + i - c] = __builtin_inff();
      look_along_row(best, begin + i, row, c, found);
    }
    for (int64_t i = 0; both && i < count; i += kTileRows)
      for (int64_t j = 0; j < found; j += lanes)
        look_along_columns(best, c + j, products + i * kNearestColumns + j, begin + i,
                           smaller<int64_t>(kTileRows, count - i));
  }
}

// What a task packs its rows and columns into.
struct NearestScratch {
  Scratch memory;
  float *panels, *packed;

  NearestScratch(const Nearest& f, int64_t columns)
      : memory(Scratch::bytes<float>(panels_of(f, columns)) + Scratch::bytes<float>(kNearestRows * f.dim)),
        panels(memory.take<float>(panels_of(f, columns))),
        packed(memory.zeros<float>(kNearestRows * f.dim)) {}
};

struct RowBlock {
  int64_t begin, count;
};

// Blocks of rows against another gallery: tasks share the blocks, chunks of the gallery come one after the
// other.
SFRS_INLINE void nearest_of_gallery(const Nearest& f, const Parallel& parallel, BestOfRows& best,
                                    const std::vector<RowBlock>& blocks) {
  int64_t chunk = chunk_columns(f);
  Scratch shared(Scratch::bytes<float>(panels_of(f, chunk)));
  float* panels = shared.take<float>(panels_of(f, chunk));
  for (int64_t first = 0; first < f.gallery; first += chunk) {
    int64_t columns = smaller(chunk, f.gallery - first);
    parallel.each((columns + kPanel<float> - 1) / kPanel<float>, [&](int64_t p) {
      int64_t c = p * kPanel<float>;
      pack_columns(f, first + c, smaller<int64_t>(kPanel<float>, columns - c), panels + panels_of(f, c));
    });
    parallel.each(blocks.size(), [&](int64_t block) {
      auto [begin, count] = blocks[block];
      NearestScratch scratch(f, 0);
      rows_to_blocks(f.x + begin * f.dim, f.dim, count, f.dim, scratch.packed);
      look_through(f, best, begin, count, scratch.packed, first, columns, panels, first, false);
    });
  }
}

// Where many neighbours are sought, a bound from evenly spaced columns spares most of the candidates that a
// bound from the first columns lets in. It is low enough that hardly a row finds too few, and searches again.
constexpr int64_t kSeedColumns = 4 * kNearestColumns;
SFRS_INLINE int64_t seed_rank(const Nearest& f) {
  double expected = (double)f.k * kSeedColumns / larger<int64_t>(f.gallery, 1);
  return (int64_t)(expected + 2.6 * __builtin_sqrt(expected)) + 1;
}
SFRS_INLINE void seed_bounds(const Nearest& f, const Parallel& parallel, BestOfRows& best,
                             const std::vector<RowBlock>& blocks) {
  Scratch shared(Scratch::bytes<float>(panels_of(f, kSeedColumns)));
  float* panels = shared.take<float>(panels_of(f, kSeedColumns));
  int64_t rank = seed_rank(f), step = f.gallery / kSeedColumns;
  rows_to_panels(f.y, step * f.dim, kSeedColumns, f.dim, panels, f.dim);
  parallel.each(blocks.size(), [&](int64_t block) {
    auto [begin, count] = blocks[block];
    NearestScratch scratch(f, 0);
    rows_to_blocks(f.x + begin * f.dim, f.dim, count, f.dim, scratch.packed);
    alignas(64) float products[kSeedColumns / kNearestColumns][kNearestRows * kNearestColumns];
    for (int64_t c = 0; c < kSeedColumns; c += kNearestColumns)
      multiply_block(f, count, scratch.packed, kNearestColumns, panels + panels_of(f, c),
                     products[c / kNearestColumns]);
    for (int64_t i = 0; i < count; ++i) {
      float sample[kSeedColumns];
      for (int64_t c = 0; c < kSeedColumns; ++c) {
        float value = products[c / kNearestColumns][i * kNearestColumns + c % kNearestColumns];
        sample[c] = value == value ? value : -__builtin_inff();
      }
      for (int64_t e = f.offsets ? f.offsets[begin + i] : 0; f.offsets && e < f.offsets[begin + i + 1]; ++e)
        if (f.excluded[e] >= 0 && f.excluded[e] % step == 0 && f.excluded[e] / step < kSeedColumns)
          sample[f.excluded[e] / step] = -__builtin_inff();
      std::nth_element(sample, sample + rank, sample + kSeedColumns, std::greater<float>());
      best.bound[begin + i] = sample[rank];
    }
  });
}

SFRS_INLINE void nearest_of_others(const Nearest& f, const Parallel& parallel, BestOfRows& best) {
  std::vector<RowBlock> blocks;
  for (int64_t begin = 0; begin < f.rows; begin += kNearestRows)
    blocks.push_back({begin, smaller(kNearestRows, f.rows - begin)});
  bool seeded = f.gallery >= 4 * kSeedColumns && seed_rank(f) < kSeedColumns / 4;
  if (seeded) seed_bounds(f, parallel, best, blocks);
  nearest_of_gallery(f, parallel, best, blocks);
  if (!seeded) return;
  blocks.clear();
  for (int64_t row = 0; row < f.rows; ++row)
    if (best.restart(row)) blocks.push_back({row, 1});
  if (!blocks.empty()) nearest_of_gallery(f, parallel, best, blocks);
}

// Rows [a, a_end) against rows [b, b_end), both ways; a range against itself if they are the same, but for
// the squares on its diagonal.
SFRS_NOINLINE void nearest_of_ranges(const Nearest& f, BestOfRows& best, int64_t a, int64_t a_end, int64_t b,
                                     int64_t b_end) {
  if (a >= a_end) return;
  int64_t chunk = smaller(chunk_columns(f), round_up(b_end - b, kSquare));
  NearestScratch scratch(f, chunk);
  for (int64_t first = b; first < b_end; first += chunk) {
    int64_t end = smaller(first + chunk, b_end);
    pack_columns(f, first, end - first, scratch.panels);
    for (int64_t begin = a; begin < a_end; begin += kNearestRows) {
      int64_t square_end = (begin / kSquare + 1) * kSquare, from = a == b ? larger(first, square_end) : first;
      if (from >= end) break;
      int64_t count = smaller(kNearestRows, a_end - begin);
      rows_to_blocks(f.x + begin * f.dim, f.dim, count, f.dim, scratch.packed);
      look_through(f, best, begin, count, scratch.packed, from, end - from, scratch.panels, first, true);
    }
  }
}

SFRS_NOINLINE void nearest_of_square(const Nearest& f, BestOfRows& best, int64_t first, int64_t size) {
  NearestScratch scratch(f, size);
  pack_columns(f, first, size, scratch.panels);
  for (int64_t begin = first; begin < first + size; begin += kNearestRows) {
    int64_t count = smaller(kNearestRows, first + size - begin);
    rows_to_blocks(f.x + begin * f.dim, f.dim, count, f.dim, scratch.packed);
    look_through(f, best, begin, count, scratch.packed, first, size, scratch.panels, first, false);
  }
}

// Rows against one another. First the squares on the diagonal, since images that stand together in a list
// are often near, and set bounds that few others exceed. Then each pair of ranges once, in rounds in which no
// range is in two pairs.
SFRS_INLINE void nearest_of_own(const Nearest& f, const Parallel& parallel, BestOfRows& best) {
  parallel.each((f.rows + kSquare - 1) / kSquare, [&](int64_t square) {
    nearest_of_square(f, best, square * kSquare, smaller(kSquare, f.rows - square * kSquare));
  });
  int64_t ranges = parallel.threads == 1 ? 1 : 4 * parallel.threads;
  int64_t share = round_up((f.rows + ranges - 1) / ranges, kSquare);
  auto pair = [&](int64_t a, int64_t b) {
    auto at = [&](int64_t range) { return smaller(range * share, f.rows); };
    nearest_of_ranges(f, best, at(a), at(a + 1), at(b), at(b + 1));
  };
  parallel.each(ranges, [&](int64_t range) { pair(range, range); });
  int64_t others = ranges - 1;  // the last stays where it is while these go round
  for (int64_t round = 0; round < others; ++round)
    parallel.each(ranges / 2, [&](int64_t i) {
      i == 0 ? pair(round, others) : pair((round + i) % others, (round - i + others) % others);
    });
}

void nearest(const Nearest& f, const Parallel& parallel) {
  Scratch scratch(BestOfRows::bytes(f.rows, f.k));
  BestOfRows best(f.rows, f.k, !f.own, scratch);
  f.own ? nearest_of_own(f, parallel, best) : nearest_of_others(f, parallel, best);
  parallel.each((f.rows + kNearestRows - 1) / kNearestRows, [&](int64_t block) {
    for (int64_t r = block * kNearestRows; r < smaller((block + 1) * kNearestRows, f.rows); ++r) {
      best.write(r, f.similarity + r * f.k, f.index + r * f.k);
      f.least[r] = best.least[r];
    }
  });
}
