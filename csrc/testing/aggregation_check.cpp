#include "aggregation_check.h"

#include <random>

#include "orders.h"

namespace sfrs::testing {
namespace {

using Values = std::vector<double>;

const char* name_of(Layout layout) {
  switch (layout) {
    case Layout::planes: return "planes";
    case Layout::channels_last: return "channels_last";
    case Layout::crop: return "crop";
    case Layout::channels_last_crop: return "channels_last_crop";
    case Layout::batch_slice: return "batch_slice";
    case Layout::tokens: return "tokens";
  }
  return "";
}

// x in memory, and where in it the map lies.
struct MapMemory {
  Array array;
  FeatureMap map;
  int64_t offset;

  int64_t index(int64_t b, int64_t d, int64_t p) const {
    return offset + b * map.stride_b + d * map.stride_d + p / map.width * map.stride_h +
           p % map.width * map.stride_w;
  }
};

MapMemory map_memory(const AggregationProblem& p) {
  int64_t b = p.batch, d = p.dim, h = p.height, w = p.width, skip_d = 0, skip_h = 0, skip_w = 0;
  bool last = false;
  switch (p.layout) {
    case Layout::planes: break;
    case Layout::channels_last: last = true; break;
    case Layout::crop: d += 3, h += 2, w += 3, skip_d = 1, skip_h = 1, skip_w = 2; break;
    case Layout::channels_last_crop: last = true, h += 2, w += 3, skip_h = 1, skip_w = 2; break;
    case Layout::batch_slice: b *= 2; break;
    case Layout::tokens: last = true, w = h * w + 1, h = 1, skip_w = 1; break;  // behind a class token
  }
  MapMemory m;
  m.array = Array(p.dtype, b * d * h * w, p.odd);
  m.map = {nullptr, p.dtype, p.batch, p.dim, p.height, p.width, d * h * w, h * w, w, 1};
  if (p.layout == Layout::batch_slice) m.map.stride_b *= 2;
  if (p.layout == Layout::tokens) m.map.height = 1, m.map.width = p.positions();
  if (last) m.map.stride_d = 1, m.map.stride_h = w * d, m.map.stride_w = d;
  m.offset = skip_d * m.map.stride_d + skip_h * m.map.stride_h + skip_w * m.map.stride_w;
  m.map.data = static_cast<char*>(m.array.data()) + m.offset * bytes_of(p.dtype);
  return m;
}

// Dense, planes or features contiguous as in x.
MapMemory gradient_memory(const AggregationProblem& p, const FeatureMap& x) {
  MapMemory m;
  m.array = Array(p.dtype, p.batch * p.dim * p.positions());
  m.map = x;
  m.map.data = m.array.data();
  m.offset = 0;
  const bool planes = x.stride_w == 1;
  m.map.stride_b = p.dim * p.positions();
  m.map.stride_d = planes ? p.positions() : 1;
  m.map.stride_w = planes ? 1 : p.dim;
  m.map.stride_h = x.width * m.map.stride_w;
  return m;
}

struct Inputs {
  MapMemory x;
  Array weight, logits, centroids, bias, mask, grad;
};

Inputs make_inputs(const AggregationProblem& p) {
  std::mt19937_64 random(p.dim * 1000 + p.positions());
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  const DType wide = accumulation_type(p.dtype);
  // Values that the storage type has, in the accumulation type.
  const auto draw = [&](bool present, int64_t count, auto make) {
    if (!present) return Array();
    Array result(wide, count, p.odd), rounded(p.dtype, 1);
    for (int64_t i = 0; i < count; ++i) rounded.set(0, make()), result.set(i, rounded.get(0));
    return result;
  };
  Inputs in;
  in.x = map_memory(p);
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t i = 0; i < p.positions(); ++i) {
      double size = 1;
      if (p.small_vectors && i % 5 == 1) size = i % 2 ? 0 : 1e-6 / std::sqrt((double)p.dim);
      for (int64_t d = 0; d < p.dim; ++d) in.x.array.set(in.x.index(b, d, i), size * normal(random));
    }
  const double slope = (p.huge_logits ? 1e4 : 1) * (p.normalize ? 1 : 1 / std::sqrt((double)p.dim));
  in.weight = draw(!p.given, p.logits() * p.dim, [&] { return slope * normal(random); });
  in.logits = draw(p.given, p.batch * p.positions() * p.logits(), [&] { return normal(random); });
  in.centroids = draw(p.centroids, p.clusters * p.dim, [&] { return 0.1 * normal(random); });
  in.bias = draw(p.bias, p.logits(), [&] { return normal(random); });
  in.mask = draw(p.mask, p.batch * p.positions(), [&] { return uniform(random); });
  in.grad = Array(p.dtype, p.batch * p.parts * p.clusters * p.dim, p.odd);
  for (int64_t i = 0; i < in.grad.count(); ++i) in.grad.set(i, normal(random));
  return in;
}

Values values_of(const Array& a) {
  Values result(a.count());
  for (int64_t i = 0; i < a.count(); ++i) result[i] = a.get(i);
  return result;
}
double at(const Values& v, int64_t i, double otherwise) { return v.empty() ? otherwise : v[i]; }

// The contract of csrc/aggregation.h in double, one loop per sign of summation.
struct Exact {
  Values vlad, inv_norm, scale, dx, dweight, dlogits, dcentroids, dbias, dmask;  // x and dx as [B, P, D]
  double logit_gradient_size = 0;  // of the terms that cancel in the gradients of the logits

