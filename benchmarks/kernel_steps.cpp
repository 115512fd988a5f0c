// Where the CPU aggregation's time goes: its steps one by one, on one thread, image after image of a batch
// that does not fit L2. Compiled together with the kernels by kernel_steps.py. Usage: kernel_steps
// planes|tokens|quarters REPETITIONS; quarters are those of planes. Prints one line per step: seconds per
// image of the best repetition, operations of its products, name.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "kernels.cpp"

using namespace sfrs;
using namespace sfrs::cpu::SFRS_ISA;

namespace {

constexpr int64_t kBatch = 8, kDim = 512, kHeight = 30, kWidth = 40, kClusters = 64, kQuarters = 4;
constexpr int64_t kPositions = kHeight * kWidth;
constexpr double kProduct = 2.0 * kClusters * kDim * kPositions;  // operations per image

// Aligned as torch aligns tensors.
template <class T>
struct Aligned : std::allocator<T> {
  template <class U>
  struct rebind {
    using other = Aligned<U>;
  };
  T* allocate(size_t count) { return (T*)std::aligned_alloc(64, round_up(count * sizeof(T), 64)); }
  void deallocate(T* p, size_t) { std::free(p); }
};
using Values = std::vector<float, Aligned<float>>;

Values normal(int64_t count, float deviation) {
  static std::mt19937 random(0);
  std::normal_distribution<float> draw(0, deviation);
  Values values(count);
  for (float& value : values) value = draw(random);
  return values;
}

const Parallel kAlone{1, [](int64_t tasks, void (*task)(void*, int64_t), void* context) {
                        for (int64_t i = 0; i < tasks; ++i) task(context, i);
                      }};

class Steps {
 public:
  Steps(char layout, int repetitions) : repetitions_(repetitions) {
    bool planes = layout != 't';
    AggregationForward& f = forward_;
    f.x = {x_.data(), DType::f32, kBatch, kDim, kHeight, kWidth, kDim * kPositions, 0, 0, 0};
    f.x.stride_d = planes ? kPositions : 1;
    f.x.stride_w = planes ? 1 : kDim;
    f.x.stride_h = kWidth * f.x.stride_w;
    f.clusters = kClusters;
    f.parts = layout == 'q' ? kQuarters : 1;
    f.weight = weight_.data();
    f.centroids = centroids_.data();
    f.normalize_input = true;
    f.intra_norm = f.l2_norm = f.parts == 1;
    f.vlad = vlad_.data();
    f.saved_logits = logits_.data();
    f.saved_inv_norm = inv_norm_.data();
    f.saved_scale = scale_.data();
    aggregate_forward<float>(f, kAlone);

    AggregationBackward& b = backward_;
    static_cast<Aggregation&>(b) = f;
    b.grad = grad_.data();
    b.vlad = f.vlad;
    b.saved_logits = f.saved_logits;
    b.saved_inv_norm = f.saved_inv_norm;
    b.saved_scale = f.saved_scale;
    b.dx = f.x;
    b.dx.data = dx_.data();
    b.dweight = dweight_.data();
    b.dcentroids = dcentroids_.data();
  }

  void measure_forward() {
    AggregationForward f = forward_;
    f.saved_logits = f.saved_inv_norm = f.saved_scale = nullptr;
    Sizes<float> n(f);
    Geometry geometry(f.x, f.parts, n.tile);
    Scratch scratch(64 << 20);
    Assignment<float> assignment(f, n, scratch);
    ForwardTile<float> work(f, n, assignment, scratch);
    Accumulator<float> sum(n, scratch);
    float *packed = scratch.zeros<float>(n.packed()), *squares = scratch.zeros<float>(n.tile + kLanes<float>);
    float *products = scratch.zeros<float>(n.tile * n.logit_columns),
          *rows = scratch.take<float>(kClusters * kDim);
    double* norms = scratch.take<double>(kClusters);
    auto next = [&](const Tile& t) { return ahead_of(f.x, sizeof(float), geometry, t, 0, units(geometry)); };
    auto finish = [&](const Group& g) {
      Finish<float> of_group(f, n, g, rows, norms);
      of_group.clusters(sum, 0, kClusters);
      of_group.write(0, kClusters);
    };

    tiles("forward: copy the tile, sum squares", 0, geometry,
          [&](const Tile& t) { pack<float>(f.x, t.group, t.begin, t.count, packed, n.step, squares); });
    tiles("forward: product 1, logits", kProduct, geometry, [&](const Tile& t) {
      Ahead nothing;
      multiply_features(n, t.count, packed, assignment.weight, n.logits, products, nothing);
    });
    tiles("forward: softmax", 0, geometry, [&](const Tile& t) {
      for (int64_t p = 0; p < t.count; ++p) softmax_row(n, p, 1.0f, assignment.bias, products);
    });
    tiles("forward: product 2, sums", kProduct, geometry, [&](const Tile& t) {
      Ahead nothing;
      aggregate_features(n, t.count, packed, products, n.clusters, sum.sums, true, nothing);
    });
    groups("forward: centroids and norms", geometry, [&](const Group& g) { finish(g); });
    tiles("forward: all", 2 * kProduct, geometry, [&](const Tile& t) {
      work.run(t, sum, next(t));
      if (t.closes) finish(t.group);
    });
  }

