// What an operator launches, without launching it: kernels, grids and the bytes of their parameters, for
// tools that read machine code. See tests/cuda/clocks.py.
//
//   list_launches KEY=VALUE...     dtype=bf16 layout=planes|features parts=1 B=1 D=512 H=30 W=40 K=64 G=0
//                                  given=0 inference=0 multiprocessors=132 shared_memory=232448
//   list_launches pairs=T KEY=...  region similarity of all pairs of T queries and B images; lists=1: of
//   lists
//
// Prints one line per launch: address of the kernel less that of main, grid, threads of a block, its shared
// memory, parameters in hexadecimal. Pointers are made up.
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>

#include "../cuda/kernels.h"
#include "../cuda/launch.h"

int main(int argc, char** argv);

namespace sfrs {
namespace {

std::map<std::string, std::string> given;

int64_t number(const char* name, int64_t otherwise) {
  const auto found = given.find(name);
  return found == given.end() ? otherwise : std::stoll(found->second);
}
bool is(const char* name, const char* value) {
  const auto found = given.find(name);
  return found != given.end() && found->second == value;
}
DType dtype() {
  return is("dtype", "f64")    ? DType::f64
         : is("dtype", "bf16") ? DType::bf16
         : is("dtype", "f16")  ? DType::f16
                               : DType::f32;
}

// 256-byte aligned addresses that nothing else has.
void* memory(bool wanted = true) {
  static uintptr_t next = 1ull << 40;
  return wanted ? reinterpret_cast<void*>(next += 1ull << 36) : nullptr;
}

void print(const cuda::emulator::Launch& l) {
  const auto main_address = reinterpret_cast<intptr_t>(&main), kernel = reinterpret_cast<intptr_t>(l.kernel);
  std::printf("%lld %u %u %u %d %lld ", (long long)(kernel - main_address), l.grid.x, l.grid.y, l.grid.z,
              l.threads, (long long)l.shared);
  for (size_t i = 0; i < l.bytes; ++i)
    std::printf("%02x", static_cast<const unsigned char*>(l.parameters)[i]);
  std::printf("\n");
}

FeatureMap map() {
  const int64_t B = number("B", 1), D = number("D", 512), H = number("H", 30), W = number("W", 40);
  FeatureMap x{memory(), dtype(), B, D, H, W, D * H * W, H * W, W, 1};
  if (is("layout", "features")) x.stride_d = 1, x.stride_w = D, x.stride_h = W * D;
  return x;
}

void fill(Aggregation* f, const FeatureMap& x) {
  f->x = x;
  f->clusters = number("K", 64), f->ghosts = number("G", 0), f->parts = number("parts", 1);
  const bool logits = number("given", 0);
  f->weight = memory(!logits), f->logits_given = memory(logits), f->centroids = memory();
  f->normalize_input = !logits, f->intra_norm = f->l2_norm = f->parts == 1;
  f->tf32 = is("dtype", "tf32");
}

void aggregate(const cuda::Machine& machine) {
  const FeatureMap x = map();
  const bool training = !number("inference", 0);
  AggregationForward f{};
  fill(&f, x);
  f.vlad = memory(), f.saved_inv_norm = memory(training), f.saved_scale = memory(training && f.parts == 1);
  cuda::aggregate_forward(f, machine);
  if (!training) return;
  AggregationBackward g{};
  fill(&g, x);
  g.grad = memory(), g.vlad = memory(), g.saved_inv_norm = memory(), g.saved_scale = memory();
  g.dx = x, g.dx.data = memory();
  g.dweight = memory(g.weight), g.dlogits = memory(g.logits_given), g.dcentroids = memory();
  cuda::aggregate_backward(g, machine);
}

void compare(const cuda::Machine& machine) {
  RegionSimilarityForward f{};
  f.dtype = dtype(), f.tf32 = is("dtype", "tf32"), f.all_pairs = !number("lists", 0);
  f.queries = number("pairs", 1), f.gallery = number("B", 1), f.clusters = number("K", 64),
  f.dim = number("D", 512);
  f.query = memory(), f.quarters = memory(), f.similarity = memory(), f.saved_dots = memory(!f.all_pairs);
  cuda::similarity_forward(f, machine);
  if (number("inference", 0)) return;
  RegionSimilarityBackward g{};
  static_cast<RegionSimilarity&>(g) = f;
  g.grad = memory(), g.similarity = memory(), g.saved_dots = memory(!f.all_pairs), g.dquery = memory(),
  g.dquarters = memory();
  cuda::similarity_backward(g, machine);
}

}  // namespace
}  // namespace sfrs

int main(int argc, char** argv) {
  using namespace sfrs;
  for (int i = 1; i < argc; ++i) {
    const char* equals = std::strchr(argv[i], '=');
    if (!equals) return std::fprintf(stderr, "list_launches: %s is no KEY=VALUE\n", argv[i]), 2;
    given[std::string(argv[i], equals - argv[i])] = equals + 1;
  }
  cuda::emulator::watch = print;
  const cuda::Machine machine{(int)number("multiprocessors", 132), number("shared_memory", 232448), nullptr,
                              [](void*, int64_t) { return memory(); }, nullptr};
  try {
    number("pairs", 0) ? compare(machine) : aggregate(machine);
  } catch (const std::exception& refusal) {
    return std::fprintf(stderr, "%s\n", refusal.what()), 1;
  }
  return 0;
}