  Exact(const AggregationProblem& p, const Inputs& in)
      : p(p), D(p.dim), P(p.positions()), K(p.clusters), L(p.logits()) {
    weight = values_of(in.weight), logits = values_of(in.logits), centroids = values_of(in.centroids);
    bias = values_of(in.bias), mask = values_of(in.mask), grad = values_of(in.grad);
    const auto zeros = [](Values* v, int64_t count) { v->assign(count, 0.0); };
    zeros(&vlad, p.batch * p.parts * K * D), zeros(&inv_norm, p.batch * P), zeros(&scale, p.batch * (K + 1));
    zeros(&dx, p.batch * P * D), zeros(&dweight, L * D), zeros(&dlogits, p.batch * P * L);
    zeros(&dcentroids, K * D), zeros(&dbias, L), zeros(&dmask, p.batch * P);
    xh.resize(p.batch * P * D), assignment.resize(p.batch * P * L);
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t i = 0; i < P; ++i) assign(b, i, in);
      sums.assign(vlad.begin() + b * p.parts * K * D, vlad.begin() + (b + 1) * p.parts * K * D);
      finish(b);
      for (int64_t i = 0; i < P; ++i) differentiate(b, i);
    }
  }

 private:
  const AggregationProblem& p;
  int64_t D, P, K, L;
  Values weight, logits, centroids, bias, mask, grad;
  Values xh, assignment;
  Values sums, dsums;  // V before it is normalised, and its gradient, of one image

  int64_t part(int64_t i) const {
    if (p.parts == 1) return 0;
    // Tokens are a map of one row.
    const int64_t height = p.layout == Layout::tokens ? 1 : p.height, width = P / height;
    return (i / width >= height / 2) * 2 + (i % width >= width / 2);
  }
  double m(int64_t b, int64_t i) const { return at(mask, b * P + i, 1); }

  void assign(int64_t b, int64_t i, const Inputs& in) {
    double square = 0;
    double* x = &xh[(b * P + i) * D];
    for (int64_t d = 0; d < D; ++d) x[d] = in.x.array.get(in.x.index(b, d, i)), square += x[d] * x[d];
    const double inv = 1 / std::max(std::sqrt(square), kEps);
    inv_norm[b * P + i] = p.normalize ? inv : NAN;
    if (p.normalize)
      for (int64_t d = 0; d < D; ++d) x[d] *= inv;
    double* a = &assignment[(b * P + i) * L];
    double largest = -INFINITY, sum = 0;
    for (int64_t j = 0; j < L; ++j) {
      a[j] = p.given ? logits[(b * P + i) * L + j] : 0;
      for (int64_t d = 0; d < D && !p.given; ++d) a[j] += weight[j * D + d] * x[d];
      a[j] += at(bias, j, 0);
      largest = std::max(largest, a[j]);
    }
    for (int64_t j = 0; j < L; ++j) sum += a[j] = std::exp(a[j] - largest);
    for (int64_t j = 0; j < L; ++j) a[j] /= sum;
    double* v = &vlad[(b * p.parts + part(i)) * K * D];
    for (int64_t k = 0; k < K; ++k)
      for (int64_t d = 0; d < D; ++d) v[k * D + d] += m(b, i) * a[k] * (x[d] - at(centroids, k * D + d, 0));
  }

  // Normalises the result of one image, and takes the gradient back through it.
  void finish(int64_t b) {
    const int64_t count = p.parts * K * D;
    double* v = &vlad[b * count];
    dsums.assign(grad.begin() + b * count, grad.begin() + (b + 1) * count);
    double* s = &scale[b * (K + 1)];
    double descriptor = 0;
    for (int64_t k = 0; k < K && p.parts == 1; ++k) {
      double square = 0;
      for (int64_t d = 0; d < D; ++d) square += v[k * D + d] * v[k * D + d];
      s[k] = 1 / std::max(std::sqrt(square), kEps);
      for (int64_t d = 0; d < D && p.intra; ++d) v[k * D + d] *= s[k];
      for (int64_t d = 0; d < D; ++d) descriptor += v[k * D + d] * v[k * D + d];
    }
    s[K] = 1 / std::max(std::sqrt(descriptor), kEps);
    if (p.l2 && p.parts == 1) {
      for (int64_t i = 0; i < count; ++i) v[i] *= s[K];
      through_norm(v, dsums.data(), count, s[K]);
    }
    if (p.intra && p.parts == 1)
      for (int64_t k = 0; k < K; ++k) {
        Values unit(D);
        for (int64_t d = 0; d < D; ++d) unit[d] = sums[k * D + d] * s[k];
        through_norm(unit.data(), &dsums[k * D], D, s[k]);
      }
    // What no norm uses may be anything.
    if (!p.intra) std::fill_n(s, K, NAN);
    if (!p.l2) s[K] = NAN;
  }
  // g of v / max(|v|, eps) becomes g of v; `inv` is 1 / max(|v|, eps).
  static void through_norm(const double* unit, double* g, int64_t count, double inv) {
    double along = 0;
    for (int64_t i = 0; i < count; ++i) along += unit[i] * g[i];
    if (inv >= 1 / kEps) along = 0;
    for (int64_t i = 0; i < count; ++i) g[i] = inv * (g[i] - unit[i] * along);
  }

  void differentiate(int64_t b, int64_t i) {
    const double *x = &xh[(b * P + i) * D], *a = &assignment[(b * P + i) * L];
    const double* g = &dsums[part(i) * K * D];
    double *out = &dx[(b * P + i) * D], *dl = &dlogits[(b * P + i) * L], mean = 0;
    Values da(L);
    for (int64_t k = 0; k < K; ++k) {
      double product = 0;
      for (int64_t d = 0; d < D; ++d) product += g[k * D + d] * (x[d] - at(centroids, k * D + d, 0));
      dmask[b * P + i] += a[k] * product;
      da[k] = m(b, i) * product;
      mean += a[k] * da[k];
      for (int64_t d = 0; d < D; ++d) {
        dcentroids[k * D + d] -= m(b, i) * a[k] * g[k * D + d];
        out[d] += m(b, i) * a[k] * g[k * D + d];
      }
    }
    double size = 0;
    for (int64_t j = 0; j < L; ++j) {
      dl[j] = a[j] * (da[j] - mean);
      size = std::max(size, a[j] * (std::abs(da[j]) + std::abs(mean)));
      dbias[j] += dl[j];
      for (int64_t d = 0; d < D && !p.given; ++d) {
        dweight[j * D + d] += dl[j] * x[d];
        out[d] += dl[j] * weight[j * D + d];
      }
    }
    logit_gradient_size += size;
    if (p.normalize) through_norm(x, out, D, inv_norm[b * P + i]);
  }
};

