// The CUDA kernels as one more set of CPU kernels, for the tests of the operators.
#include "../cpu/kernels.h"
#include "../cuda/kernels.h"
#include "../cuda/launch.h"

#include <cstdlib>
#include <memory>
#include <vector>

namespace sfrs::cpu::portable {
extern const Kernels table;
}

namespace sfrs::cpu::emulated {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// An H200, of three multiprocessors so that a small problem has blocks with more than one unit of work.
class Device {
 public:
  cuda::Machine machine() { return {3, 232448, nullptr, &Device::allocate, this}; }

 private:
  static void* allocate(void* device, int64_t bytes) {
    auto& scratch = static_cast<Device*>(device)->scratch_;
    scratch.emplace_back(std::aligned_alloc(256, (size_t)(bytes / 256 + 1) * 256));
    if (!scratch.back()) throw std::bad_alloc();
    return std::memset(scratch.back().get(), 0xFF, bytes);
  }
  std::vector<std::unique_ptr<void, Free>> scratch_;
};

}  // namespace

void use_order(const std::string& name) { cuda::emulator::order = cuda::emulator::order_named(name); }

extern const Kernels table;
const Kernels table = {
    "emulated", portable::table.panel,
    [](const AggregationForward& f, const Parallel&) { cuda::aggregate_forward(f, Device().machine()); },
    [](const AggregationBackward& f, const Parallel&) { cuda::aggregate_backward(f, Device().machine()); },
    [](const RegionSimilarityForward& f, const Parallel&) {
      cuda::similarity_forward(f, Device().machine());
    },
    [](const RegionSimilarityBackward& f, const Parallel&) {
      cuda::similarity_backward(f, Device().machine());
    },
    // CUDA has no convolution of its own.
    [](const ConvolutionWeight& f, const Parallel& p) { portable::table.pack_convolution(f, p); },
    [](const Convolution& f, const Parallel& p) { portable::table.convolve(f, p); },
    [](const ConvolutionRelu& f, const Parallel& p) { portable::table.mask_gradient(f, p); }};

}  // namespace sfrs::cpu::emulated
