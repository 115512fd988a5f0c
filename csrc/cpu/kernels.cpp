// Compiled once per instruction set, with SFRS_ISA as its name and SFRS_VECTOR_BYTES as its width. All
// templates live in a namespace of that name, so that the linker never swaps code between the sets.

#include "aggregate.inl"
#include "convolution.inl"
#include "region_similarity_all_pairs_backward.inl"

namespace sfrs::cpu::SFRS_ISA {
namespace {

// Calls f with a null pointer of the storage type.
template <class F>
void with_storage(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32: return f((float*)nullptr);
    case DType::f64: return f((double*)nullptr);
    case DType::bf16: return f((bf16*)nullptr);
    case DType::f16: return f((f16*)nullptr);
  }
}
template <class P>
using Pointee = std::remove_pointer_t<P>;

// Below this many queries, turning the gallery into panels costs more than the products that use them.
constexpr int64_t kFewQueries = 3;

}  // namespace

extern const Kernels table;
const Kernels table = {
    SFRS_NAME(SFRS_ISA),
    kPanel<float>,
    [](const AggregationForward& f, const Parallel& p) {
      with_storage(f.x.dtype, [&](auto* s) { aggregate_forward<Pointee<decltype(s)>>(f, p); });
    },
    [](const AggregationBackward& f, const Parallel& p) {
      with_storage(f.x.dtype, [&](auto* s) { aggregate_backward<Pointee<decltype(s)>>(f, p); });
    },
    [](const RegionSimilarityForward& f, const Parallel& p) {
      with_storage(f.dtype, [&](auto* s) {
        using S = Pointee<decltype(s)>;
        if (f.all_pairs && f.queries >= kFewQueries)
          similarity_all_pairs_forward<S>(f, p);
        else
          similarity_lists_forward<S>(f, p);
      });
    },
    [](const RegionSimilarityBackward& f, const Parallel& p) {
      with_storage(f.dtype, [&](auto* s) {
        using S = Pointee<decltype(s)>;
        if (f.all_pairs)
          similarity_all_pairs_backward<S>(f, p);
        else
          similarity_lists_backward<S>(f, p);
      });
    },
    &pack_convolution,
    &convolve,
    &mask_gradient,
};

}  // namespace sfrs::cpu::SFRS_ISA
