// Memory asked for ahead of its use, while products run: it lies in rows too short for the processor to
// foresee, and a product leaves the memory nothing to do. Evenly, as too many lines on their way make the
// processor wait.
#pragma once

#include "vec.inl"

namespace sfrs::cpu::SFRS_ISA {
namespace {
class Ahead {
 public:
  Ahead() = default;
  // Rows are those of one plane; the same follow in every other, `stride` bytes further on. Into L2, or into
  // L1 and to be written.
  Ahead(int64_t planes, int64_t stride, bool written) : planes_(planes), stride_(stride), written_(written) {}
  void add_row(const void* begin, int64_t bytes) {
    if (rows_ == kMostRows) return;
    const char* first = (const char*)((uintptr_t)begin & ~(uintptr_t)63);
    begin_[rows_] = first;
    lines_ += lines_of_[rows_++] = ((const char*)begin + bytes - first + 63) / 64;
  }

  // All lines come while that much work is done, in any unit.
  void spread(int64_t work) {
    per_work_ = (float)(lines_ * planes_) / larger<int64_t>(work, 1);
    if (rows_) at_ = begin_[0], left_ = lines_of_[0];
  }
  SFRS_INLINE void advance(int64_t work) {
    due_ += work * per_work_;
    int64_t count = (int64_t)due_;
    due_ -= count;
    while (count > 0 && planes_ > 0) {
      int64_t run = smaller(count, left_);
      count -= run, left_ -= run;
      for (const char* behind = at_ + run * 64; at_ < behind; at_ += 64)
        written_ ? __builtin_prefetch(at_, 1, 3) : __builtin_prefetch(at_, 0, 2);
      if (left_ > 0) return;
      if (++row_ == rows_) row_ = 0, offset_ += stride_, --planes_;
      at_ = begin_[row_] + offset_, left_ = lines_of_[row_];
    }
  }

 private:
  static constexpr int64_t kMostRows = 16;

  int64_t planes_ = 0, stride_ = 0, rows_ = 0, lines_ = 0, row_ = 0, left_ = 0, offset_ = 0;
  int64_t lines_of_[kMostRows];
  bool written_ = false;
  float per_work_ = 0, due_ = 0;
  const char *at_ = nullptr, *begin_[kMostRows];
};

}  // namespace
}  // namespace sfrs::cpu::SFRS_ISA
