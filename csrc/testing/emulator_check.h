// What a check of the emulator expects of a small kernel.
#pragma once

#include <cstdio>
#include <functional>
#include <string>

#include "../cuda/device.cuh"
#include "../cuda/launch.h"

namespace sfrs::cuda {

inline int failures = 0;

inline void expect(bool condition, const char* what) {
  std::printf("%s  %s\n", condition ? "ok  " : "FAIL", what);
  failures += !condition;
}

// What launching says, or nothing.
inline std::string fault_of(int threads, int64_t shared, const std::function<void()>& body,
                            dim3 grid = dim3()) {
  try {
    emulator::run(grid, threads, shared, body);
  } catch (const std::exception& fault) {
    return fault.what();
  }
  return "";
}
inline void expect_fault(const char* what, const std::string& fault,
                         std::initializer_list<const char*> words) {
  bool said = true;
  for (const char* word : words) said = said && fault.find(word) != std::string::npos;
  expect(said, what);
  if (!said) std::printf("      said: %s\n", fault.c_str());
}

template <class F>
std::string in_order(emulator::Order order, const F& f) {
  const emulator::Order before = emulator::order;
  emulator::order = order;
  const std::string result = f();
  emulator::order = before;
  return result;
}

// Of check_meetings.cpp: whether every thread finds the word of the thread `distance` further, and who waits
// for whom.
bool neighbours(int distance, bool barrier);
void check_orders();
void check_crews();
void check_fences();

}  // namespace sfrs::cuda
