// The k best of many rows, out of values that come a vector or one at a time and in any order.

// A value and its index as one number: of two the better is the larger, and of equal values the one with the
// lower index.
typedef int64_t Candidate;
SFRS_INLINE int32_t ordered(float value) {  // integers in the order of the values; no NaN, and no -0
  int32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits ^ (int32_t)((uint32_t)(bits >> 31) >> 1);
}
SFRS_INLINE Candidate candidate(float value, int64_t index) {
  return (int64_t)((uint64_t)(uint32_t)ordered(value + 0.0f) << 32 | (uint32_t)~(uint32_t)index);
}
SFRS_INLINE float value_of(Candidate candidate) {
  int32_t order = (int32_t)(candidate >> 32), bits = order ^ (int32_t)((uint32_t)(order >> 31) >> 1);
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
SFRS_INLINE int64_t index_of(Candidate candidate) { return ~(uint32_t)candidate; }

// The candidates of all rows, and for each row a bound that at least k of them exceed: nothing that does not
// exceed it is among the k best, whatever the order in which products come. A bound that is set from outside
// is a guess, which `restart` takes back where it was too high.
class BestOfRows {
 public:
  float *bound, *least;  // a vector is read from any row on

  BestOfRows(int64_t rows, int64_t k, bool ascending, Scratch& scratch) : k_(k), ascending_(ascending) {
    list_ = scratch.take<Candidate>(room() * rows);
    count_ = scratch.zeros<int64_t>(rows);
    bound = scratch.take<float>(rows + kLanes<float>);
    least = scratch.take<float>(rows + kLanes<float>);
    std::fill(bound, bound + rows, -__builtin_inff());
    std::fill(bound + rows, bound + rows + kLanes<float>, __builtin_inff());
    std::fill(least, least + rows + kLanes<float>, __builtin_inff());
  }
  static int64_t bytes(int64_t rows, int64_t k) {
    return Scratch::bytes<Candidate>((2 * k + kExtra + kLanes<float>)*rows) + Scratch::bytes<int64_t>(rows) +
           2 * Scratch::bytes<float>(rows + kLanes<float>);
  }

  // A vector of values of which some exceed the bound. Every one is written behind the last, and stays if
  // it does: the processor could not foresee which.
  SFRS_INLINE void add(int64_t row, const float* values, int64_t index) {
    Candidate* list = list_ + row * room();
    int64_t count = count_[row];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<float>; ++i) {
      list[count] = candidate(values[i], index + i);
      count += values[i] > bound[row];
    }
    count_[row] = count;
    if (count >= full()) shrink(row);
  }
  SFRS_INLINE void add(int64_t row, float value, int64_t index) {
    list_[row * room() + count_[row]++] = candidate(value, index);
    if (count_[row] >= full()) shrink(row);
  }

  // Whether a row has fewer than k; it then begins anew, without a bound.
  bool restart(int64_t row) {
    if (count_[row] >= k_) return false;
    count_[row] = 0;
    bound[row] = -__builtin_inff();
    return true;
  }

  void write(int64_t row, float* value, int64_t* index) {
    Candidate* list = list_ + row * room();
    int64_t count = count_[row];
    if (count > k_) std::nth_element(list, list + k_ - 1, list + count, std::greater<Candidate>());
    std::sort(list, list + smaller(count, k_), std::greater<Candidate>());
    for (int64_t i = 0; i < k_; ++i) {
      value[i] = i < count ? value_of(list[i]) : -__builtin_inff();
      index[i] = i < count ? index_of(list[i]) : -1;
    }
  }

 private:
  static constexpr int kSample = 16, kExtra = 32;

  int64_t full() const { return 2 * k_ + kExtra; }
  int64_t room() const { return full() + kLanes<float>; }

  // Keeps k or more candidates. A bound from a sample usually leaves some more than k, without a branch that
  // could not be foreseen; the k-th best itself is sought where the sample erred.
  SFRS_NOINLINE void shrink(int64_t row) {
    Candidate* list = list_ + row * room();
    int64_t count = count_[row], kept = 0;
    // Above all candidates of the value itself.
    Candidate pivot = candidate(sampled_bound(list, count), 0) | 0xffffffff;
    for (int64_t i = 0; i < count; ++i) kept += list[i] > pivot;
    if (kept < k_) {
      std::nth_element(list, list + k_ - 1, list + count, std::greater<Candidate>());
      count_[row] = k_;
      float last = value_of(list[k_ - 1]);
      // An equal value that comes later may stand before it, unless indices ascend.
      bound[row] = ascending_ ? last : __builtin_nextafterf(last, -__builtin_inff());
      return;
    }
    kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      Candidate next = list[i];
      list[kept] = next;
      kept += next > pivot;
    }
    count_[row] = kept;
    bound[row] = value_of(pivot);
  }
  float sampled_bound(const Candidate* list, int64_t count) const {
    constexpr int vectors = kSample / kLanes<float>;
    float sample[kSample];
    for (int i = 0; i < kSample; ++i) sample[i] = value_of(list[i * count / kSample]);
    Vec<float> found = splat(__builtin_inff());
    for (int v = 0; v < vectors; ++v) {
      Vec<float> values = load(sample + v * kLanes<float>);
      VecOf<float>::mask larger_ones = {};
      for (int i = 0; i < kSample; ++i) larger_ones -= splat(sample[i]) > values;
      Vec<float> eligible = larger_ones <= target_ ? values : splat(__builtin_inff());
      found = eligible < found ? eligible : found;
    }
    found = -found;
    return -max_lanes<float>(found);
  }

  int64_t k_;
  int target_ = (int)smaller<int64_t>(kSample - 1, kSample* k_ / full() + 2);
  bool ascending_;
  Candidate* list_;
  int64_t* count_;
};