// What one run wrote. The wish decides what of it exists.
struct Results {
  Array vlad, saved_logits, inv_norm, scale, dweight, dlogits, dcentroids, dbias, dmask;
  MapMemory dx;

  std::string bits() const {
    std::string all;
    for (const Array* a :
         {&vlad, &inv_norm, &scale, &dx.array, &dweight, &dlogits, &dcentroids, &dbias, &dmask})
      if (*a) all += a->bits();
    return all;
  }
};

void fill(Aggregation* f, const AggregationProblem& p, const Inputs& in) {
  f->x = in.x.map;
  f->clusters = p.clusters, f->ghosts = p.ghosts, f->parts = p.parts;
  f->weight = in.weight.data(), f->logits_given = in.logits.data();
  f->centroids = in.centroids.data(), f->bias = in.bias.data(), f->mask = in.mask.data();
  f->normalize_input = p.normalize;
  f->intra_norm = p.intra && p.parts == 1, f->l2_norm = p.l2 && p.parts == 1;
  f->tf32 = p.tf32;
}

Results run(const AggregationProblem& p, const Inputs& in, const Backend& backend, Report& report) {
  const DType wide = accumulation_type(p.dtype);
  Results r;
  Scratch scratch;
  AggregationForward f{};
  fill(&f, p, in);
  r.vlad = Array(p.dtype, p.batch * p.parts * p.clusters * p.dim);
  f.vlad = r.vlad.data();
  if (p.save) {
    r.inv_norm = Array(wide, p.batch * p.positions());
    if (p.parts == 1) r.scale = Array(wide, p.batch * (p.clusters + 1));
    if (backend.saves_logits && !p.given) r.saved_logits = Array(wide, p.batch * p.positions() * p.logits());
    f.saved_inv_norm = r.inv_norm.data(), f.saved_scale = r.scale.data(),
    f.saved_logits = r.saved_logits.data();
  }
  backend.aggregate_forward(f, p.device, scratch);
  if (p.save) {
    AggregationBackward g{};
    fill(&g, p, in);
    g.grad = in.grad.data(), g.vlad = f.vlad;
    g.saved_logits = f.saved_logits, g.saved_inv_norm = f.saved_inv_norm, g.saved_scale = f.saved_scale;
    const auto want = [&](Wanted what, bool possible, Array* a, DType dtype, int64_t count) -> void* {
      if (p.wanted & what && possible) *a = Array(dtype, count);
      return a->data();
    };
    if (p.wanted & kDx) r.dx = gradient_memory(p, in.x.map), g.dx = r.dx.map;
    g.dweight = want(kDweight, !p.given, &r.dweight, wide, p.logits() * p.dim);
    g.dlogits = want(kDlogits, p.given, &r.dlogits, wide, p.batch * p.positions() * p.logits());
    g.dcentroids = want(kDcentroids, p.centroids, &r.dcentroids, wide, p.clusters * p.dim);
    g.dbias = want(kDbias, p.bias, &r.dbias, wide, p.logits());
    g.dmask = want(kDmask, p.mask, &r.dmask, wide, p.batch * p.positions());
    backend.aggregate_backward(g, p.device, scratch);
  }
  if (!scratch.guards_intact()) report.fault("scratch: written outside of its memory");
  const std::string misuse = backend.misuse(p.device);
  if (!misuse.empty()) report.fault(misuse);
  return r;
}

