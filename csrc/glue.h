// Torch tensors -> plain-pointer problems -> torch tensors, once for all backends. Users meet the checks of
// sfrs_ext/_checks.py first; the ones here keep direct callers of torch.ops from reading foreign memory.
//
// A Backend is made anew for every call of an operator and lives until the kernels are launched:
//
//   struct Backend {
//     static constexpr bool kSavesLogits;  // whether the backward reads logits that the forward has written
//     explicit Backend(const Tensor& x);   // makes the device of x current for as long as it lives
//     void aggregate_forward(const AggregationForward&);
//     void aggregate_backward(const AggregationBackward&);
//     void similarity_forward(const RegionSimilarityForward&);
//     void similarity_backward(const RegionSimilarityBackward&);
//   };
//
// Everything is allocated by torch, and only after the Backend was made; glue::Scratch is for what a launcher
// needs besides.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>
#include <vector>

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

// Whether the kernels can count: they multiply sizes, and sizes of tensors without elements may be anything.
inline bool countable(Shape shape) {
  int64_t count = 1;
  for (int64_t size : shape)
    if (__builtin_mul_overflow(count, size ? size : 1, &count) || count > int64_t{1} << 44) return false;
  return true;
}

inline Tensor allocate(const Tensor& like, Shape shape, ScalarType dtype,
                       std::optional<MemoryFormat> format = std::nullopt) {
  STD_TORCH_CHECK(countable(shape),
                  "sfrs_ext: the sizes of the arguments ask for a result of 2^44 elements or more");
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), dtype,
                              std::nullopt, like.device(), std::nullopt, format);
}

// Scratch of one call in the memory of a tensor's device, from torch's allocator. It may be given back while
// kernels still use it: the allocator hands it out again on the same stream only, where they come first.
class Scratch {
 public:
  explicit Scratch(const Tensor& on) : on_(on) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* allocate(int64_t bytes) {
    held_.push_back(sfrs::glue::allocate(on_, {bytes}, ScalarType::Byte));
    return held_.back().mutable_data_ptr();
  }
  // The same as a plain function, for those who cannot name a Scratch.
  static void* allocate_from(void* scratch, int64_t bytes) {
    return static_cast<Scratch*>(scratch)->allocate(bytes);
  }

 private:
  Tensor on_;
  std::vector<Tensor> held_;
};

// Reads arguments that must fit `like`, and keeps alive the contiguous copies it had to make.
class Arguments {
 public:
  explicit Arguments(const Tensor& like) : like_(like) {}

  // Never null, so that what is given and empty is not taken for absent.
  const void* read(const Tensor& t, Shape shape, ScalarType dtype, const char* name) {
    bool same = t.dim() == (int64_t)shape.size();
    for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == shape.begin()[i];
    STD_TORCH_CHECK(same, "sfrs_ext: ", name, " has another shape than the other arguments ask for");
    STD_TORCH_CHECK(countable(shape), "sfrs_ext: ", name, " has sizes that make 2^44 elements or more");
    STD_TORCH_CHECK(t.scalar_type() == dtype, "sfrs_ext: ", name, " has another dtype than the kernel reads");
    STD_TORCH_CHECK(t.device() == like_.device(), "sfrs_ext: ", name, " is on another device");
    held_.push_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
    const void* data = held_.back().const_data_ptr();
    static const char nothing = 0;
    return data ? data : &nothing;
  }
  const void* read(const OptionalTensor& t, Shape shape, ScalarType dtype, const char* name) {
    return t ? read(*t, shape, dtype, name) : nullptr;
  }
  // x is read in place if its rows or its features are contiguous.
  FeatureMap feature_map(const Tensor& x) {
    STD_TORCH_CHECK(x.dim() == 4, "sfrs_ext: x is not [B, D, H, W]");
    STD_TORCH_CHECK(countable({x.size(0), x.size(1), x.size(2), x.size(3)}),
                    "sfrs_ext: x has sizes that make 2^44 elements or more");
    // The stride of a dimension of size one says nothing, and contiguous() leaves it as it is.
    const bool column = x.size(3) == 1 && x.stride(1) != 1;
    const bool in_place = column || x.stride(3) == 1 || x.stride(1) == 1;
    held_.push_back(in_place ? x : torch::stable::contiguous(x));
    const Tensor& t = held_.back();
    return {const_cast<void*>(t.const_data_ptr()),
            storage_type(t, "x"),
            t.size(0),
            t.size(1),
            t.size(2),
            t.size(3),
            t.stride(0),
            t.stride(1),
            t.stride(2),
            column ? 1 : t.stride(3)};
  }

