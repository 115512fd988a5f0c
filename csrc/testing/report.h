// What a check compares and what it says.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "array.h"

namespace sfrs::testing {

// How far results may be off, in parts of the largest value: `storage` where they are stored like x or made
// from products of its type, `sum` for what never leaves the accumulation type.
struct Tolerance {
  double storage, sum;
};
inline Tolerance tolerance_of(DType dtype, bool tf32) {
  switch (dtype) {
    case DType::f64: return {1e-11, 1e-11};
    case DType::f32: return {tf32 ? 4e-3 : 3e-5, 3e-5};
    case DType::bf16: return {2e-2, 3e-5};
    case DType::f16: return {4e-3, 3e-5};
  }
  return {};
}

class Report {
 public:
  static inline bool show_errors = false;

  void fault(const std::string& what) { text_ += "    " + what + "\n"; }
  const std::string& text() const { return text_; }

  // Allows `tolerance` times the largest value of the group of `group` values, or of most groups, whichever
  // is larger, plus `floor`, the size of rounding where everything cancels. Where `exact` is NaN, anything.
  void compare(const char* name, const Array& ours, const std::vector<double>& exact, int64_t group,
               double tolerance, double floor = 0) {
    if (!ours) return;
    if (!ours.guards_intact()) fault(std::string(name) + ": written outside of its memory");
    if (ours.count() != (int64_t)exact.size()) return fault(std::string(name) + ": the check is wrong");
    std::vector<double> largest;
    for (size_t i = 0; i < exact.size(); ++i) {
      if (i % group == 0) largest.push_back(0);
      largest.back() = std::max(largest.back(), std::abs(exact[i]));
    }
    std::vector<double> sorted = largest;
    std::sort(sorted.begin(), sorted.end());
    const double common = sorted.empty() ? 0 : sorted[sorted.size() * 3 / 4];
    const double overflow = ours.dtype() == DType::f16 ? 65504 : INFINITY;
    int64_t wrong = 0, worst = -1;
    double worst_excess = 0, largest_error = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      const double allowed = tolerance * std::max(largest[i / group], common) + floor, v = ours.get(i);
      if (std::isnan(exact[i])) continue;
      largest_error = std::max(largest_error, std::abs(v - exact[i]) / std::max(largest[i / group], common));
      if (std::isinf(v) && (v < 0 ? -exact[i] : exact[i]) + allowed >= overflow) continue;
      if (std::abs(v - exact[i]) <= allowed) continue;
      ++wrong;
      const double excess = v == v ? std::abs(v - exact[i]) / allowed : INFINITY;
      if (worst < 0 || excess > worst_excess) worst = i, worst_excess = excess;
    }
    if (show_errors) std::printf("    %-10s %.1e\n", name, largest_error);
    if (!wrong) return;
    char line[256];
    std::snprintf(
        line, sizeof line,
        "%s: %lld of %lld values wrong; [%lld] is %.9g, should be %.9g (%.3g times what is allowed)", name,
        (long long)wrong, (long long)exact.size(), (long long)worst, ours.get(worst), exact[worst],
        worst_excess);
    fault(line);
  }

 private:
  std::string text_;
};

}  // namespace sfrs::testing
