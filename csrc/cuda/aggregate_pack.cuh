// Weights as the cores that warps load, for blocks whose shared memory cannot hold them.
#pragma once

#include "aggregate_logits.cuh"

namespace sfrs::cuda {

template <class T>
struct PackParameters {
  const T* from;
  int rows, dim, padded_rows, padded_dim;
  unsigned char* to;
};

template <class S, class T>
SFRS_KERNEL(256)
pack_weights(SFRS_CONSTANT PackParameters<T> p) {
  pack_cores<S>(p.from, p.rows, p.dim, p.padded_rows, p.padded_dim, p.to, (int)blockIdx.x, (int)gridDim.x);
}

template <class S, class T>
unsigned char* pack_weights_on(const Machine& machine, const Tiling& n, const void* weight) {
  int64_t bytes = (int64_t)n.logit_columns * n.padded_dim() * (int64_t)sizeof(S);
  PackParameters<T> p{(const T*)weight, n.logits,       n.dim,
                      n.logit_columns,  n.padded_dim(), machine.scratch<unsigned char>(bytes)};
  launch(machine, pack_weights<S, T>, dim3((unsigned)(n.logit_columns / 8)), kThreads, 0, p);
  return p.to;
}

}  // namespace sfrs::cuda
