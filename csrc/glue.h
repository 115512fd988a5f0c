// Torch tensors -> plain-pointer problems -> torch tensors, once for all backends. A Backend has four
// static functions with the names of cpu::Kernels. Users meet the checks of sfrs_ext/checks.py first; the
// ones here keep direct callers of torch.ops from reading foreign memory.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>

#include "aggregation.h"
#include "region_similarity.h"

namespace sfrs::glue {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = std::initializer_list<int64_t>;

inline DType storage_type(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, "sfrs_ext: ", name, " is neither float32, float64, bfloat16 nor float16");
  }
  return DType::f32;
}
inline ScalarType accumulation_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor allocate(const Tensor& like, Shape shape, ScalarType dtype,
                       std::optional<MemoryFormat> format = std::nullopt) {
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), dtype,
                              std::nullopt, like.device(), std::nullopt, format);
}

// A contiguous argument of that shape and type; `hold` keeps a copy alive if one had to be made.
inline const void* argument(const Tensor& t, Shape shape, ScalarType dtype, const char* name, Tensor* hold) {
  bool same = t.dim() == (int64_t)shape.size();
  for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == shape.begin()[i];
  STD_TORCH_CHECK(same, "sfrs_ext: ", name, " has another shape than the other arguments ask for");
  STD_TORCH_CHECK(t.scalar_type() == dtype, "sfrs_ext: ", name, " has another dtype than the kernel reads");
  *hold = t.is_contiguous() ? t : torch::stable::contiguous(t);
  return hold->const_data_ptr();
}
inline const void* argument(const OptionalTensor& t, Shape shape, ScalarType dtype, const char* name,
                            Tensor* hold) {
  return t ? argument(*t, shape, dtype, name, hold) : nullptr;
}

// x is read in place if its rows or its features are contiguous.
inline FeatureMap feature_map(const Tensor& x, Tensor* hold) {
  STD_TORCH_CHECK(x.dim() == 4, "sfrs_ext: x is not [B, D, H, W]");
  *hold = x.stride(3) == 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x);
  const Tensor& t = *hold;
  return {const_cast<void*>(t.const_data_ptr()),
          storage_type(t, "x"),
          t.size(0),
          t.size(1),
          t.size(2),
          t.size(3),
          t.stride(0),
          t.stride(1),
          t.stride(2),
          t.stride(3)};
}

// What both directions of the aggregation are given, with the tensors that own it.
struct AggregationArguments {
  Tensor x, weight, centroids, bias, mask;

  void fill(Aggregation* f, const Tensor& x_, const Tensor& weight_, const OptionalTensor& centroids_,
            const OptionalTensor& bias_, const OptionalTensor& mask_, int64_t regions, int64_t ghosts,
            bool normalize_input, bool intra_norm, bool l2_norm) {
    STD_TORCH_CHECK(regions == 1 || regions == 4, "sfrs_ext: regions is neither 1 nor 4");
    STD_TORCH_CHECK(weight_.dim() == 2 && ghosts >= 0 && weight_.size(0) > ghosts,
                    "sfrs_ext: weight is not [K + G, D]");
    ScalarType acc = accumulation_type(x_);
    f->x = feature_map(x_, &x);
    f->clusters = weight_.size(0) - ghosts;
    f->ghosts = ghosts;
    f->regions = regions;
    f->weight = argument(weight_, {f->logits(), f->x.dim}, acc, "weight", &weight);
    f->centroids = argument(centroids_, {f->clusters, f->x.dim}, acc, "centroids", &centroids);
    f->bias = argument(bias_, {f->logits()}, acc, "bias", &bias);
    f->mask = argument(mask_, {f->x.batch, f->x.positions()}, acc, "mask", &mask);
    f->normalize_input = normalize_input;
    f->intra_norm = intra_norm;
    f->l2_norm = l2_norm;
  }
};

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> aggregate(Tensor x, Tensor weight, OptionalTensor centroids,
                                                     OptionalTensor bias, OptionalTensor mask,
                                                     int64_t regions, int64_t ghosts, bool normalize_input,
                                                     bool intra_norm, bool l2_norm, bool save) {
  AggregationForward f{};
  AggregationArguments arguments;
  arguments.fill(&f, x, weight, centroids, bias, mask, regions, ghosts, normalize_input, intra_norm, l2_norm);
  int64_t batch = f.x.batch;
  ScalarType acc = accumulation_type(x);
  Tensor vlad = allocate(x, {batch, regions, f.clusters, f.x.dim}, x.scalar_type());
  Tensor logits = allocate(x, {save ? batch : 0, f.x.positions(), f.logits()}, acc);
  Tensor inv_norm = allocate(x, {save ? batch : 0, f.x.positions()}, acc);
  Tensor scale = allocate(x, {save && regions == 1 ? batch : 0, f.clusters + 1}, acc);
  f.vlad = vlad.mutable_data_ptr();
  if (save) {
    f.saved_logits = logits.mutable_data_ptr();
    f.saved_inv_norm = inv_norm.mutable_data_ptr();
    if (regions == 1) f.saved_scale = scale.mutable_data_ptr();
  }
  Backend::aggregate_forward(f);
  return {vlad, logits, inv_norm, scale};
}