void compare(const AggregationProblem& p, const Exact& exact, const Results& r, Report& report) {
  const Tolerance t = tolerance_of(p.dtype, p.tf32);
  const int64_t D = p.dim;
  report.compare("vlad", r.vlad, exact.vlad, p.parts == 4 ? p.clusters * D : D, t.storage);
  report.compare("inv_norm", r.inv_norm, exact.inv_norm, 1, t.sum);
  report.compare("scale", r.scale, exact.scale, 1, t.storage);
  // Where nothing but rounding is left of a gradient of logits: a few units of the terms that cancelled.
  const double noise = exact.logit_gradient_size * (p.dtype == DType::f64 ? 1e-14 : 2e-6);
  // Through the norms the terms of a bias cancel nearly as well, but for twice the rounding of each.
  const double of_each =
      2 * exact.logit_gradient_size / std::sqrt(std::max(1.0, (double)(p.batch * p.positions()))) * t.storage;
  report.compare("dweight", r.dweight, exact.dweight, p.logits() * D, t.storage, noise);
  report.compare("dlogits", r.dlogits, exact.dlogits, p.batch * p.positions() * p.logits(), t.storage, noise);
  report.compare("dcentroids", r.dcentroids, exact.dcentroids, p.clusters * D, t.storage);
  report.compare("dbias", r.dbias, exact.dbias, p.logits(), t.storage, noise + of_each);
  report.compare("dmask", r.dmask, exact.dmask, p.batch * p.positions(), t.storage);
  if (!r.dx.array) return;
  // In the order of the reference.
  Array dx(p.dtype, r.dx.array.count());
  for (int64_t b = 0, i = 0; b < p.batch; ++b)
    for (int64_t q = 0; q < p.positions(); ++q)
      for (int64_t d = 0; d < D; ++d) dx.set(i++, r.dx.array.get(r.dx.index(b, d, q)));
  if (!r.dx.array.guards_intact()) report.fault("dx: written outside of its memory");
  report.compare("dx", dx, exact.dx, D, t.storage);
}

}  // namespace

std::string AggregationProblem::title() const {
  std::string s =
      std::string("aggregate/") + testing::name_of(dtype, tf32) + "/" + name + "/" + name_of(layout);
  s += parts == 4 ? "/quarters" : "/whole";
  const auto note = [&](bool condition, const char* what) {
    if (condition) s += what;
  };
  note(normalize, "+normalize"), note(intra && parts == 1, "+intra"), note(l2 && parts == 1, "+l2");
  note(centroids, "+centroids"), note(bias, "+bias"), note(mask, "+mask"), note(given, "+logits");
  note(odd, "+odd"), note(small_vectors, "+small"), note(huge_logits, "+huge"), note(!save, "+inference");
  if (wanted != kEverything) s += "/wanted=" + std::to_string(wanted);
  return s + "/" + std::to_string(device.multiprocessors) + "x" + std::to_string(device.shared_memory);
}

std::string check(const AggregationProblem& p, const Backend& backend) {
  Report report;
  const Inputs in = make_inputs(p);
  const std::string before = in.x.array.bits();
  in_every_order(
      backend, report, [&] { return run(p, in, backend, report); },
      [&](const Results& results) { compare(p, Exact(p, in), results, report); });
  if (in.x.array.bits() != before) report.fault("x was written");
  return report.text();
}

}  // namespace sfrs::testing