  void measure_backward() {
    const AggregationBackward& b = backward_;
    Sizes<float> n(b);
    Geometry geometry(b.x, b.parts, n.tile);
    Scratch scratch(64 << 20);
    BackwardWeights<float> weights(b, n, scratch);
    ParameterSums<float> sums(n, scratch);
    sums.clear(n);
    BackwardTile<float> work(b, n, weights, sums, scratch);

    groups("backward: through the norms, centroids", geometry, [&](const Group& g) {
      work.begin_group(g);
      work.end_group();
    });
    Ahead nothing;
    tiles("backward: copy the tile, sum squares", 0, geometry, [&](const Tile& t) { work.copy(t); });
    tiles("backward: product with dV", kProduct, geometry,
          [&](const Tile& t) { work.multiply_gradient(t, nothing); });
    tiles("backward: softmax and its gradient", 0, geometry, [&](const Tile& t) { work.assign(t); });
    tiles("backward: product for dW", kProduct, geometry,
          [&](const Tile& t) { work.sum_weights(t, nothing); });
    tiles("backward: products for dx, writing it", 2 * kProduct, geometry,
          [&](const Tile& t) { work.write(t); });
    tiles("backward: all", 4 * kProduct, geometry, [&](const Tile& t) {
      if (t.opens) work.begin_group(t.group);
      work.run(t, ahead_of(b.x, sizeof(float), geometry, t, 0, units(geometry)));
      if (t.closes) work.end_group();
    });
  }

 private:
  template <class F>
  void best(const char* name, double operations, const F& of_image) {
    double least = 1e9;
    for (int r = 0; r < repetitions_; ++r) {
      auto begin = std::chrono::steady_clock::now();
      of_image(r % kBatch);
      std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      least = taken.count() < least ? taken.count() : least;
    }
    std::printf("%.9f %.0f %s\n", least, operations, name);
  }
  static int64_t units(const Geometry& geometry) { return geometry.units(kBatch); }
  // body(group) for the groups of an image.
  template <class F>
  void groups(const char* name, const Geometry& geometry, const F& body) {
    best(name, 0, [&](int64_t image) {
      for (int64_t r = 0; r < geometry.parts; ++r) {
        Group g = geometry.groups[r];
        g.image = image;
        body(g);
      }
    });
  }
  // body(tile) for the tiles of an image.
  template <class F>
  void tiles(const char* name, double operations, const Geometry& geometry, const F& body) {
    best(name, operations, [&](int64_t image) {
      for (int64_t unit = geometry.units(image); unit < geometry.units(image + 1);) {
        Tile t = geometry.at(unit, 0, units(geometry));
        body(t);
        unit = t.next;
      }
    });
  }

  int repetitions_;
  Values x_ = normal(kBatch * kDim * kPositions, 1), weight_ = normal(kClusters * kDim, 0.3f),
         centroids_ = normal(kClusters * kDim, 0.05f),
         grad_ = normal(kBatch * kQuarters * kClusters * kDim, 1);
  Values vlad_ = grad_, dx_ = x_, dweight_ = weight_, dcentroids_ = weight_;
  Values logits_ = normal(kBatch * kPositions * kClusters, 0), inv_norm_ = normal(kBatch * kPositions, 0),
         scale_ = normal(kBatch * (kClusters + 1), 0);
  AggregationForward forward_{};
  AggregationBackward backward_{};
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  Steps steps(arguments[1][0], std::atoi(arguments[2]));
  steps.measure_forward();
  steps.measure_backward();
}