// Bits of `needs` in aggregate_backward, in the order of its results.
enum Need { kNeedX = 1, kNeedWeight = 2, kNeedCentroids = 4, kNeedBias = 8, kNeedMask = 16 };

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> aggregate_backward(
    Tensor grad, Tensor x, Tensor weight, OptionalTensor centroids, OptionalTensor bias, OptionalTensor mask,
    Tensor vlad, Tensor logits, Tensor inv_norm, Tensor scale, int64_t regions, int64_t ghosts,
    bool normalize_input, bool intra_norm, bool l2_norm, int64_t needs) {
  AggregationBackward f{};
  AggregationArguments arguments;
  arguments.fill(&f, x, weight, centroids, bias, mask, regions, ghosts, normalize_input, intra_norm, l2_norm);
  int64_t batch = f.x.batch, positions = f.x.positions();
  ScalarType acc = accumulation_type(x), storage = x.scalar_type();
  Tensor held[5];
  f.grad = argument(grad, {batch, regions, f.clusters, f.x.dim}, storage, "grad", &held[0]);
  f.vlad = argument(vlad, {batch, regions, f.clusters, f.x.dim}, storage, "vlad", &held[1]);
  f.saved_logits = argument(logits, {batch, positions, f.logits()}, acc, "logits", &held[2]);
  f.saved_inv_norm = argument(inv_norm, {batch, positions}, acc, "inv_norm", &held[3]);
  f.saved_scale = argument(scale, {regions == 1 ? batch : 0, f.clusters + 1}, acc, "scale", &held[4]);

  bool planes = f.x.stride_w == 1, wants_x = needs & kNeedX;
  Tensor dx = wants_x ? allocate(x, {batch, f.x.dim, f.x.height, f.x.width}, storage,
                                 planes ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast)
                      : allocate(x, {0}, storage);
  auto wanted = [&](Need need, Shape shape, void** pointer) {
    if (!(needs & need)) return allocate(x, {0}, acc);
    Tensor t = allocate(x, shape, acc);
    *pointer = t.mutable_data_ptr();
    return t;
  };
  Tensor dweight = wanted(kNeedWeight, {f.logits(), f.x.dim}, &f.dweight);
  Tensor dcentroids = wanted(kNeedCentroids, {f.clusters, f.x.dim}, &f.dcentroids);
  Tensor dbias = wanted(kNeedBias, {f.logits()}, &f.dbias);
  Tensor dmask = wanted(kNeedMask, {batch, positions}, &f.dmask);
  if (wants_x) {
    f.dx = f.x;
    f.dx.data = dx.mutable_data_ptr();
    // Dense in the layout of x; torch may name the strides of dimensions of size one otherwise.
    f.dx.stride_b = f.x.dim * positions;
    f.dx.stride_d = planes ? positions : 1;
    f.dx.stride_w = planes ? 1 : f.x.dim;
    f.dx.stride_h = f.x.width * f.dx.stride_w;
  }
  Backend::aggregate_backward(f);
  return {dx, dweight, dcentroids, dbias, dmask};
}

