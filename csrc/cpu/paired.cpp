// Compiled once per unit that multiplies pairs of bfloat16 (SFRS_PAIRS, see pairs.inl): aggregation of
// bfloat16 maps by it. All else is done by the kernels of another instruction set, SFRS_BASE.

#include "aggregate.inl"

namespace sfrs::cpu::SFRS_BASE {
extern const Kernels table;
}

namespace sfrs::cpu::SFRS_ISA {

extern const Kernels table;
const Kernels table = {
    SFRS_NAME(SFRS_ISA),
    kPanel<float>,
    [](const AggregationForward& f, const Parallel& p) {
      f.x.dtype == DType::bf16 ? aggregate_forward<bf16>(f, p) : SFRS_BASE::table.aggregate_forward(f, p);
    },
    [](const AggregationBackward& f, const Parallel& p) {
      f.x.dtype == DType::bf16 ? aggregate_backward<bf16>(f, p) : SFRS_BASE::table.aggregate_backward(f, p);
    },
    [](const RegionSimilarityForward& f, const Parallel& p) { SFRS_BASE::table.similarity_forward(f, p); },
    [](const RegionSimilarityBackward& f, const Parallel& p) { SFRS_BASE::table.similarity_backward(f, p); },
    [](const ConvolutionWeight& f, const Parallel& p) { SFRS_BASE::table.pack_convolution(f, p); },
    [](const Convolution& f, const Parallel& p) { SFRS_BASE::table.convolve(f, p); },
    [](const ConvolutionRelu& f, const Parallel& p) { SFRS_BASE::table.mask_gradient(f, p); },
};

}  // namespace sfrs::cpu::SFRS_ISA
