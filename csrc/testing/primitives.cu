// The words of csrc/cuda/device.cuh alone, on a device: where operands of the matrix instructions lie, what
// copies leave, how sums are rounded, and what instructions cost. Whoever doubts a kernel looks here first.
//
//   nvcc -std=c++17 -arch=sm_90 csrc/testing/primitives.cu -o primitives && ./primitives
//
// Compiled with SFRS_EMULATE it checks the emulator instead, which has no clock.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../cuda/launch.h"

namespace sfrs::cuda {
namespace {

int failures = 0;

void expect(bool condition, const char* what) {
  std::printf("%s  %s\n", condition ? "ok  " : "FAIL", what);
  failures += !condition;
}

// Memory of the device, filled from the host and read back.
template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : count_(values.size()) {
#ifdef SFRS_EMULATE
    data_ = static_cast<T*>(std::aligned_alloc(256, (count_ * sizeof(T) + 255) / 256 * 256));
    std::memcpy(data_, values.data(), count_ * sizeof(T));
#else
    check(cudaMalloc(&data_, count_ * sizeof(T)), "allocate");
    check(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "copy");
#endif
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() {
#ifdef SFRS_EMULATE
    std::free(data_);
#else
    cudaFree(data_);
#endif
  }
  T* data() const { return data_; }
  std::vector<T> values() const {
    std::vector<T> result(count_);
#ifdef SFRS_EMULATE
    std::memcpy(result.data(), data_, count_ * sizeof(T));
#else
    check(cudaMemcpy(result.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "read back");
#endif
    return result;
  }

 private:
  size_t count_;
  T* data_ = nullptr;
};

const Machine kMachine{1, 48 * 1024, nullptr, nullptr, nullptr};

// ---- ldmatrix

struct LoadParameters {
  uint32_t* out;  // [32, 4]
  bool transposed;
};
SFRS_KERNEL(32) load_kernel(SFRS_CONSTANT LoadParameters p) {
  SFRS_SHARED_MEMORY(memory);
  const int lane = (int)threadIdx.x;
  for (int i = 0; i < 8; ++i) ((uint16_t*)memory)[lane * 8 + i] = (uint16_t)(lane * 8 + i);
  __syncwarp();
  uint32_t m[4];
  if (p.transposed)
    load_matrices_transposed(m, memory + lane * 16);
  else
    load_matrices(m, memory + lane * 16);
  SFRS_EACH (i, 4) p.out[lane * 4 + i] = m[i];
}

void check_loads() {
  for (bool transposed : {false, true}) {
    const Buffer<uint32_t> out(std::vector<uint32_t>(128));
    launch(kMachine, load_kernel, dim3(1), 32, 512, LoadParameters{out.data(), transposed});
    const std::vector<uint32_t> found = out.values();
    bool right = true;
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        const uint32_t row = lane / 4, column = lane % 4 * 2, first = i * 64;
        const uint32_t low = transposed ? column * 8 + row : row * 8 + column;
        const uint32_t high = transposed ? (column + 1) * 8 + row : low + 1;
        right = right && found[lane * 4 + i] == ((first + low) | (first + high) << 16);
      }
    expect(right,
           transposed ? "ldmatrix.trans gives lanes their elements" : "ldmatrix gives lanes their elements");
  }
}

// ---- mma

enum class Kind { bf16, f16, tf32, f64 };
const char* const kNames[] = {"bf16", "f16", "TF32", "double"};
constexpr int kDepths[] = {16, 16, 8, 4};

struct ProductParameters {
  const double *a, *b;  // [16, k], [k, 8]
  double* c;            // [16, 8], added to
  Kind kind;
};
template <class S>
SFRS_DEVICE uint32_t packed(double low, double high) {
  S pair[2];
  store_as(pair, (float)low), store_as(pair + 1, (float)high);
  return (uint32_t)pair[0].bits | (uint32_t)pair[1].bits << 16;
}
template <class S>
SFRS_DEVICE void multiply_packed(const ProductParameters& p, int g, int t, float (&c)[4]) {
  uint32_t a[4], b[2];
  SFRS_EACH (i, 4) {
    const double* at = p.a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
    a[i] = packed<S>(at[0], at[1]);
  }
  SFRS_EACH (i, 2) b[i] = packed<S>(p.b[(2 * t + 8 * i) * 8 + g], p.b[(2 * t + 8 * i + 1) * 8 + g]);
  if constexpr (__is_same(S, bf16))
    multiply_bf16(c, a, b[0], b[1]);
  else
    multiply_f16(c, a, b[0], b[1]);
}
SFRS_KERNEL(32) product_kernel(SFRS_CONSTANT ProductParameters p) {
  const int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
  double sums[4];
  float c[4];
  SFRS_EACH (i, 4) sums[i] = p.c[(g + i / 2 * 8) * 8 + 2 * t + i % 2], c[i] = (float)sums[i];
  if (p.kind == Kind::bf16) multiply_packed<bf16>(p, g, t, c);
  if (p.kind == Kind::f16) multiply_packed<f16>(p, g, t, c);
  if (p.kind == Kind::tf32) {
    uint32_t a[4];
    SFRS_EACH (i, 4) a[i] = to_tf32((float)p.a[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
    multiply_tf32(c, a, to_tf32((float)p.b[t * 8 + g]), to_tf32((float)p.b[(t + 4) * 8 + g]));
  }
  if (p.kind == Kind::f64) multiply_f64(sums, p.a[g * 4 + t], p.a[(g + 8) * 4 + t], p.b[t * 8 + g]);
  SFRS_EACH (i, 4) p.c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = p.kind == Kind::f64 ? sums[i] : (double)c[i];
}

std::vector<double> product(Kind kind, const std::vector<double>& a, const std::vector<double>& b,
                            const std::vector<double>& c) {
  const Buffer<double> left(a), right(b), sums(c);
  launch(kMachine, product_kernel, dim3(1), 32, 0,
         ProductParameters{left.data(), right.data(), sums.data(), kind});
  return sums.values();
}

void check_products() {
  for (Kind kind : {Kind::bf16, Kind::f16, Kind::tf32, Kind::f64}) {
    const int k = kDepths[(int)kind];
    std::vector<double> a(16 * k), b(k * 8), c(16 * 8);
    unsigned random = 1;
    for (auto* values : {&a, &b, &c})  // small integers: no sum is rounded
      for (double& v : *values) random = random * 1664525u + 1013904223u, v = (int)(random >> 28) - 8;
    std::vector<double> exact = c;
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 8; ++j)
        for (int d = 0; d < k; ++d) exact[i * 8 + j] += a[i * k + d] * b[d * 8 + j];
    const std::string what = std::string("mma multiplies ") + kNames[(int)kind];
    expect(product(kind, a, b, c) == exact, what.c_str());
  }
}

// 1 and `count` products of one value, added up by a tensor core.
double sum_of(Kind kind, int count, double value) {
  const int k = kDepths[(int)kind];
  std::vector<double> a(16 * k), b(k * 8, 1.0), c(16 * 8, 1.0);
  for (int i = 0; i < count; ++i) a[i] = value;
  return product(kind, a, b, c)[0];
}

void report_rounding() {
  for (Kind kind : {Kind::bf16, Kind::tf32}) {
    const bool truncates = sum_of(kind, 1, 0x1.8p-24) == 1;  // three quarters of the last digit of 1
    int bits = 0;
    while (2 << bits <= kDepths[(int)kind] && sum_of(kind, 2 << bits, std::ldexp(0x1p-24, -bits)) > 1) ++bits;
    std::printf("sums of %s: %s, %d bits below the last are added up%s\n", kNames[(int)kind],
                truncates ? "cut off" : "rounded", bits,
                truncates && bits == 2 ? ", as the emulator's mode `truncated` has it" : "");
  }
}

// ---- cp.async

struct CopyParameters {
  const unsigned char* from;
  unsigned char* out;
};
template <int kBytes>
SFRS_KERNEL(64)
copy_kernel(SFRS_CONSTANT CopyParameters p) {
  SFRS_SHARED_MEMORY(memory);
  const int at = (int)threadIdx.x * kBytes;
  copy_async<kBytes>(memory + at, p.from + at, threadIdx.x % 3 != 0);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  const int other = (int)(threadIdx.x ^ 33) * kBytes;
  for (int i = 0; i < kBytes; ++i) p.out[other + i] = memory[other + i];
}
template <int kBytes>
void check_copy() {
  std::vector<unsigned char> values(64 * kBytes);
  for (size_t i = 0; i < values.size(); ++i) values[i] = (unsigned char)(1 + i % 251);
  const Buffer<unsigned char> from(values), out(values);
  launch(kMachine, copy_kernel<kBytes>, dim3(1), 64, 64 * kBytes, CopyParameters{from.data(), out.data()});
  for (int i = 0; i < 64; i += 3) std::memset(&values[i * kBytes], 0, kBytes);
  const std::string what =
      "cp.async of " + std::to_string(kBytes) + " bytes copies, and zeros what is not valid";
  expect(out.values() == values, what.c_str());
}

// ---- numbered barriers

struct CrewParameters {
  int* out;  // [128]
};
// Two crews of 64 threads, one of which turns twice as often; then both read what the other left.
SFRS_KERNEL(128) crew_kernel(SFRS_CONSTANT CrewParameters p) {
  SFRS_SHARED_MEMORY(memory);
  int *words = (int*)memory, t = (int)threadIdx.x, crew = t / 64, sum = t;
  for (int turn = 0; turn < (crew ? 16 : 8); ++turn) {
    words[t] = sum;
    crew ? sync_some<1, 64>() : sync_some<2, 64>();
    sum += words[crew * 64 + (t + 33) % 64];
    crew ? sync_some<1, 64>() : sync_some<2, 64>();
  }
  words[t] = sum;
  sync_some<3, 128>();
  p.out[t] = words[t ^ 64];
}
void check_crews() {
  const Buffer<int> out(std::vector<int>(128));
  launch(kMachine, crew_kernel, dim3(1), 128, 512, CrewParameters{out.data()});
  std::vector<int> expected(128);
  for (int crew = 0; crew < 2; ++crew) {
    std::vector<int> sums(64);
    for (int i = 0; i < 64; ++i) sums[i] = 64 * crew + i;
    for (int turn = 0; turn < (crew ? 16 : 8); ++turn) {
      const std::vector<int> before = sums;
      for (int i = 0; i < 64; ++i) sums[i] += before[(i + 33) % 64];
    }
    for (int i = 0; i < 64; ++i) expected[(64 * crew + i) ^ 64] = sums[i];
  }
  expect(out.values() == expected, "crews wait for each other at barriers of their own");
}

// ---- clocks

#ifndef SFRS_EMULATE
enum class Timed { mma_bf16, mma_tf32, mma_f64, ldmatrix, shuffle, exponential };

struct ClockParameters {
  long long* clocks;  // of the block, for kRounds rounds
  float* sink;
};
constexpr int kRounds = 256;

// kChains independent chains of one instruction, each waiting for its own predecessor.
template <Timed what, int kChains>
SFRS_KERNEL(256)
clock_kernel(SFRS_CONSTANT ClockParameters p) {
  SFRS_SHARED_MEMORY(memory);
  for (int i = (int)threadIdx.x; i < 1024; i += (int)blockDim.x) ((uint32_t*)memory)[i] = 0;
  float c[kChains][4] = {};
  double d[kChains][4] = {};
  uint32_t m[kChains][4] = {};
  const uint32_t a[4] = {threadIdx.x & 1, 0, 0, 0};
  __syncthreads();
  const long long begin = clock64();
  SFRS_ROLLED
  for (int round = 0; round < kRounds; ++round)
    SFRS_EACH (i, kChains) {
      if constexpr (what == Timed::mma_bf16) multiply_bf16(c[i], a, a[0], a[1]);
      if constexpr (what == Timed::mma_tf32) multiply_tf32(c[i], a, a[0], a[1]);
      if constexpr (what == Timed::mma_f64) multiply_f64(d[i], 0.0, 0.0, 0.0);
      if constexpr (what == Timed::ldmatrix) load_matrices(m[i], memory + threadIdx.x % 32 * 16 + m[i][0]);
      if constexpr (what == Timed::shuffle) c[i][0] = __shfl_xor_sync(kAllLanes, c[i][0], 1);
      if constexpr (what == Timed::exponential) c[i][0] = exp_quick(c[i][0]);
    }
  __syncthreads();
  if (threadIdx.x == 0) *p.clocks = clock64() - begin;
  float sum = 0;
  SFRS_EACH (i, kChains) sum += c[i][0] + (float)d[i][0] + (float)m[i][0];
  p.sink[threadIdx.x] = sum;
}

template <Timed what, int kChains>
double clocks_of(int threads) {
  const Buffer<long long> clocks({0});
  const Buffer<float> sink(std::vector<float>(256));
  for (int i = 0; i < 2; ++i)
    launch(kMachine, clock_kernel<what, kChains>, dim3(1), threads, 4096,
           ClockParameters{clocks.data(), sink.data()});
  return (double)clocks.values()[0] / kRounds / kChains;
}
template <Timed what>
void report_clocks(const char* name, int threads_at_once) {
  std::printf(
      "clocks of %s: %.1f until the next that needs it, one warp; of 4 and 8 warps each every %.1f, %.1f\n",
      name, clocks_of<what, 1>(32), clocks_of<what, 8>(threads_at_once / 2),
      clocks_of<what, 8>(threads_at_once));
}
#endif

int all() {
  check_loads();
  check_products();
  check_copy<4>(), check_copy<8>(), check_copy<16>();
  check_crews();
  report_rounding();
#ifndef SFRS_EMULATE
  report_clocks<Timed::mma_bf16>("mma bf16 (16 x 8 x 16)", 256);
  report_clocks<Timed::mma_tf32>("mma TF32 (16 x 8 x 8)", 256);
  report_clocks<Timed::mma_f64>("two mma double (8 x 8 x 4)", 256);
  report_clocks<Timed::ldmatrix>("ldmatrix x4", 256);
  report_clocks<Timed::shuffle>("shuffle", 256);
  report_clocks<Timed::exponential>("exp", 256);
#endif
  std::printf("primitives: %d checks failed\n", failures);
  return failures != 0;
}

}  // namespace
}  // namespace sfrs::cuda

int main() {
  try {
    return sfrs::cuda::all();
  } catch (const std::exception& fault) {
    return std::printf("FAIL  %s\n", fault.what()), 1;
  }
}