struct SimilarityArguments {
  Tensor query, quarters;

  void fill(RegionSimilarity* f, const Tensor& query_, const Tensor& quarters_) {
    STD_TORCH_CHECK(query_.dim() == 3, "sfrs_ext: query is not [T, K, D]");
    int64_t rank = quarters_.dim();
    STD_TORCH_CHECK(rank == 4 || rank == 5, "sfrs_ext: quarters is neither [N, 4, K, D] nor [T, G, 4, K, D]");
    f->dtype = storage_type(query_, "query");
    f->all_pairs = rank == 4;
    f->queries = query_.size(0);
    f->gallery = quarters_.size(rank - 4);
    f->clusters = query_.size(1);
    f->dim = query_.size(2);
    ScalarType storage = query_.scalar_type();
    f->query = argument(query_, {f->queries, f->clusters, f->dim}, storage, "query", &query);
    f->quarters = f->all_pairs ? argument(quarters_, {f->gallery, kQuarters, f->clusters, f->dim}, storage,
                                          "quarters", &quarters)
                               : argument(quarters_, {f->queries, f->gallery, kQuarters, f->clusters, f->dim},
                                          storage, "quarters", &quarters);
  }
};

template <class Backend>
std::tuple<Tensor, Tensor> region_similarity(Tensor query, Tensor quarters, bool save) {
  RegionSimilarityForward f{};
  SimilarityArguments arguments;
  arguments.fill(&f, query, quarters);
  ScalarType acc = accumulation_type(query);
  bool keep = save && !f.all_pairs;
  Tensor similarity = allocate(query, {f.queries, f.gallery, kRegions}, acc);
  Tensor dots = allocate(query, {keep ? f.queries : 0, f.gallery, f.clusters, kDots}, ScalarType::Double);
  f.similarity = similarity.mutable_data_ptr();
  if (keep) f.saved_dots = dots.mutable_data_ptr();
  Backend::similarity_forward(f);
  return {similarity, dots};
}

template <class Backend>
std::tuple<Tensor, Tensor> region_similarity_backward(Tensor grad, Tensor query, Tensor quarters,
                                                      Tensor similarity, Tensor dots, bool need_query,
                                                      bool need_quarters) {
  RegionSimilarityBackward f{};
  SimilarityArguments arguments;
  arguments.fill(&f, query, quarters);
  ScalarType acc = accumulation_type(query);
  Tensor held[3];
  f.grad = argument(grad, {f.queries, f.gallery, kRegions}, acc, "grad", &held[0]);
  f.similarity = argument(similarity, {f.queries, f.gallery, kRegions}, acc, "similarity", &held[1]);
  f.saved_dots = argument(dots, {f.all_pairs ? 0 : f.queries, f.gallery, f.clusters, kDots},
                          ScalarType::Double, "dots", &held[2]);
  auto wanted = [&](bool need, const Tensor& like, void** pointer) {
    if (!need) return allocate(like, {0}, like.scalar_type());
    Tensor t = torch::stable::empty(like.sizes(), like.scalar_type(), std::nullopt, like.device());
    *pointer = t.mutable_data_ptr();
    return t;
  };
  Tensor dquery = wanted(need_query, query, &f.dquery);
  Tensor dquarters = wanted(need_quarters, quarters, &f.dquarters);
  Backend::similarity_backward(f);
  return {dquery, dquarters};
}

}  // namespace sfrs::glue
