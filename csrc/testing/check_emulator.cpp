// Checks of the emulator itself: small kernels whose result, or whose fault, is known.
#include <algorithm>
#include <random>

#include "emulator_check.h"

namespace sfrs::cuda {
namespace {

// a [16, k] and b [k, 8] by rows, c [16, 8].
template <class S, class T>
struct Product {
  S a[16 * 16], b[16 * 8];
  T c[16 * 8];
};

template <class S>
void multiply_16bit(Product<S, float>& product, bool b_transposed) {
  SFRS_SHARED_MEMORY(memory);
  S(*a)[16] = (S(*)[16])memory, (*b)[8] = (S(*)[8])(memory + 512), (*bt)[16] = (S(*)[16])(memory + 768);
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  for (int i = lane; i < 256; i += 32) a[i / 16][i % 16] = product.a[i];
  for (int i = lane; i < 128; i += 32) b[i / 8][i % 8] = bt[i % 8][i / 8] = product.b[i];
  __syncwarp();
  uint32_t ra[4], rb[4];
  load_matrices(ra, &a[lane % 16][lane / 16 * 8]);
  if (b_transposed)
    load_matrices_transposed(rb, &b[lane % 16][0]);
  else
    load_matrices(rb, &bt[lane % 8][lane / 8 % 2 * 8]);
  float c[4] = {1, 1, 1, 1};
  if constexpr (std::is_same_v<S, bf16>)
    multiply_bf16(c, ra, rb[0], rb[1]);
  else
    multiply_f16(c, ra, rb[0], rb[1]);
  for (int i = 0; i < 4; ++i) product.c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = c[i];
}

void multiply_32bit(Product<float, float>& product) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  float c[4] = {1, 1, 1, 1};
  for (int k = 0; k < 16; k += 8) {
    uint32_t a[4];
    for (int i = 0; i < 4; ++i) a[i] = to_tf32(product.a[(g + i % 2 * 8) * 16 + k + t + i / 2 * 4]);
    multiply_tf32(c, a, to_tf32(product.b[(k + t) * 8 + g]), to_tf32(product.b[(k + t + 4) * 8 + g]));
  }
  for (int i = 0; i < 4; ++i) product.c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = c[i];
}

void multiply_64bit(Product<double, double>& product) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  double c[4] = {1, 1, 1, 1};
  for (int k = 0; k < 16; k += 4)
    multiply_f64(c, product.a[g * 16 + k + t], product.a[(g + 8) * 16 + k + t], product.b[(k + t) * 8 + g]);
  for (int i = 0; i < 4; ++i) product.c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = c[i];
}

template <class S, class T, class F>
void check_product(const char* what, double tolerance, const F& kernel) {
  Product<S, T> product;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (S& v : product.a) store_as(&v, normal(random));
  for (S& v : product.b) store_as(&v, normal(random));
  const std::string fault = fault_of(32, 1024, [&] { kernel(product); });
  double error = 0;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      double exact = 1;
      for (int k = 0; k < 16; ++k)
        exact += (double)to_float(product.a[i * 16 + k]) * to_float(product.b[k * 8 + j]);
      error = fmax(error, fabs(exact - product.c[i * 8 + j]));
    }
  expect(fault.empty() && error < tolerance, what);
  if (!fault.empty() || error >= tolerance) std::printf("      error %g %s\n", error, fault.c_str());
}

void check_products() {
  for (bool transposed : {false, true}) {
    check_product<bf16, float>("ldmatrix and mma multiply bfloat16", 1e-5,
                               [&](auto& product) { multiply_16bit(product, transposed); });
    check_product<f16, float>("ldmatrix and mma multiply float16", 1e-5,
                              [&](auto& product) { multiply_16bit(product, transposed); });
  }
  check_product<float, float>("mma multiplies in TF32", 1e-2, multiply_32bit);
  check_product<double, double>("mma multiplies in double", 1e-14, multiply_64bit);
  float c = 0;
  const std::string fault = fault_of(32, 0, [&] {
    float sum[4] = {};
    const uint32_t one = float_bits(1), a[4] = {threadIdx.x ? 0 : float_bits(1.0009f), 0, 0, 0};
    multiply_tf32(sum, a, one, one);
    if (threadIdx.x == 0) c = sum[0];
  });
  expect(fault.empty() && c == 1, "mma ignores the digits that TF32 lacks");
}