 private:
  Tensor like_;
  std::vector<Tensor> held_;
};

// Results of the backward, empty where not wanted.
inline Tensor wanted(bool need, const Tensor& like, Shape shape, ScalarType dtype, void** pointer) {
  if (!need) return allocate(like, {0}, dtype);
  Tensor t = allocate(like, shape, dtype);
  *pointer = t.mutable_data_ptr();
  return t;
}

// What both directions of the aggregation are given, as the schemas have it.
struct AggregationTensors {
  Tensor x;
  OptionalTensor weight, logits, centroids, bias, mask;
  int64_t parts, ghosts;
  bool normalize_input, intra_norm, l2_norm, tf32;
};

inline void fill(Aggregation* f, const AggregationTensors& t, Arguments& arguments) {
  STD_TORCH_CHECK(t.parts == 1 || t.parts == 4, "sfrs_ext: parts is neither 1 nor 4");
  STD_TORCH_CHECK(t.weight.has_value() != t.logits.has_value(),
                  "sfrs_ext: not exactly one of weight and logits is given");
  const Tensor& assigning = t.weight ? *t.weight : *t.logits;
  int64_t rank = t.weight ? 2 : 3, columns = rank == 2 ? 0 : 2;
  STD_TORCH_CHECK(assigning.dim() == rank && t.ghosts >= 0 && assigning.size(columns) > t.ghosts,
                  "sfrs_ext: weight is not [K + G, D], or logits not [B, P, K + G]");
  ScalarType acc = accumulation_type(t.x);
  f->x = arguments.feature_map(t.x);
  f->clusters = assigning.size(columns) - t.ghosts;
  f->ghosts = t.ghosts;
  f->parts = t.parts;
  int64_t batch = f->x.batch, positions = f->x.positions();
  f->weight = arguments.read(t.weight, {f->logits(), f->x.dim}, acc, "weight");
  f->logits_given = arguments.read(t.logits, {batch, positions, f->logits()}, acc, "logits");
  f->centroids = arguments.read(t.centroids, {f->clusters, f->x.dim}, acc, "centroids");
  f->bias = arguments.read(t.bias, {f->logits()}, acc, "bias");
  f->mask = arguments.read(t.mask, {batch, positions}, acc, "mask");
  f->normalize_input = t.normalize_input;
  f->intra_norm = t.intra_norm;
  f->l2_norm = t.l2_norm;
  f->tf32 = t.tf32;
}

