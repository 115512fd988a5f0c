// The schemas of every operator, and the CPU backend.

#include <exception>
#include <mutex>

#include "cpu/kernels.h"
#include "glue.h"
#include "glue_convolution.h"

STABLE_TORCH_LIBRARY(sfrs_ext, m) {
  // kept: a copy of the result for the backward, empty unless `keep`. Who sees every write into a result
  // needs none.
  //
  // Either weight [K + G, D] or logits [B, P, K + G]. vlad [B, R, K, D]; saved_logits [B, P, K + G],
  // inv_norm [B, P] and scale [B, K + 1] serve the backward and are empty unless `save`; saved_logits is also
  // empty beside given logits and on CUDA, which computes them again. See csrc/aggregation.h.
  m.def(
      "aggregate(Tensor x, Tensor? weight, Tensor? logits, Tensor? centroids, Tensor? bias, Tensor? mask, "
      "int parts, int ghost_clusters, bool normalize_input, bool intra_norm, bool l2_norm, bool tf32, "
      "bool save, bool keep) -> (Tensor vlad, Tensor saved_logits, Tensor inv_norm, Tensor scale, "
      "Tensor kept)");
  // Results whose bit in `needs` (1, 2, 4, 8, 16, 32) is not set are empty. vlad is read only if normalised.
  m.def(
      "aggregate_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? logits, Tensor? centroids, "
      "Tensor? bias, Tensor? mask, Tensor? vlad, Tensor saved_logits, Tensor inv_norm, Tensor scale, "
      "int parts, int ghost_clusters, bool normalize_input, bool intra_norm, bool l2_norm, bool tf32, "
      "int needs) -> (Tensor dx, Tensor dweight, Tensor dlogits, Tensor dcentroids, Tensor dbias, "
      "Tensor dmask)");
  // quarters [T, G, 4, K, D] (lists) or [N, 4, K, D] (all pairs). See csrc/region_similarity.h.
  m.def(
      "region_similarity(Tensor query, Tensor quarters, bool tf32, bool save, bool keep) "
      "-> (Tensor similarity, Tensor dots, Tensor kept)");
  m.def(
      "region_similarity_backward(Tensor grad, Tensor query, Tensor quarters, Tensor similarity, "
      "Tensor dots, bool tf32, bool need_query, bool need_quarters) -> (Tensor dquery, Tensor dquarters)");
  // CPU only. packed [16, O rounded up, C] is what conv3x3_weight makes of weight; opaque. passes, empty
  // unless `save` and `relu`: one bit for every output, where gradients pass the ReLU. See
  // csrc/convolution.h.
  m.def("conv3x3_weight(Tensor weight) -> Tensor");
  m.def(
      "conv3x3(Tensor x, Tensor weight, Tensor? bias, Tensor? packed, bool relu, bool save) "
      "-> (Tensor y, Tensor passes)");
  m.def("conv3x3_relu_backward(Tensor grad, Tensor passes) -> Tensor");
}

namespace sfrs {
namespace {

Parallel threads_of_torch() {
  return {(int)torch::stable::get_num_threads(),
          [](int64_t tasks, void (*task)(void*, int64_t), void* context) {
            // The first exception of a task goes to the caller as it is: torch's C interface between here and
            // there makes of any exception that an API call failed.
            std::exception_ptr failure;
            std::mutex mutex;
            torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
              try {
                for (int64_t i = begin; i < end; ++i) task(context, i);
              } catch (...) {
                std::lock_guard<std::mutex> lock(mutex);
                if (!failure) failure = std::current_exception();
              }
            });
            if (failure) std::rethrow_exception(failure);
          }};
}

struct Cpu {
  static constexpr bool kSavesLogits = true;
  explicit Cpu(const glue::Tensor&) {}
  void aggregate_forward(const AggregationForward& f) {
    cpu::kernels().aggregate_forward(f, threads_of_torch());
  }
  void aggregate_backward(const AggregationBackward& f) {
    cpu::kernels().aggregate_backward(f, threads_of_torch());
  }
  void similarity_forward(const RegionSimilarityForward& f) {
    cpu::kernels().similarity_forward(f, threads_of_torch());
  }
  void similarity_backward(const RegionSimilarityBackward& f) {
    cpu::kernels().similarity_backward(f, threads_of_torch());
  }
  void pack_convolution(const ConvolutionWeight& f) {
    cpu::kernels().pack_convolution(f, threads_of_torch());
  }
  int64_t packed_panel() { return cpu::kernels().panel; }
  void convolve(const Convolution& f) { cpu::kernels().convolve(f, threads_of_torch()); }
  void mask_gradient(const ConvolutionRelu& f) { cpu::kernels().mask_gradient(f, threads_of_torch()); }
};

}  // namespace
}  // namespace sfrs

STABLE_TORCH_LIBRARY_IMPL(sfrs_ext, CPU, m) {
  m.impl("aggregate", TORCH_BOX(&sfrs::glue::aggregate<sfrs::Cpu>));
  m.impl("aggregate_backward", TORCH_BOX(&sfrs::glue::aggregate_backward<sfrs::Cpu>));
  m.impl("region_similarity", TORCH_BOX(&sfrs::glue::region_similarity<sfrs::Cpu>));
  m.impl("region_similarity_backward", TORCH_BOX(&sfrs::glue::region_similarity_backward<sfrs::Cpu>));
  m.impl("conv3x3_weight", TORCH_BOX(&sfrs::glue::conv3x3_weight<sfrs::Cpu>));
  m.impl("conv3x3", TORCH_BOX(&sfrs::glue::conv3x3<sfrs::Cpu>));
  m.impl("conv3x3_relu_backward", TORCH_BOX(&sfrs::glue::conv3x3_relu_backward<sfrs::Cpu>));
}
