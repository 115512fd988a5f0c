// What this machine can do at most: independent chains of multiply-adds in the widest vectors, and reads of
// buffers that fit L2, fit L3, or fit neither. Usage: roof THREADS REPETITIONS L2 L3 MEMORY, the last three
// bytes per thread. Prints one line per test and repetition: name, threads, FLOP or bytes per second. Tests
// take turns.

#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kChains = 24;  // of 32 registers
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kChains = 12;  // of 16 registers
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kChains = 24;  // of 32 registers
#else
constexpr int kVectorBytes = 16, kChains = 12;  // of 16 registers
#endif
constexpr int kLanes = kVectorBytes / sizeof(float);
typedef float Vector __attribute__((vector_size(kVectorBytes)));

constexpr double kSeconds = 0.02;  // of one repetition of one test

thread_local volatile float sink;

void keep(Vector v) { sink = v[0]; }

// FLOP of `rounds` steps of all chains: each waits for itself only, so every unit is busy in every clock.
double multiply_add(long rounds) {
  Vector chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = Vector{} + 0.5f * float(i + 1);
  const Vector factor = Vector{} + sink * 0.0f + 0.999f, term = Vector{} + sink * 0.0f + 0.001f;
  for (long r = 0; r < rounds; ++r) {
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * factor + term;
  }
  Vector sum = chain[0];
  for (int i = 1; i < kChains; ++i) sum += chain[i];
  keep(sum);
  return 2.0 * kLanes * kChains * double(rounds);
}

// Bytes of `rounds` passes over the buffer; eight sums, so that no addition waits for the one before.
double read(const std::vector<Vector>& buffer, long rounds) {
  Vector sum[8] = {};
  const Vector* data = buffer.data();
  const size_t count = buffer.size() / 8 * 8;
  for (long r = 0; r < rounds; ++r) {
    for (size_t i = 0; i < count; i += 8) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) sum[j] += data[i + j];
    }
  }
  for (int j = 1; j < 8; ++j) sum[0] += sum[j];
  keep(sum[0]);
  return double(count) * sizeof(Vector) * double(rounds);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Work per second of all threads together: from the common start to the end of the last one.
double rate(int threads, const std::function<double(int)>& work) {
  std::barrier start(threads);
  std::vector<double> begin(threads), end(threads), done(threads);
  std::vector<std::thread> team;
  for (int t = 0; t < threads; ++t) {
    team.emplace_back([&, t] {
      start.arrive_and_wait();
      begin[t] = now();
      done[t] = work(t);
      end[t] = now();
    });
  }
  double first = 1e300, last = 0, total = 0;
  for (int t = 0; t < threads; ++t) {
    team[t].join();
    if (begin[t] < first) first = begin[t];
    if (end[t] > last) last = end[t];
    total += done[t];
  }
  return total / (last - first);
}

struct Test {
  const char* name;
  int threads;
  std::function<double(int, long)> work;  // of a thread, rounds
  long rounds = 1;
};

int main(int count, char** arguments) {
  if (count != 6) return 2;
  const int most = std::atoi(arguments[1]), repetitions = std::atoi(arguments[2]);
  const char* levels[] = {"L2", "L3", "memory"};
  std::vector<std::vector<Vector>> buffers[3];  // level, thread
  for (int level = 0; level < 3; ++level) {
    const size_t vectors = std::strtoull(arguments[3 + level], nullptr, 10) / sizeof(Vector);
    buffers[level].assign(most, std::vector<Vector>(vectors, Vector{} + 1e-9f));
  }
  std::vector<Test> tests;
  for (int threads = 1; threads <= most; threads += most > 1 ? most - 1 : 1) {
    tests.push_back({"flops", threads, [](int, long rounds) { return multiply_add(rounds); }, 1000});
    for (int level = 0; level < 3; ++level) {
      const auto& of_level = buffers[level];
      tests.push_back(
          {levels[level], threads, [&of_level](int t, long rounds) { return read(of_level[t], rounds); }});
    }
  }
  for (Test& test : tests) {  // rounds that fill a repetition
    const auto work = [&](int t) { return test.work(t, test.rounds); };
    for (;;) {
      const double begin = now();
      rate(test.threads, work);
      if (now() - begin > kSeconds) break;
      test.rounds *= 2;
    }
  }
  for (int r = 0; r < repetitions; ++r) {
    for (const Test& test : tests) {
      const double found = rate(test.threads, [&](int t) { return test.work(t, test.rounds); });
      std::printf("%s %d %.6g\n", test.name, test.threads, found);
    }
  }
}