// A result that the backward reads, for callers who could not notice that somebody has written into it.
inline Tensor copy_if(bool keep, const Tensor& result) {
  return keep ? torch::stable::clone(result) : allocate(result, {0}, result.scalar_type());
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> aggregate(Tensor x, OptionalTensor weight,
                                                             OptionalTensor logits, OptionalTensor centroids,
                                                             OptionalTensor bias, OptionalTensor mask,
                                                             int64_t parts, int64_t ghosts,
                                                             bool normalize_input, bool intra_norm,
                                                             bool l2_norm, bool tf32, bool save, bool keep) {
  Backend backend(x);
  Arguments arguments(x);
  AggregationForward f{};
  fill(&f,
       {x, weight, logits, centroids, bias, mask, parts, ghosts, normalize_input, intra_norm, l2_norm, tf32},
       arguments);
  int64_t batch = f.x.batch, positions = f.x.positions();
  bool save_logits = save && Backend::kSavesLogits && !f.logits_given, save_scale = save && parts == 1;
  ScalarType acc = accumulation_type(x);
  Tensor vlad = allocate(x, {batch, parts, f.clusters, f.x.dim}, x.scalar_type());
  Tensor saved_logits = allocate(x, {save_logits ? batch : 0, positions, f.logits()}, acc);
  Tensor inv_norm = allocate(x, {save ? batch : 0, positions}, acc);
  Tensor scale = allocate(x, {save_scale ? batch : 0, f.clusters + 1}, acc);
  f.vlad = vlad.mutable_data_ptr();
  if (save_logits) f.saved_logits = saved_logits.mutable_data_ptr();
  if (save) f.saved_inv_norm = inv_norm.mutable_data_ptr();
  if (save_scale) f.saved_scale = scale.mutable_data_ptr();
  backend.aggregate_forward(f);
  return {vlad, saved_logits, inv_norm, scale, copy_if(keep, vlad)};
}

// Bits of `needs` in aggregate_backward, in the order of its results.
enum Need {
  kNeedX = 1,
  kNeedWeight = 2,
  kNeedLogits = 4,
  kNeedCentroids = 8,
  kNeedBias = 16,
  kNeedMask = 32
};

// dx lies like x: dense planes or dense features.
inline Tensor gradient_map(const Tensor& x, const FeatureMap& map, FeatureMap* dx) {
  bool planes = map.stride_w == 1;
  Tensor t = allocate(x, {map.batch, map.dim, map.height, map.width}, x.scalar_type(),
                      planes ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast);
  *dx = map;
  dx->data = t.mutable_data_ptr();
  // Written out: torch may name the strides of dimensions of size one otherwise.
  dx->stride_b = map.dim * map.positions();
  dx->stride_d = planes ? map.positions() : 1;
  dx->stride_w = planes ? 1 : map.dim;
  dx->stride_h = map.width * dx->stride_w;
  return t;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> aggregate_backward(
    Tensor grad, Tensor x, OptionalTensor weight, OptionalTensor logits, OptionalTensor centroids,
    OptionalTensor bias, OptionalTensor mask, OptionalTensor vlad, Tensor saved_logits, Tensor inv_norm,
    Tensor scale, int64_t parts, int64_t ghosts, bool normalize_input, bool intra_norm, bool l2_norm,
    bool tf32, int64_t needs) {
  Backend backend(x);
  Arguments arguments(x);
  AggregationBackward f{};
  fill(&f,
       {x, weight, logits, centroids, bias, mask, parts, ghosts, normalize_input, intra_norm, l2_norm, tf32},
       arguments);
  STD_TORCH_CHECK(!(needs & (f.logits_given ? kNeedWeight : kNeedLogits)),
                  "sfrs_ext: needs asks for the gradient of an argument that is not given");
  STD_TORCH_CHECK(vlad || !(intra_norm || l2_norm), "sfrs_ext: the gradient of a norm needs vlad");
  int64_t batch = f.x.batch, positions = f.x.positions();
  bool saved = Backend::kSavesLogits && !f.logits_given;
  ScalarType acc = accumulation_type(x), storage = x.scalar_type();
  f.grad = arguments.read(grad, {batch, parts, f.clusters, f.x.dim}, storage, "grad");
  f.vlad = arguments.read(vlad, {batch, parts, f.clusters, f.x.dim}, storage, "vlad");
  const void* read =
      arguments.read(saved_logits, {saved ? batch : 0, positions, f.logits()}, acc, "saved_logits");
  if (saved) f.saved_logits = read;
  f.saved_inv_norm = arguments.read(inv_norm, {batch, positions}, acc, "inv_norm");
  f.saved_scale = arguments.read(scale, {parts == 1 ? batch : 0, f.clusters + 1}, acc, "scale");

  Tensor dx = needs & kNeedX ? gradient_map(x, f.x, &f.dx) : allocate(x, {0}, storage);
  Tensor dweight = wanted(needs & kNeedWeight, x, {f.logits(), f.x.dim}, acc, &f.dweight);
  Tensor dlogits = wanted(needs & kNeedLogits, x, {batch, positions, f.logits()}, acc, &f.dlogits);
  Tensor dcentroids = wanted(needs & kNeedCentroids, x, {f.clusters, f.x.dim}, acc, &f.dcentroids);
  Tensor dbias = wanted(needs & kNeedBias, x, {f.logits()}, acc, &f.dbias);
  Tensor dmask = wanted(needs & kNeedMask, x, {batch, positions}, acc, &f.dmask);
  backend.aggregate_backward(f);
  return {dx, dweight, dlogits, dcentroids, dbias, dmask};
}

inline void fill(RegionSimilarity* f, const Tensor& query, const Tensor& quarters, bool tf32,
                 Arguments& arguments) {
  STD_TORCH_CHECK(query.dim() == 3, "sfrs_ext: query is not [T, K, D]");
  int64_t rank = quarters.dim();
  STD_TORCH_CHECK(rank == 4 || rank == 5, "sfrs_ext: quarters is neither [N, 4, K, D] nor [T, G, 4, K, D]");
  f->dtype = storage_type(query, "query");
  f->all_pairs = rank == 4;
  f->queries = query.size(0);
  f->gallery = quarters.size(rank - 4);
  f->clusters = query.size(1);
  f->dim = query.size(2);
  f->tf32 = tf32;
  ScalarType storage = query.scalar_type();
  f->query = arguments.read(query, {f->queries, f->clusters, f->dim}, storage, "query");
  f->quarters =
      f->all_pairs
          ? arguments.read(quarters, {f->gallery, kQuarters, f->clusters, f->dim}, storage, "quarters")
          : arguments.read(quarters, {f->queries, f->gallery, kQuarters, f->clusters, f->dim}, storage,
                           "quarters");
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> region_similarity(Tensor query, Tensor quarters, bool tf32, bool save,
                                                     bool keep) {
  Backend backend(query);
  Arguments arguments(query);
  RegionSimilarityForward f{};
  fill(&f, query, quarters, tf32, arguments);
  bool save_dots = save && !f.all_pairs;
  Tensor similarity = allocate(query, {f.queries, f.gallery, kRegions}, accumulation_type(query));
  Tensor dots =
      allocate(query, {save_dots ? f.queries : 0, f.gallery, f.clusters, kDots}, ScalarType::Double);
  f.similarity = similarity.mutable_data_ptr();
  if (save_dots) f.saved_dots = dots.mutable_data_ptr();
  backend.similarity_forward(f);
  return {similarity, dots, copy_if(keep, similarity)};
}

template <class Backend>
std::tuple<Tensor, Tensor> region_similarity_backward(Tensor grad, Tensor query, Tensor quarters,
                                                      Tensor similarity, Tensor dots, bool tf32,
                                                      bool need_query, bool need_quarters) {
  Backend backend(query);
  Arguments arguments(query);
  RegionSimilarityBackward f{};
  fill(&f, query, quarters, tf32, arguments);
  ScalarType acc = accumulation_type(query), storage = query.scalar_type();
  f.grad = arguments.read(grad, {f.queries, f.gallery, kRegions}, acc, "grad");
  f.similarity = arguments.read(similarity, {f.queries, f.gallery, kRegions}, acc, "similarity");
  f.saved_dots = arguments.read(dots, {f.all_pairs ? 0 : f.queries, f.gallery, f.clusters, kDots},
                                ScalarType::Double, "dots");
  Tensor dquery = wanted(need_query, query, {f.queries, f.clusters, f.dim}, storage, &f.dquery);
  Tensor dquarters =
      f.all_pairs
          ? wanted(need_quarters, query, {f.gallery, kQuarters, f.clusters, f.dim}, storage, &f.dquarters)
          : wanted(need_quarters, query, {f.queries, f.gallery, kQuarters, f.clusters, f.dim}, storage,
                   &f.dquarters);
  backend.similarity_backward(f);
  return {dquery, dquarters};
}

}  // namespace sfrs::glue
