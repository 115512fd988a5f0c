// Checks that ThreadSanitizer, told of the emulated barriers, sees every one of them that is missing: in
// whatever order the threads ran, and for warps too, where only __syncwarp orders memory and the collective
// instructions do not. Compile with -fsanitize=thread.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "../cuda/device.cuh"

// The default is to sleep a second at the end of every process.
extern "C" const char* __tsan_default_options() { return "atexit_sleep_ms=0"; }

namespace sfrs::cuda {
namespace {

constexpr int kThreads = 64, kBarriers = 10;

// Leaves out barrier `missing`; 0 leaves out none.
void exchange_words(int missing, float* global) {
  SFRS_SHARED_MEMORY(memory);
  float* words = (float*)memory;
  const int t = threadIdx.x, warp_begin = t & ~31;
  float sum = 0;
  for (int turn = 0; turn < 2; ++turn) {
    words[t] = (float)turn;
    if (missing != 1) __syncthreads();
    sum += words[(t + 1) % kThreads];
    if (missing != 2) __syncthreads();
    words[t] = sum;
    if (missing != 3) __syncwarp();
    sum += words[t ^ 5];
    if (missing != 4) __syncwarp();
    words[t] = sum;
    if (missing != 5) __syncwarp();
    uint32_t a[4];
    load_matrices(a, words + warp_begin + t % 8 * 4);
    float c[4] = {};
    multiply_bf16(c, a, a[0], a[1]);
    sum += __shfl_xor_sync(kAllLanes, c[0], 3);
    __syncthreads();
    copy_async<4>(words + t, global + t, true);
    copy_async_commit();
    copy_async_wait<0>();
    if (missing != 6) __syncthreads();
    sum += words[kThreads - 1 - t];
    if (missing != 7) __syncthreads();
    words[t] = sum;
    if (missing != 8) sync_some<1, kThreads>();
    sum += words[(t + 40) % kThreads];
    if (missing != 9) sync_some<2, kThreads>();
  }
  global[t + kThreads * (1 + blockIdx.x)] = sum;
}

// Has no other barrier than the last one: without it a thread runs to its end before the next one begins.
void exchange_once(int missing, float* global) {
  SFRS_SHARED_MEMORY(memory);
  float* words = (float*)memory;
  const int t = threadIdx.x;
  words[t] = (float)t;
  if (missing != kBarriers) __syncthreads();
  global[t + kThreads * (1 + blockIdx.x)] = words[(t + 1) % kThreads];
}

// In a process of its own, which ThreadSanitizer makes fail.
bool race_is_seen(int missing) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    if (missing) std::freopen("/dev/null", "w", stderr);
    static float global[3 * kThreads];
    emulator::run(dim3(2), kThreads, kThreads * sizeof(float), [&] { exchange_words(missing, global); });
    emulator::run(dim3(2), kThreads, kThreads * sizeof(float), [&] { exchange_once(missing, global); });
    std::exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  return status != 0;
}

}  // namespace
}  // namespace sfrs::cuda

int main() {
  using namespace sfrs::cuda;
  int failures = 0;
  for (int missing = 0; missing <= kBarriers; ++missing) {
    const bool seen = race_is_seen(missing), right = seen == (missing != 0);
    std::printf("%s  barrier %d of %d missing: race %s\n", right ? "ok  " : "FAIL", missing, kBarriers,
                seen ? "seen" : "not seen");
    failures += !right;
  }
  return failures != 0;
}
