#include "similarity_check.h"

#include <random>

#include "orders.h"

namespace sfrs::testing {
namespace {

using Values = std::vector<double>;

struct Inputs {
  Array query, quarters, grad;
};

Inputs make_inputs(const SimilarityProblem& p) {
  std::mt19937_64 random(p.dim * 1000 + p.gallery);
  std::normal_distribution<double> normal;
  const int64_t row = p.clusters * p.dim, images = p.all_pairs ? p.gallery : p.queries * p.gallery;
  Inputs in;
  in.query = Array(p.dtype, p.queries * row, p.odd);
  in.quarters = Array(p.dtype, images * kQuarters * row, p.odd);
  in.grad = Array(accumulation_type(p.dtype), p.queries * p.gallery * kRegions, p.odd);
  for (int64_t i = 0; i < in.query.count(); ++i) in.query.set(i, normal(random) / std::sqrt((double)row));
  for (int64_t i = 0; i < in.quarters.count(); ++i) {
    const int64_t cluster = i / p.dim % p.clusters, quarter = i / row % kQuarters;
    double v = normal(random);
    if (p.special == Special::empty_clusters && (cluster % 3 == 0 || (cluster % 3 == 1 && quarter < 2)))
      v = 0;
    if (p.special == Special::cancelling && quarter % 2) v = 0.05 * v - in.quarters.get(i - row);
    // Two quarters cancel in a half and all of them in the whole, up to rounding.
    if (p.special == Special::cancelled && cluster % 2 == 0 && quarter == 1) v = -in.quarters.get(i - row);
    if (p.special == Special::cancelled && cluster % 2 && quarter == 3)
      v = -in.quarters.get(i - row) - in.quarters.get(i - 2 * row) - in.quarters.get(i - 3 * row);
    // Neither their squares nor those of 1 / n_r fit float; float16 holds no such values.
    if (p.special == Special::large && p.dtype != DType::f16) v *= cluster % 2 ? 1e19 : 1e24;
    if (p.special == Special::small && p.dtype != DType::f16) v *= quarter == 1 ? 1e-16 : 1e-21;
    in.quarters.set(i, v);
  }
  for (int64_t i = 0; i < in.grad.count(); ++i) in.grad.set(i, normal(random));
  return in;
}

// v / max(|v|, eps), and 1 / max(|v|, eps).
double normalise(const double* v, int64_t count, double* unit) {
  double square = 0;
  for (int64_t i = 0; i < count; ++i) square += v[i] * v[i];
  const double inv = 1 / std::max(std::sqrt(square), kEps);
  for (int64_t i = 0; i < count; ++i) unit[i] = v[i] * inv;
  return inv;
}
// The gradient g of unit becomes that of v; inv = 0 where v has cancelled and unit is zero.
void through_norm(const double* unit, double inv, double* g, int64_t count) {
  double along = 0;
  for (int64_t i = 0; i < count; ++i) along += unit[i] * g[i];
  if (inv >= 1 / kEps) along = 0;
  for (int64_t i = 0; i < count; ++i) g[i] = inv * (g[i] - unit[i] * along);
}

// The definition: S is the dot product of u with the normalised descriptor of every region, built in full.
struct Exact {
  Values similarity, dots, dquery, dquarters;

  Exact(const SimilarityProblem& p, const Inputs& in) : p(p), row(p.clusters * p.dim) {
    const int64_t pairs = p.queries * p.gallery;
    similarity.resize(pairs * kRegions), dots.resize(pairs * p.clusters * kDots);
    dquery.resize(in.query.count()), dquarters.resize(in.quarters.count());
    u.resize(in.query.count()), v.resize(in.quarters.count());
    for (size_t i = 0; i < u.size(); ++i) u[i] = in.query.get(i);
    for (size_t i = 0; i < v.size(); ++i) v[i] = in.quarters.get(i);
    for (int64_t pair = 0; pair < pairs; ++pair)
      for (int r = 0; r < kRegions; ++r) add(pair, r, in.grad.get(pair * kRegions + r));
  }

 private:
  const SimilarityProblem& p;
  int64_t row;
  Values u, v;

