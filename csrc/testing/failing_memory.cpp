// Memory that runs out on demand. The linker puts these functions in front of all that _C allocates with
// (--wrap, see CMakeLists.txt), so that the sources of the operators know nothing of it.
#include <torch/csrc/stable/c/shim.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<int64_t> before_failure{-1};

bool fails() { return before_failure >= 0 && before_failure-- == 0; }

}  // namespace

extern "C" {

// After `count` more allocations one fails, in whichever thread it is; a negative count: none.
__attribute__((visibility("default"))) void sfrs_fail_allocation(int64_t count) { before_failure = count; }

// Scratch of the kernels.
void* __real_aligned_alloc(size_t alignment, size_t size);
void* __wrap_aligned_alloc(size_t alignment, size_t size) {
  return fails() ? nullptr : __real_aligned_alloc(alignment, size);
}

// operator new: containers.
void* __real__Znwm(size_t size);
void* __wrap__Znwm(size_t size) {
  if (fails()) throw std::bad_alloc();
  return __real__Znwm(size);
}

// Calls of torch: results, copies.
AOTITorchError __real_torch_call_dispatcher(const char*, const char*, StableIValue*, uint64_t);
AOTITorchError __wrap_torch_call_dispatcher(const char* name, const char* overload, StableIValue* stack,
                                            uint64_t version) {
  return fails() ? AOTI_TORCH_FAILURE : __real_torch_call_dispatcher(name, overload, stack, version);
}

}  // extern "C"
