// One problem, in every order of threads that a backend has: right in the first, the same bits in all others.
#pragma once

#include "backend.h"
#include "report.h"

namespace sfrs::testing {

// `run` gives results, `compare` holds those of the first order against what is exact.
template <class Run, class Compare>
void in_every_order(const Backend& backend, Report& report, const Run& run, const Compare& compare) {
  std::string first;
  for (const std::string& order : backend.orders) {
    backend.set_order(order);
    try {
      const auto results = run();
      if (first.empty()) {
        compare(results);
        first = results.bits();
      } else if (results.bits() != first) {
        report.fault("other bits in order " + order);
      }
    } catch (const std::exception& fault) {
      report.fault(order + ": " + fault.what());
    }
  }
}

}  // namespace sfrs::testing
