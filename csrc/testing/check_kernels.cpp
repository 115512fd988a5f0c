// Holds kernels against float64, without torch: every shape that is awkward for them, every layout, type and
// option, on devices of several sizes, in several orders of threads.
//
//   check_kernels [--filter SUBSTRING]... [--order NAME]... [--quick] [--list] [--errors]
//
// runs the problems whose titles contain all the substrings; --errors says how far off every result is.
#include <chrono>
#include <cstring>

#include "aggregation_check.h"
#include "similarity_check.h"

namespace sfrs::testing {
namespace {

struct Type {
  DType dtype;
  bool tf32;
};
constexpr Type kTypes[] = {
    {DType::f64, false}, {DType::f32, false}, {DType::f32, true}, {DType::bf16, false}, {DType::f16, false}};
constexpr Device kDevices[] = {{132, 232448}, {1, 101376}, {3, 166912}, {132, 101376}};

// Each type goes through `count` variations of one problem, every one a little different.
template <class Problem>
void with_every_type(std::vector<Problem>* all, Problem p) {
  for (const Type& type : kTypes) {
    p.dtype = type.dtype, p.tf32 = type.tf32;
    p.device = kDevices[all->size() % 4];
    // Float64 of so many clusters is refused where shared memory is small.
    if (p.dtype == DType::f64 && p.clusters == 256 && p.device.shared_memory < 166912) p.device = kDevices[2];
    all->push_back(p);
  }
}

const AggregationProblem kSmall{"small", 2, 24, 5, 6, 7, 1};

std::vector<AggregationProblem> aggregation_shapes() {
  return {{"paper", 1, 512, 7, 13, 64, 0},        {"odd", 3, 33, 9, 5, 5, 2},
          {"one_position", 2, 64, 1, 1, 3, 0},    {"one_cluster", 2, 16, 4, 6, 1, 0},
          {"one_dimension", 2, 1, 3, 4, 4, 0},    {"one_row", 2, 20, 1, 50, 8, 0},
          {"one_column", 2, 20, 7, 1, 8, 1},      {"seventy_clusters", 2, 100, 3, 3, 70, 3},
          {"many_tiles", 3, 40, 23, 23, 9, 0},    {"long_features", 1, 1030, 6, 5, 17, 0},
          {"tokens_768", 1, 768, 4, 5, 64, 0},    {"clusters_256", 1, 130, 5, 5, 256, 0},
          {"ghosts_16", 1, 512, 4, 7, 32, 16},    {"aligned", 2, 64, 8, 16, 32, 0},
          {"long_aligned", 1, 2048, 4, 8, 17, 0}, {"no_positions", 2, 16, 0, 3, 4, 0},
          {"no_image", 0, 16, 3, 3, 4, 1}};
}

// The paper's size in bfloat16, on a device that has room for two stages of 64 positions and several tiles
// for every block; and sums over many more positions than that in float32, where each step may lose digits.
void add_flagships(std::vector<AggregationProblem>* all) {
  AggregationProblem p{"flagship", 1, 512, 30, 40, 64, 0};
  p.dtype = DType::bf16, p.device = {3, 232448};
  p.bias = p.mask =
      false;  // like the paper's layer; the gradient of a bias would be what cancellation leaves
  const std::pair<Layout, int64_t> ways[] = {
      {Layout::planes, 1}, {Layout::planes, 4}, {Layout::tokens, 1}, {Layout::channels_last, 4}};
  for (const auto& [layout, parts] : ways) p.layout = layout, p.parts = parts, all->push_back(p);
  // Every type with the tiling that its kernels know by heart (Usual in csrc/cuda/aggregate_tiling.h).
  AggregationProblem usual{"usual", 1, 512, 5, 16, 64, 0};
  usual.device = {1, 232448};
  for (const Type& type : kTypes)
    for (const auto& [layout, parts] : ways) {
      usual.dtype = type.dtype, usual.tf32 = type.tf32, usual.layout = layout, usual.parts = parts;
      all->push_back(usual);
    }
  // Tiles enough that those that overlap come round to the first stage, in one chunk of dimensions and in
  // two.
  for (AggregationProblem tiles : {AggregationProblem{"overlapping", 2, 136, 9, 19, 40, 3},
                                   AggregationProblem{"overlapping_chunks", 1, 646, 6, 15, 33, 0}})
    for (const auto& [layout, parts] : ways)
      for (DType dtype : {DType::bf16, DType::f16}) {
        tiles.dtype = dtype, tiles.layout = layout, tiles.parts = parts;
        tiles.device = {1, 232448};
        all->push_back(tiles);
      }
  // Halves of rows that are copied four bytes at a time.
  AggregationProblem narrow{"narrow", 2, 40, 5, 20, 9, 0};
  narrow.parts = 4, narrow.intra = narrow.l2 = false;
  for (DType dtype : {DType::bf16, DType::f16}) narrow.dtype = dtype, all->push_back(narrow);
  AggregationProblem many{"many_positions", 1, 24, 1, 3000, 8, 0};
  many.dtype = DType::f32, many.layout = Layout::tokens, many.device = {1, 232448}, many.mask = false;
  all->push_back(many);
}

std::vector<AggregationProblem> aggregation_problems(bool quick) {
  std::vector<AggregationProblem> all;
  for (AggregationProblem p : aggregation_shapes()) {
    // Normalised, one dimension is a sign, and a descriptor of one position knows nothing of its assignment:
    // the gradients would be zero but for rounding.
    const bool degenerate = p.dim == 1 || p.height * p.width == 1;
    p.normalize = p.dim != 1, p.intra = p.l2 = !degenerate;
    for (int64_t parts : {1, 4}) {
      p.parts = parts;
      p.layout = kLayouts[all.size() / 5 % 6];
      with_every_type(&all, p);
    }
  }
  add_flagships(&all);
  if (quick) return all;
  const AggregationProblem shapes[] = {kSmall, {"odd", 3, 33, 9, 5, 5, 2}, {"aligned", 2, 64, 8, 16, 32, 0}};
  for (AggregationProblem p : shapes)
    for (Layout layout : kLayouts)
      for (int64_t parts : {1, 4}) {
        p.layout = layout, p.parts = parts;
        p.odd = false, with_every_type(&all, p);
        if (p.dim != 64) p.odd = true, with_every_type(&all, p);
      }
  for (int bits = 0; bits < 64; ++bits) {
    AggregationProblem p = kSmall;
    p.normalize = bits & 1, p.intra = bits & 2, p.l2 = bits & 4;
    p.centroids = bits & 8, p.bias = bits & 16, p.mask = bits & 32;
    p.layout = kLayouts[bits % 6];
    const Type type = kTypes[bits % 5];
    p.dtype = type.dtype, p.tf32 = type.tf32, p.device = kDevices[bits / 5 % 4];
    all.push_back(p);
  }
  for (bool given : {false, true})
    for (int64_t parts : {1, 4})
      for (int which = -1; which < 6; ++which) {  // -1: none but a forward without saved tensors
        AggregationProblem p = kSmall;
        p.given = given, p.parts = parts;
        if (which < 0)
          p.save = false;
        else
          p.wanted = 1u << which;
        const Type type = kTypes[(which + 5) % 5];
        p.dtype = type.dtype, p.tf32 = type.tf32, p.layout = kLayouts[(which + 6) % 6];
        all.push_back(p);
      }
  for (AggregationProblem p : {kSmall, aggregation_shapes()[7], aggregation_shapes()[12]})
    for (int64_t parts : {1, 4}) p.given = true, p.parts = parts, with_every_type(&all, p);
  AggregationProblem p = kSmall;
  for (Layout layout : {Layout::planes, Layout::channels_last})
    for (int64_t parts : {1, 4}) {
      p.layout = layout, p.parts = parts;
      p.small_vectors = true, p.huge_logits = false, with_every_type(&all, p);
      p.small_vectors = false, p.huge_logits = true, with_every_type(&all, p);
    }
  return all;
}

std::vector<SimilarityProblem> similarity_problems(bool quick) {
  const SimilarityProblem shapes[] = {{"pair", 1, 1, 4, 16, false},
                                      {"odd", 3, 5, 7, 33, false},
                                      {"one_cluster", 2, 3, 1, 20, false},
                                      {"one_dimension", 2, 2, 6, 1, false},
                                      {"tuple", 1, 11, 64, 512, false},
                                      {"long_features", 1, 2, 3, 1030, false},
                                      {"many_clusters", 1, 2, 256, 8, false},
                                      {"more_queries_than_a_tile", 37, 3, 5, 24, false},
                                      {"more_gallery_than_a_tile", 3, 41, 5, 24, false},
                                      {"more_than_one_tile", 70, 20, 3, 40, false},
                                      {"no_gallery", 3, 0, 4, 8, false},
                                      {"no_query", 0, 3, 4, 8, false}};
  std::vector<SimilarityProblem> all;
  for (SimilarityProblem p : shapes)
    for (bool all_pairs : {false, true}) {
      if (!all_pairs && p.queries * p.gallery > 200) continue;
      p.all_pairs = all_pairs;
      // A sign again: its gradient is zero.
      if (p.dim > 1 || !quick) with_every_type(&all, p);
      if (quick) continue;
      if (p.queries * p.gallery * p.clusters * p.dim > 5000) continue;
      p.odd = true, with_every_type(&all, p), p.odd = false;
      p.special = Special::empty_clusters, with_every_type(&all, p);
      for (Special special : {Special::cancelling, Special::cancelled, Special::large, Special::small}) {
        p.special = special;
        if (p.dim > 1) with_every_type(&all, p);
      }
      p.special = Special::none;
      p.save = false, with_every_type(&all, p), p.save = true;
      p.want_query = false, with_every_type(&all, p), p.want_query = true;
      p.want_quarters = false, with_every_type(&all, p), p.want_quarters = true;
    }
  return all;
}

struct Options {
  std::vector<std::string> filters, orders;
  bool quick = false, list = false;
};

struct Count {
  int run = 0, failed = 0;
};

template <class Problem>
void check_all(const std::vector<Problem>& problems, const Options& options, const Backend& backend,
               Count* count) {
  for (const Problem& p : problems) {
    const std::string title = p.title();
    bool chosen = true;
    for (const std::string& filter : options.filters)
      chosen = chosen && title.find(filter) != std::string::npos;
    if (!chosen) continue;
    if (options.list) {
      std::printf("%s\n", title.c_str());
      continue;
    }
    if (Report::show_errors) std::printf("%s\n", title.c_str());
    const std::string faults = check(p, backend);
    ++count->run;
    if (faults.empty()) continue;
    ++count->failed;
    std::printf("FAIL %s\n%s", title.c_str(), faults.c_str());
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace sfrs::testing

int main(int argc, char** argv) {
  using namespace sfrs::testing;
  Options options;
  for (int i = 1; i < argc; ++i) {
    const auto value = [&] { return i + 1 < argc ? argv[++i] : ""; };
    if (!std::strcmp(argv[i], "--filter"))
      options.filters.push_back(value());
    else if (!std::strcmp(argv[i], "--order"))
      options.orders.push_back(value());
    else if (!std::strcmp(argv[i], "--quick"))
      options.quick = true;
    else if (!std::strcmp(argv[i], "--list"))
      options.list = true;
    else if (!std::strcmp(argv[i], "--errors"))
      Report::show_errors = true;
    else
      return std::fprintf(stderr, "check_kernels: what is %s?\n", argv[i]), 2;
  }
  Backend kernels = backend();
  if (!options.orders.empty()) kernels.orders = options.orders;
  const auto begin = std::chrono::steady_clock::now();
  Count count;
  check_all(aggregation_problems(options.quick), options, kernels, &count);
  check_all(similarity_problems(options.quick), options, kernels, &count);
  if (options.list) return 0;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("%d problems, %d failed, %.1f s\n", count.run, count.failed, seconds);
  return count.failed || !count.run;
}
