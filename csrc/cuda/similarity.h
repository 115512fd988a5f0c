// Launchers of region similarity that similarity_forward and similarity_backward choose between.
#pragma once

#include "../region_similarity.h"
#include "machine.h"

namespace sfrs::cuda {

void similarity_lists_forward(const RegionSimilarityForward&, const Machine&);
void similarity_lists_backward(const RegionSimilarityBackward&, const Machine&);
void similarity_all_pairs_forward(const RegionSimilarityForward&, const Machine&);
void similarity_all_pairs_backward(const RegionSimilarityBackward&, const Machine&);

// Whether the rows of an array begin at multiples of 16 bytes.
inline bool aligned_rows(const void* p, int64_t row_bytes) { return ((uintptr_t)p | row_bytes) % 16 == 0; }
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace sfrs::cuda
