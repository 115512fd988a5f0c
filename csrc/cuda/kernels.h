// The launchers, one per operator and direction. They return when the work is on the stream.
#pragma once

#include "../aggregation.h"
#include "../region_similarity.h"

namespace sfrs::cuda {

struct Machine;  // csrc/cuda/machine.h

void aggregate_forward(const AggregationForward&, const Machine&);
void aggregate_backward(const AggregationBackward&, const Machine&);
void similarity_forward(const RegionSimilarityForward&, const Machine&);
void similarity_backward(const RegionSimilarityBackward&, const Machine&);

}  // namespace sfrs::cuda