  void add(int64_t pair, int r, double grad) {
    const int64_t query = pair / p.gallery * row, K = p.clusters, D = p.dim;
    const int64_t image = (p.all_pairs ? pair % p.gallery : pair) * kQuarters * row;
    Values sum(row), unit(row), descriptor(row), inv(K);
    for (int q = 0; q < kQuarters; ++q)
      for (int64_t i = 0; i < row && kRegionQuarters[r] >> q & 1; ++i) sum[i] += v[image + q * row + i];
    for (int64_t k = 0; k < K; ++k) {
      inv[k] = normalise(&sum[k * D], D, &unit[k * D]);
      double square = 0, terms = 0;
      for (int64_t i = k * D; i < (k + 1) * D; ++i) {
        square += sum[i] * sum[i];
        for (int q = 0; q < kQuarters; ++q)
          if (kRegionQuarters[r] >> q & 1) terms += v[image + q * row + i] * v[image + q * row + i];
      }
      if (square >= cancelled_below(p.dtype) * terms) continue;
      inv[k] = 0;
      std::fill(&unit[k * D], &unit[k * D] + D, 0.0);
    }
    const double inv_all = normalise(unit.data(), row, descriptor.data());
    Values g(row);
    for (int64_t i = 0; i < row; ++i) {
      similarity[pair * kRegions + r] += u[query + i] * descriptor[i];
      dquery[query + i] += grad * descriptor[i];
      g[i] = grad * u[query + i];
      double* of_cluster = &dots[(pair * K + i / D) * kDots];
      of_cluster[kQuarters + r] += sum[i] * sum[i];
      if (r < kQuarters) of_cluster[r] += u[query + i] * v[image + r * row + i];
    }
    through_norm(descriptor.data(), inv_all, g.data(), row);
    for (int64_t k = 0; k < K; ++k) through_norm(&unit[k * D], inv[k], &g[k * D], D);
    for (int q = 0; q < kQuarters; ++q)
      for (int64_t i = 0; i < row && kRegionQuarters[r] >> q & 1; ++i) dquarters[image + q * row + i] += g[i];
  }
};

struct Results {
  Array similarity, dots, dquery, dquarters;

  std::string bits() const {
    std::string all;
    for (const Array* a : {&similarity, &dots, &dquery, &dquarters})
      if (*a) all += a->bits();
    return all;
  }
};

void fill(RegionSimilarity* f, const SimilarityProblem& p, const Inputs& in) {
  f->dtype = p.dtype;
  f->queries = p.queries, f->gallery = p.gallery, f->clusters = p.clusters, f->dim = p.dim;
  f->all_pairs = p.all_pairs;
  f->query = in.query.data(), f->quarters = in.quarters.data();
  f->tf32 = p.tf32;
}

Results run(const SimilarityProblem& p, const Inputs& in, const Backend& backend, Report& report) {
  const int64_t pairs = p.queries * p.gallery;
  Results r;
  Scratch scratch;
  RegionSimilarityForward f{};
  fill(&f, p, in);
  r.similarity = Array(accumulation_type(p.dtype), pairs * kRegions);
  if (p.save && !p.all_pairs) r.dots = Array(DType::f64, pairs * p.clusters * kDots);
  f.similarity = r.similarity.data(), f.saved_dots = r.dots.data();
  backend.similarity_forward(f, p.device, scratch);
  if (p.save) {
    RegionSimilarityBackward g{};
    fill(&g, p, in);
    g.grad = in.grad.data(), g.similarity = f.similarity, g.saved_dots = f.saved_dots;
    if (p.want_query) r.dquery = Array(p.dtype, in.query.count());
    if (p.want_quarters) r.dquarters = Array(p.dtype, in.quarters.count());
    g.dquery = r.dquery.data(), g.dquarters = r.dquarters.data();
    backend.similarity_backward(g, p.device, scratch);
  }
  if (!scratch.guards_intact()) report.fault("scratch: written outside of its memory");
  const std::string misuse = backend.misuse(p.device);
  if (!misuse.empty()) report.fault(misuse);
  return r;
}

void compare(const SimilarityProblem& p, const Exact& exact, const Results& r, Report& report) {
  Tolerance t = tolerance_of(p.dtype, p.tf32);
  if (p.special == Special::cancelling) t.storage *= 10, t.sum *= 10;
  const double of_dots = p.tf32 ? t.storage : t.sum;
  report.compare("similarity", r.similarity, exact.similarity, kRegions, of_dots);
  report.compare("dots", r.dots, exact.dots, kDots, t.sum);
  report.compare("dquery", r.dquery, exact.dquery, p.dim, t.storage);
  // Normalised, one dimension is a sign, and its gradient nothing but rounding.
  report.compare("dquarters", r.dquarters, exact.dquarters, p.dim, t.storage, p.dim == 1 ? of_dots : 0);
}

}  // namespace

std::string SimilarityProblem::title() const {
  std::string s = std::string("similarity/") + name_of(dtype, tf32) + "/" + name;
  s += all_pairs ? "/all_pairs" : "/lists";
  if (odd) s += "+odd";
  if (special == Special::empty_clusters) s += "+empty";
  if (special == Special::cancelling) s += "+cancelling";
  if (special == Special::cancelled) s += "+cancelled";
  if (special == Special::large) s += "+large";
  if (special == Special::small) s += "+small";
  if (!save) s += "+inference";
  if (!want_query) s += "-query";
  if (!want_quarters) s += "-quarters";
  return s + "/" + std::to_string(device.multiprocessors) + "x" + std::to_string(device.shared_memory);
}

std::string check(const SimilarityProblem& p, const Backend& backend) {
  Report report;
  const Inputs in = make_inputs(p);
  const std::string before = in.query.bits() + in.quarters.bits();
  in_every_order(
      backend, report, [&] { return run(p, in, backend, report); },
      [&](const Results& results) { compare(p, Exact(p, in), results, report); });
  if (in.query.bits() + in.quarters.bits() != before) report.fault("inputs were written");
  return report.text();
}

}  // namespace sfrs::testing
