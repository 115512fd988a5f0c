// The CUDA backend. Built against a torch without CUDA too: the one function of torch's CUDA half that is
// needed is looked for when it is called.

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <map>
#include <mutex>

#include <torch/csrc/stable/accelerator.h>

#include "cuda/kernels.h"
#include "cuda/machine.h"
#include "glue.h"

extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);

namespace sfrs {
namespace {

void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "sfrs_ext: CUDA could not ", what, ": ", cudaGetErrorString(error));
}

using StreamGetter = decltype(&aoti_torch_get_current_cuda_stream);

// The weak reference is null if libtorch_cuda.so was loaded where this library does not look for symbols.
StreamGetter stream_getter() {
  static const StreamGetter getter = [] {
    if (aoti_torch_get_current_cuda_stream) return &aoti_torch_get_current_cuda_stream;
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return torch_cuda ? (StreamGetter)dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream") : nullptr;
  }();
  STD_TORCH_CHECK(getter, "sfrs_ext: this torch was built without CUDA");
  return getter;
}

struct Device {
  int multiprocessors, shared_memory;
};

const Device& device_facts(int device) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = known.find(device);
  if (found != known.end()) return found->second;
  auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, device), "describe the device");
    return value;
  };
  int major = attribute(cudaDevAttrComputeCapabilityMajor),
      minor = attribute(cudaDevAttrComputeCapabilityMinor);
  STD_TORCH_CHECK(major >= 8, "sfrs_ext: the CUDA kernels need compute capability 8.0, but device ", device,
                  " has ", major, ".", minor);
  Device facts{attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
  return known.emplace(device, facts).first->second;
}

class Cuda {
 public:
  static constexpr bool kSavesLogits = false;

  explicit Cuda(const glue::Tensor& x)
      : get_stream_(stream_getter()), device_(x.get_device_index()), guard_(device_), scratch_(x) {
    int current = -1;
    // Torch and this library hold a CUDA runtime each; the guard has spoken to torch's.
    check(cudaGetDevice(&current), "name the current device");
    if (current != device_) check(cudaSetDevice(device_), "choose a device");
    const Device& facts = device_facts(device_);
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(get_stream_(device_, &stream));
    machine_ = {facts.multiprocessors,         facts.shared_memory, stream,
                &glue::Scratch::allocate_from, &scratch_,           device_};
  }

  void aggregate_forward(const AggregationForward& f) { cuda::aggregate_forward(f, machine_); }
  void aggregate_backward(const AggregationBackward& f) { cuda::aggregate_backward(f, machine_); }
  void similarity_forward(const RegionSimilarityForward& f) { cuda::similarity_forward(f, machine_); }
  void similarity_backward(const RegionSimilarityBackward& f) { cuda::similarity_backward(f, machine_); }

 private:
  StreamGetter get_stream_;
  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  glue::Scratch scratch_;
  cuda::Machine machine_;
};

}  // namespace
}  // namespace sfrs

STABLE_TORCH_LIBRARY_IMPL(sfrs_ext, CUDA, m) {
  m.impl("aggregate", TORCH_BOX(&sfrs::glue::aggregate<sfrs::Cuda>));
  m.impl("aggregate_backward", TORCH_BOX(&sfrs::glue::aggregate_backward<sfrs::Cuda>));
  m.impl("region_similarity", TORCH_BOX(&sfrs::glue::region_similarity<sfrs::Cuda>));
  m.impl("region_similarity_backward", TORCH_BOX(&sfrs::glue::region_similarity_backward<sfrs::Cuda>));
}
