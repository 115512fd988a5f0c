// Nearest neighbours by inner product. Idea: a register tile of products is looked through while it is in L1,
// so the matrix of all products never exists; a vector of them is compared with the row's k-th best so far,
// and few pass. Floor: 2 M N D flops, compute-bound.

struct Candidate {
  float value;
  int32_t index;
};
struct Better {  // in the order of the result
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.value > b.value || (a.value == b.value && a.index < b.index);
  }
};

// The best of a row so far, up to kRoom * k of them and a vector more, and the value that a new one has to
// exceed. Columns come in ascending order, so of equal values the first is kept.
constexpr int64_t kRoom = 2;
struct BestOfRow {
  Candidate* list;
  int64_t k, count;
  float threshold;

  BestOfRow(Candidate* room, int64_t most) : list(room), k(most), count(0), threshold(-__builtin_inff()) {}
  // A vector of products, of which some exceed the threshold. Every one is written behind the last, and
  // stays if it does: the processor could not foresee which.
  SFRS_INLINE void add(const float* values, int64_t index) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<float>; ++i) {
      list[count] = {values[i], (int32_t)(index + i)};
      count += values[i] > threshold;
    }
    if (count >= kRoom * k) shrink();
  }
  SFRS_NOINLINE void shrink() {
    std::nth_element(list, list + k - 1, list + count, Better());
    count = k;
    threshold = list[k - 1].value;
  }
  void write(float* similarity, int64_t* index) {
    if (count > k) shrink();
    std::sort(list, list + count, Better());
    for (int64_t i = 0; i < k; ++i) {
      similarity[i] = i < count ? list[i].value : -__builtin_inff();
      index[i] = i < count ? list[i].index : -1;
    }
  }
};

constexpr int64_t kNearestRows = 8 * kTileRows;  // of a task: their values stay in L1 or L2 beside a panel
constexpr int64_t kChunkBytes = 4 << 20;         // of y in panels at a time

// How the work is cut: blocks of rows, which tasks share, beside chunks of the gallery, one after the other.
struct NearestSizes {
  int64_t rows, gallery, dim, blocks, chunk;

  explicit NearestSizes(const Nearest& f)
      : rows(f.rows),
        gallery(f.gallery),
        dim(f.dim),
        blocks((f.rows + kNearestRows - 1) / kNearestRows),
        chunk(smaller(
            round_up(larger<int64_t>(f.gallery, 1), kPanel<float>),
            larger<int64_t>(kChunkBytes / 4 / larger<int64_t>(dim, 1), 1) / kPanel<float> * kPanel<float> +
                kPanel<float>)) {}
  int64_t panel() const { return larger<int64_t>(dim, 1) * kPanel<float>; }
};

// Panels whose products are looked through together, so that the search for a maximum in a vector pays.
constexpr int kNearestPanels = 4;

// One row of the products of x with `count` rows of y from `first` on, panels `kTileRows` rows apart.
SFRS_INLINE void look_through(const Nearest& f, int64_t row, int64_t first, int64_t count, float* products,
                              BestOfRow& best, Vec<float>& least) {
  constexpr int64_t wide = kPanel<float>, apart = kTileRows * wide;
  auto at = [&](int64_t column) { return products + column / wide * apart + column % wide; };
  for (int64_t i = count; i < round_up(count, wide); ++i) *at(i) = __builtin_nanf("");  // no comparison holds
  if (f.own && row >= first && row < first + count) *at(row - first) = __builtin_inff();
  Vec<float> top = splat(-__builtin_inff()), low = least;
  for (int64_t panel = 0; panel < count; panel += wide)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVecs; ++v) {
      Vec<float> values = load(at(panel) + v * kLanes<float>);
      low = values < low ? values : low;
      top = values > top ? values : top;
    }
  least = low;
  if (!any(top > best.threshold)) return;
  for (int64_t i = 0; i < count; i += kLanes<float>) {
    const float* values = at(i);
    if (any(load(values) > best.threshold)) best.add(values, first + i);
  }
}

SFRS_INLINE void nearest_of_block(const Nearest& f, const NearestSizes& n, int64_t first, int64_t columns,
                                  const float* panels, int64_t begin, int64_t count, const float* packed,
                                  BestOfRow* best, Vec<float>* least) {
  constexpr int64_t wide = kPanel<float>;
  alignas(64) float products[kNearestPanels * kTileRows * wide];
  for (int64_t c = 0; c < columns; c += kNearestPanels * wide) {
    int64_t found = smaller(kNearestPanels * wide, columns - c);
    for (int64_t r = 0; r < count; r += kTileRows) {
      for (int64_t i = 0; i < found; i += wide)
        multiply<1, kTileRows>(kTileVecs, 1, n.dim, packed + r * n.dim, 0,
                               panels + (c + i) / wide * n.panel(), wide, products + i * kTileRows, wide,
                               false);
      for (int64_t i = r; i < smaller(r + kTileRows, count); ++i)
        look_through(f, begin + i, first + c, found, products + (i - r) * wide, best[i], least[i]);
    }
  }
}

void nearest(const Nearest& f, const Parallel& parallel) {
  NearestSizes n(f);
  int64_t room_of_row = kRoom * f.k + kLanes<float>, panels = n.chunk / kPanel<float> * n.panel();
  Scratch shared(Scratch::bytes<Candidate>(room_of_row * f.rows) + Scratch::bytes<BestOfRow>(f.rows) +
                 Scratch::bytes<Vec<float>>(f.rows) + Scratch::bytes<float>(panels));
  Candidate* room = shared.take<Candidate>(room_of_row * f.rows);
  BestOfRow* best = shared.take<BestOfRow>(f.rows);
  Vec<float>* least = shared.take<Vec<float>>(f.rows);
  float* chunk = shared.take<float>(panels);
  for (int64_t r = 0; r < f.rows; ++r) {
    best[r] = BestOfRow(room + room_of_row * r, f.k);
    least[r] = splat(__builtin_inff());
  }
  for (int64_t first = 0; first < n.gallery; first += n.chunk) {
    int64_t columns = smaller(n.chunk, n.gallery - first);
    parallel.each((columns + kPanel<float> - 1) / kPanel<float>, [&](int64_t p) {
      int64_t c = first + p * kPanel<float>;
      rows_to_panels(f.y + c * n.dim, n.dim, smaller<int64_t>(kPanel<float>, n.gallery - c), n.dim,
                     chunk + p * n.panel(), n.dim);
    });
    parallel.each(n.blocks, [&](int64_t block) {
      int64_t begin = block * kNearestRows, count = smaller(kNearestRows, n.rows - begin);
      Scratch scratch(Scratch::bytes<float>(kNearestRows * n.dim));
      float* packed = scratch.zeros<float>(kNearestRows * n.dim);
      rows_to_blocks(f.x + begin * n.dim, n.dim, count, n.dim, packed);
      nearest_of_block(f, n, first, columns, chunk, begin, count, packed, best + begin, least + begin);
    });
  }
  parallel.each(n.blocks, [&](int64_t block) {
    for (int64_t r = block * kNearestRows; r < smaller((block + 1) * kNearestRows, n.rows); ++r) {
      best[r].write(f.similarity + r * f.k, f.index + r * f.k);
      Vec<float> negative = -least[r];
      f.least[r] = -max_lanes<float>(negative);
    }
  });
}