// 1 and products that each lie below its last digit: rounded sums grow, truncated ones do not.
void check_truncation() {
  const double quarter = 0x1p-26, half = 0x1p-25, unit = 0x1p-23;
  const auto sum = [](float c, std::initializer_list<double> terms) {
    float sums[8];
    double products[4][8];
    for (float& s : sums) s = c;
    for (size_t i = 0; i < terms.size(); ++i)
      for (double& p : products[i]) p = terms.begin()[i];
    emulator::add_truncated(sums, products, (int)terms.size());
    return sums[5];
  };
  expect(sum(1, {unit}) == 1 + (float)unit, "a truncated sum keeps 24 bits");
  expect(sum(1, {unit / 2}) == 1 && sum(-1, {-unit / 2}) == -1, "a truncated sum rounds toward zero");
  expect(sum(1, {half, half, half, half}) == 1 + (float)unit, "two more bits are added up before that");
  expect(sum(1, {quarter, quarter, quarter, quarter}) == 1, "bits below those are lost");
  expect(sum(0, {3.0, -3.0}) == 0 && sum(2, {-2.0, half, 2 * half}) == 2 * (float)half,
         "what cancels leaves what was kept");
  expect(sum(0, {0x1p-140}) == 0x1p-140f && sum(0, {0.0}) == 0, "small sums and zero are what they are");
  expect(sum(0, {INFINITY}) == INFINITY && sum(0, {INFINITY, -INFINITY}) != sum(0, {INFINITY, -INFINITY}),
         "infinite terms stay so");
  emulator::truncates = true;
  check_products();
  emulator::truncates = false;
}

void check_conversions() {
  bool same = true;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    f16 half{(uint16_t)bits}, back;
    store_as(&back, to_float(half));
    const bool nan = (bits & 0x7c00) == 0x7c00 && bits & 0x3ff;
    same = same && (nan ? to_float(half) != to_float(half) : back.bits == half.bits);
#if defined(__FLT16_MAX__) && defined(__x86_64__)
    _Float16 native;
    std::memcpy(&native, &half, 2);
    same = same && (nan || (float)native == to_float(half));
#endif
  }
  expect(same, "float16 survives the way to float and back");
#if defined(__FLT16_MAX__) && defined(__x86_64__)
  std::mt19937 random(1);
  bool rounds = true;
  for (int i = 0; i < 1 << 20; ++i) {
    const float v = bits_float((uint32_t)random());
    f16 ours;
    store_as(&ours, v);
    const _Float16 native = (_Float16)v;
    uint16_t bits;
    std::memcpy(&bits, &native, 2);
    rounds = rounds && (v != v || ours.bits == bits);
  }
  expect(rounds, "float16 is rounded as the compiler does");
#endif
  f16 h;
  store_as(&h, 65520.0f);
  expect(h.bits == 0x7c00, "float16 overflows to infinity");
  bf16 b;
  store_as(&b, bits_float(0x3f808000u));
  expect(b.bits == 0x3f80, "bfloat16 rounds ties to even");
  expect(to_tf32(bits_float(0x3f801000u)) == 0x3f802000u, "TF32 rounds ties away from zero");
}

void check_shuffles() {
  bool right = true;
  const std::string fault = fault_of(64, 0, [&] {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    right = right && __shfl_sync(kAllLanes, threadIdx.x, 5) == 32u * warp + 5;
    right = right && __shfl_sync(kAllLanes, lane, 1, 4) == lane / 4 * 4 + 1;
    right = right && __shfl_xor_sync(kAllLanes, (double)lane, 9) == (lane ^ 9);
    right = right && __shfl_down_sync(kAllLanes, lane, 3) == (lane < 29 ? lane + 3 : lane);
    right = right && __shfl_up_sync(kAllLanes, lane, 3) == (lane < 3 ? lane : lane - 3);
  });
  expect(right && fault.empty(), "shuffles take the value of their source lane");
}

