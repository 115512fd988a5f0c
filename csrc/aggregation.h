// Contract of NetVLAD aggregation, forward and backward, whole image (parts = 1) or quarters (parts = 4).
//
//   xh = x / max(|x|, eps)            (normalize_input; otherwise xh = x)
//   l  = W xh,  a = softmax(l + b)    over K + G clusters, the first K are kept
//   V[k] = sum_p m[p] a_k[p] (xh[p] - c_k)
//
// Quarters are the rectangles that H / 2 and W / 2 (rounded down) cut out: top left, top right, bottom
// left, bottom right. A quarter without positions has V = 0.
#pragma once

#include "tensors.h"

namespace sfrs {

constexpr double kEps = 1e-12;

// What both directions read. All arrays are contiguous and, x excepted, in the accumulation type.
struct Aggregation {
  FeatureMap x;
  int64_t clusters;          // K
  int64_t ghosts;            // G
  int64_t parts;             // R: 1 or 4
  const void* weight;        // [K + G, D]; null if the logits are given
  const void* logits_given;  // [B, P, K + G] or null; l is this and not W xh, and gets a gradient of its own
  const void* centroids;     // [K, D] or null: zero
  const void* bias;          // [K + G] or null: zero
  const void* mask;          // [B, P] or null: one
  bool normalize_input;
  bool intra_norm, l2_norm;  // only with R = 1
  bool tf32;                 // f32 products may be rounded to TF32 where there are tensor cores

  int64_t logits() const { return clusters + ghosts; }
};

struct AggregationForward : Aggregation {
  void* vlad;  // [B, R, K, D], storage type of x
  // Saved for the backward, null if there will be none:
  void* saved_logits;    // l, [B, P, K + G], accumulation type; not written if given, nor by CUDA
  void* saved_inv_norm;  // 1 / max(|x|, eps), [B, P], accumulation type
  void* saved_scale;     // 1 / max(|V_k|, eps) for every k, then 1 / max(|descriptor|, eps): [B, K + 1]
};

struct AggregationBackward : Aggregation {
  const void* grad;  // of vlad, [B, R, K, D], storage type of x
  const void* vlad;  // the forward's result; read only if intra_norm or l2_norm, else may be null
  const void* saved_logits;
  const void* saved_inv_norm;
  const void* saved_scale;
  // Results, each null if not wanted. dx lies like x; the others are contiguous, accumulation type.
  FeatureMap dx;
  void* dweight;     // [K + G, D]
  void* dcentroids;  // [K, D]
  void* dbias;       // [K + G]
  void* dmask;       // [B, P]
  void* dlogits;     // [B, P, K + G], only if given
};

}  // namespace sfrs
