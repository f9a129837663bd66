// The sparse side: each anchor against the few rows of its own sample, which lie in at most K runs of slots.
#include <cmath>
#include <vector>

#include "ops.h"
#include "parallel.h"
#include "tensors.h"
#include "tile_kernels.h"

namespace uniclip::cpu {

namespace {

template <class T>
T softplus(T x) {
  return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
}
template <class T>
T sigmoid(T x) {
  return x > 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
}

template <class C>
class Positives {
 public:
  using T = Accumulator<C>;

  Positives(const Tensor& rows, const Tensor& tiles, const Tensor& runs, const Tensor& count, const Tensor& temperature,
            const Tensor& offset, const Tensor& weight)
      : rows(matrix<C>(rows)),
        temperature(matrix<T>(temperature)),
        offset(matrix<T>(offset)),
        weight(matrix<T>(weight)),
        domains(temperature.size(0)),
        count(vector<int32_t>(count)),
        runs_(vector<int32_t>(runs)),
        tiles_(matrix<int32_t>(tiles)) {}

  // f(p, its domain, s_ip) for the positives p of slot i.
  template <class F>
  void for_each(int64_t i, int32_t domain, const F& f) const {
    for (int32_t e = 0; e < domains; ++e) {
      const int32_t* run = runs_ + 2 * (i * domains + e);
      for (int64_t p = run[0]; p < run[1]; ++p) {
        if (p == i) continue;
        const T cosine = tile_kernels<C>().dot(rows[i], rows[p], rows.cols);
        f(p, e, (cosine - offset[domain][e]) / temperature[domain][e]);
      }
    }
  }
  int32_t domain(int64_t i) const { return tiles_[i / kBlock][0]; }

  Matrix<C> rows;
  Matrix<T> temperature, offset, weight;
  int64_t domains;
  const int32_t* count;

 private:
  const int32_t* runs_;
  Matrix<int32_t> tiles_;
};

}  // namespace

void positives_forward(const Tensor rows, const Tensor tiles, const Tensor runs, const Tensor count,
                       const Tensor temperature, const Tensor offset, const Tensor weight, const Tensor lse,
                       Tensor loss, Tensor coefficient) {
  dispatch_compute(rows, [&](auto compute) {
    using C = typename decltype(compute)::type;
    using T = Accumulator<C>;
    const Positives<C> positives(rows, tiles, runs, count, temperature, offset, weight);
    const T* nu = vector<T>(lse);
    T* loss_of = vector<T>(loss);
    T* coefficient_of = vector<T>(coefficient);
    parallel_rows(positives.rows.rows, kBlock, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T total = 0, slope = 0;
        const int32_t a = positives.domain(i);
        positives.for_each(i, a, [&](int64_t, int32_t e, T s) {
          const T w = positives.weight[a][e];
          total += w * softplus(nu[i] - s);
          slope += w * sigmoid(nu[i] - s);
        });
        const T n = positives.count[i] > 0 ? T(positives.count[i]) : T(1);
        loss_of[i] = total / n;
        coefficient_of[i] = slope / n;
      }
    });
  });
}

void positives_backward(const Tensor rows, const Tensor tiles, const Tensor runs, const Tensor count,
                        const Tensor temperature, const Tensor offset, const Tensor weight, const Tensor lse,
                        const Tensor scale, Tensor grad_rows, Tensor sums) {
  dispatch_compute(rows, [&](auto compute) {
    using C = typename decltype(compute)::type;
    using T = Accumulator<C>;
    const Positives<C> positives(rows, tiles, runs, count, temperature, offset, weight);
    const T* nu = vector<T>(lse);
    const T* scale_of = vector<T>(scale);
    const bool need_rows = grad_rows.numel() > 0;
    const Matrix<T> grad = matrix<T>(grad_rows);
    const int64_t pairs = positives.domains * positives.domains;
    const int64_t blocks = positives.rows.rows / kBlock;
    std::vector<double> parts(blocks * pairs * 2, 0.0);  // added up in order, so that threads do not matter
    parallel_rows(blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kBlock; i < end * kBlock; ++i) {
        const int32_t a = positives.domain(i);
        double* part = &parts[i / kBlock * pairs * 2];
        positives.for_each(i, a, [&](int64_t p, int32_t e, T s) {
          const T forth = positives.weight[a][e] * sigmoid(nu[i] - s) * scale_of[i] / T(positives.count[i]);
          const T back = positives.weight[e][a] * sigmoid(nu[p] - s) * scale_of[p] / T(positives.count[p]);
          const T h = -(forth + back);
          if (need_rows) tile_kernels<C>().axpy(h / positives.temperature[a][e], positives.rows[p], grad[i], grad.cols);
          if (i < p) {  // each unordered pair once; slots are sorted by domain
            part[2 * (a * positives.domains + e)] += h;
            part[2 * (a * positives.domains + e) + 1] += double(h) * s;
          }
        });
      }
    });
    double* total = vector<double>(sums);
    for (size_t k = 0; k < parts.size(); ++k) total[k % (pairs * 2)] += parts[k];
  });
}

}  // namespace uniclip::cpu