void check_copies() {
  alignas(16) float source[4] = {1, 2, 3, 4};
  float early = 0, loose = 0, late = 0, zero = 1;
  const std::string fault = fault_of(32, 1024, [&] {
    SFRS_SHARED_MEMORY(memory);
    float* row = (float*)memory + threadIdx.x * 8;
    row[0] = row[4] = 5;
    copy_async<16>(row, source, true);
    copy_async_commit();
    copy_async<16>(row + 4, source, false);
    copy_async_commit();
    if (threadIdx.x == 7) early = row[0];
    copy_async_wait<1>();
    if (threadIdx.x == 7) loose = row[4], late = row[3];
    copy_async_wait<0>();
    if (threadIdx.x == 7) zero = row[4];
  });
  expect(fault.empty() && early != early, "a copy that was not waited for leaves NaN");
  expect(loose != loose && late == 4, "waiting for all groups but one leaves the last on its way");
  expect(zero == 0, "a copy that is not valid writes zeros");
  expect_fault("copies that nobody waits for are a fault",
               fault_of(32, 512,
                        [&] {
                          SFRS_SHARED_MEMORY(memory);
                          copy_async<16>(memory + threadIdx.x * 16, source, true);
                          copy_async_wait<0>();  // of no group: the copy was not committed
                        }),
               {"ends without waiting for its copy_async"});
  expect_fault("a copy from an odd address is a fault",
               fault_of(32, 512,
                        [&] {
                          SFRS_SHARED_MEMORY(memory);
                          copy_async<16>(memory + threadIdx.x * 16, source + 1, true);
                        }),
               {"copy_async", "not a multiple of 16"});
  expect_fault("a copy beyond shared memory is a fault",
               fault_of(32, 500,
                        [&] {
                          SFRS_SHARED_MEMORY(memory);
                          copy_async<16>(memory + threadIdx.x * 16, source, true);
                          copy_async_commit();
                          copy_async_wait<0>();
                        }),
               {"copy_async", "outside of the block's shared memory"});
}

void check_faults() {
  const auto in_both_orders = [](const char* what, int threads, const std::function<void()>& body,
                                 std::initializer_list<const char*> words) {
    for (emulator::Order order : {emulator::Order::forward, emulator::Order::reversed})
      expect_fault(what, in_order(order, [&] { return fault_of(threads, 256, body); }), words);
  };
  in_both_orders("lanes at different barriers are a fault", 32,
                 [] {
                   if (threadIdx.x < 16)
                     __syncthreads();
                   else
                     __syncwarp();
                 },
                 {"__syncthreads", "__syncwarp", "warp 0, lane", "block (0, 0, 0)"});
  in_both_orders("a lane that ends while others shuffle is a fault", 32,
                 [] {
                   if (threadIdx.x != 3) __shfl_sync(kAllLanes, 0, 0);
                 },
                 {"end"});
  in_both_orders("a warp that ends while others wait is a fault", 64,
                 [] {
                   if (threadIdx.x < 32) __syncthreads();
                 },
                 {"end"});
  in_both_orders("a barrier that only some lanes reach is a fault", 64,
                 [] {
                   if (threadIdx.x % 2) __syncthreads();
                 },
                 {"end"});
  in_both_orders("a partial mask is refused", 32, [] { __syncwarp(0xffff); }, {"__syncwarp", "mask"});
  in_both_orders("an ldmatrix address that is odd is a fault", 32,
                 [] {
                   SFRS_SHARED_MEMORY(memory);
                   uint32_t m[4];
                   load_matrices(m, memory + 2 * threadIdx.x);
                 },
                 {"ldmatrix", "not a multiple of 16"});
  in_both_orders("an ldmatrix address outside of shared memory is a fault", 32,
                 [] {
                   SFRS_SHARED_MEMORY(memory);
                   uint32_t m[4];
                   load_matrices_transposed(m, memory + 16 * threadIdx.x);
                 },
                 {"ldmatrix.trans", "outside"});
#ifndef __SANITIZE_ADDRESS__  // which ends the process instead
  in_both_orders("a write behind shared memory is a fault", 32,
                 [] {
                   SFRS_SHARED_MEMORY(memory);
                   memory[256 + threadIdx.x] = 0;
                 },
                 {"wrote behind its shared memory"});
#endif
  expect(neighbours(1, true), "the emulator works after a fault");
}

void check_poison() {
  bool poisoned = true, aligned = true;
  fault_of(
      64, 1000,
      [&] {
        SFRS_SHARED_MEMORY(memory);
        aligned = aligned && reinterpret_cast<uintptr_t>(memory) % 1024 == 0;
        if (threadIdx.x == 0)
          for (int i = 0; i < 1000; ++i) poisoned = poisoned && memory[i] == 0xFF;
        __syncthreads();
        for (int i = threadIdx.x; i < 1000; i += 64) memory[i] = 0;
      },
      dim3(3));
  expect(poisoned && aligned, "every block's shared memory starts as NaN at a multiple of 1024");
}

}  // namespace
}  // namespace sfrs::cuda

int main() {
  using namespace sfrs::cuda;
  check_products();
  check_truncation();
  check_conversions();
  check_shuffles();
  check_orders();
  check_crews();
  check_fences();
  check_copies();
  check_faults();
  check_poison();
  std::printf("%d checks failed\n", failures);
  return failures != 0;
}
