// Every kernel on every type of rows, on a small problem in buffers of exact size, against double precision: what the
// sanitizers run, and the layout of its rows. Two domains of 24 and 16 rows, two rows of each sample next to each
// other; then one empty tile.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "ops.h"
#include "types.cuh"

namespace {

using namespace uniclip::cuda;

// What is allowed for rounding: of the products, and of rows and gradients that are stored.
template <class T>
constexpr double kTolerance = std::is_same_v<T, Float>      ? 2e-5
                              : std::is_same_v<T, BFloat16> ? 1e-2
                                                            : 2e-3;

constexpr int kBlock = 128, kSlots = 3 * kBlock, kTiles = 3, kDomains = 2, kColumns = 40, kPadded = 64, kRows = 40;
constexpr int kFilled[kTiles] = {24, 16, 0};
constexpr Rectangle kRectangles[] = {{0, 0, 1, 1}, {0, 1, 1, 2}, {1, 1, 2, 2}};  // as the engine walks them

int failures = 0;

void check(const char* what, double got, double expected, double allowed) {
  if (std::fabs(got - expected) <= allowed) return;
  if (++failures <= 10) std::printf("WRONG %s: %g, expected %g\n", what, got, expected);
}
void check_launch(int error) {
  if (error != 0) throw std::runtime_error("launch failed");
}

template <class E>
struct Problem {
  std::vector<E> z = std::vector<E>(kRows * kColumns);
  std::vector<int64_t> order = std::vector<int64_t>(kSlots, -1), slot = std::vector<int64_t>(kRows);
  std::vector<int> ids = std::vector<int>(kSlots, -1), count = std::vector<int>(kSlots);
  std::vector<LayoutTile> tiles;
  std::vector<Span> spans = std::vector<Span>(kTiles * kDomains);
  std::vector<float> temperature{0.1f, 0.2f, 0.2f, 0.3f}, offset{0, 0.1f, 0.1f, -0.1f}, weight{1, 0.5f, 2, 1};
  std::vector<unsigned char> mask{1, 1, 1, 1};

  Problem() {
    uint32_t state = 1;
    for (E& x : z) {
      x = from_float<E>(static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) / (1 << 24) - 0.5f);
    }
    int64_t row = 0;
    for (int a = 0; a < kTiles; ++a) {
      const int filled = kFilled[a];
      tiles.push_back({filled > 0 ? a : -1, filled, filled > 0 ? 0 : -1, filled > 0 ? filled / 2 - 1 : -1});
      for (int e = 0; filled > 0 && e < kDomains; ++e) spans[a * kDomains + e] = {e, e + 1};
      for (int r = 0; r < filled; ++r, ++row) {
        const int at = a * kBlock + r, id = r / 2;
        order[at] = row;
        slot[row] = at;
        ids[at] = id;
        for (int e = 0; e < kDomains; ++e) count[at] += 2 * id >= kFilled[e] ? 0 : e == a ? 1 : 2;
      }
    }
  }
  int domain(int i) const { return tiles[i / kBlock].domain; }
};

// Negatives "softmax" and positives "sigmoid", or the `other` of both; terms of the gradient as mp_nce makes them.
template <class E, class S, class Near>
void check_objective(const Similarities& given, const Problem<E>& p, const std::vector<int>& filled, const S& s,
                     const Near& near, bool other) {
  const E kUnwritten = from_float<E>(NAN);
  std::vector<float> lse(kSlots, -INFINITY), total(kSlots), top = lse;
  for (const Rectangle& rectangle : kRectangles) {
    const auto [i0, j0, height, width] = rectangle;
    const size_t plane = width * height * kBlock;
    std::vector<float> by_row((other ? 2 : 1) * plane, NAN), by_col(i0 == j0 ? 0 : by_row.size(), NAN);
    check_launch(uniclip_cuda_similarity_lse(given, rectangle, other, by_row.data(),
                                             i0 == j0 ? by_row.data() : by_col.data(), nullptr));
    const auto merge = [&](int slot, int slots, const std::vector<float>& parts) {
      if (!other) {
        check_launch(uniclip_cuda_merge_lse(&lse[slot], parts.data(), slots, plane / slots, nullptr));
        return;
      }
      for (size_t at = 0; at < plane; ++at) {
        total[slot + at % slots] += parts[at];
        top[slot + at % slots] = std::fmax(top[slot + at % slots], parts[plane + at]);
      }
    };
    merge(i0 * kBlock, height * kBlock, by_row);
    if (i0 != j0) merge(j0 * kBlock, width * kBlock, by_col);
  }
  for (int i : filled) {
    double sum = 0, softplus = 0, largest = -INFINITY;
    for (int j : filled) {
      if (p.ids[i] == p.ids[j]) continue;
      sum += std::exp(s(i, j));
      softplus += std::log1p(std::exp(s(i, j)));
      largest = std::fmax(largest, s(i, j));
    }
    near("lse", other ? total[i] : lse[i], other ? softplus : std::log(sum), other ? 100 : 10);
    if (other) near("top", top[i], largest, 10);
  }

  constexpr int kSlices = 2, kParts = 4 * kSlices;
  std::vector<float> statistics((other ? 4 : 3) * kParts * kSlots, NAN), slope(kSlots), share(kSlots);
  check_launch(uniclip_cuda_positives_forward(given, p.spans.data(), p.weight.data(), other, lse.data(), kSlots,
                                              kSlices, statistics.data(), nullptr));
  const auto statistic = [&](int k, int i) {
    double sum = 0;
    for (int part = 0; part < kParts; ++part) {
      const double x = statistics[(k * kParts + part) * kSlots + i];
      sum += other && k == 0 ? std::exp(x) : x;
    }
    return other && k == 0 ? std::log(sum) : sum;
  };
  const auto w = [&](int i, int j) { return p.weight[p.domain(i) * kDomains + p.domain(j)]; };
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  std::vector<float> base = lse, coefficient(kSlots);
  for (int i = 0; i < kSlots; ++i) {
    double loss = 0, sum = 0, sum_of_s = 0;
    for (int j : filled) {
      if (i == j || p.ids[i] != p.ids[j]) continue;
      loss += other ? std::exp(s(i, j)) : w(i, j) * std::log1p(std::exp(lse[i] - s(i, j)));
      sum += w(i, j) * (other ? 1 : sigmoid(lse[i] - s(i, j)));
      sum_of_s += w(i, j) * s(i, j);
    }
    if (!other || p.count[i] > 0) near("loss", statistic(0, i), other ? std::log(loss) : loss, 20);
    if (other) {
      base[i] = statistic(0, i);
      near("s", statistic(3, i), sum_of_s, 20);
      check("empty", base[i] == -INFINITY, p.count[i] == 0, 0);
    }
    near("slope", statistic(1, i), sum, 4);
    check("count", statistic(2, i), p.count[i], 0);
    share[i] = p.count[i] > 0 ? 1.f / p.count[i] : 0;
    coefficient[i] = slope[i] = static_cast<float>(statistic(1, i)) * share[i];
  }

  const auto term = [&](int i, int j) {  // of the gradient, from row i
    if (p.ids[i] != p.ids[j]) return (other ? sigmoid(s(i, j)) : std::exp(s(i, j) - lse[i])) * coefficient[i];
    if (other) return std::exp(s(i, j) - base[i]) * slope[i] - w(i, j) * share[i];
    return -w(i, j) * sigmoid(base[i] - s(i, j)) * share[i];
  };
  const auto gradient = [&](int i, int j) {
    return i == j || p.ids[i] < 0 || p.ids[j] < 0 ? 0.0 : term(i, j) + term(j, i);
  };
  std::vector<double> sums(kDomains * kDomains * 2, 0.0), expected_sums = sums;
  for (const Rectangle& rectangle : kRectangles) {
    const auto [i0, j0, height, width] = rectangle;
    std::vector<E> h(height * width * kBlock * kBlock, kUnwritten);
    const auto add_sums = [&](const std::vector<float>& parts) {
      check_launch(uniclip_cuda_add_pair_sums(parts.data(), height, width, &p.tiles[i0].domain, 4, &p.tiles[j0].domain,
                                              4, i0 == j0, kDomains, sums.data(), nullptr));
    };
    std::vector<float> of_negatives(2 * height * width, 0), of_positives = of_negatives;
    check_launch(uniclip_cuda_similarity_grad(given, rectangle, other, lse.data(), coefficient.data(), h.data(),
                                              of_negatives.data(), nullptr));
    add_sums(of_negatives);
    check_launch(uniclip_cuda_positives_grad(given, rectangle, p.spans.data(), p.weight.data(), other, base.data(),
                                             share.data(), slope.data(), kSlices, h.data(), of_positives.data(),
                                             nullptr));
    add_sums(of_positives);
    for (int i = i0 * kBlock; i < (i0 + height) * kBlock; ++i) {
      for (int j = j0 * kBlock; j < (j0 + width) * kBlock; ++j) {
        const double value = gradient(i, j);
        const double tau = value == 0 ? 1 : p.temperature[p.domain(i) * kDomains + p.domain(j)];
        near("H", to_float(h[(i - i0 * kBlock) * width * kBlock + j - j0 * kBlock]), value / tau, 20);
      }
    }
  }
  for (int i : filled) {
    for (int j : filled) {
      const int pair = p.domain(i) * kDomains + p.domain(j);
      if (i < j) expected_sums[pair * 2] += gradient(i, j);
      if (i < j) expected_sums[pair * 2 + 1] += gradient(i, j) * s(i, j);
    }
  }
  for (size_t k = 0; k < sums.size(); ++k) near("sums", sums[k], expected_sums[k], 100);
}

template <class T>
void run(Operand operand) {
  using E = typename T::Element;
  const E kUnwritten = from_float<E>(NAN);
  const Problem<E> p;
  std::vector<E> rows(kSlots * kPadded, kUnwritten);
  std::vector<float> inv_norm(kSlots, NAN);
  const auto near = [](const char* what, double got, double expected, double scale) {
    check(what, got, expected, kTolerance<T> * scale);
  };
  const auto dot = [&](int i, int j) {
    double sum = 0;
    for (int c = 0; c < kPadded; ++c) sum += double(to_float(rows[i * kPadded + c])) * to_float(rows[j * kPadded + c]);
    return sum;
  };
  const auto s = [&](int i, int j) {
    const int pair = p.domain(i) * kDomains + p.domain(j);
    return (dot(i, j) - p.offset[pair]) / p.temperature[pair];
  };

  check_launch(uniclip_cuda_gather_rows(operand, p.z.data(), kColumns, 1, kColumns, p.order.data(), kSlots, kPadded,
                                        true, rows.data(), inv_norm.data(), nullptr));
  std::vector<int> filled;
  for (int i = 0; i < kSlots; ++i) {
    if (p.order[i] >= 0) filled.push_back(i);
    near("norm", dot(i, i), p.order[i] >= 0 ? 1 : 0, 1);
  }

  const Similarities given{rows.data(),     p.ids.data(),  p.tiles.data(), p.temperature.data(),
                           p.offset.data(), p.mask.data(), kSlots,         kPadded,
                           kDomains,        operand};
  for (const bool other : {false, true}) check_objective<E>(given, p, filled, s, near, other);

  std::vector<float> grad_rows(kSlots * kPadded), factor(1, 0.5f);
  for (size_t k = 0; k < grad_rows.size(); ++k) grad_rows[k] = to_float(rows[(k * 31) % rows.size()]);
  std::vector<E> grad(kRows * kColumns, kUnwritten);
  check_launch(uniclip_cuda_scatter_rows(operand, grad_rows.data(), kPadded, p.z.data(), kColumns, 1, kColumns,
                                         p.slot.data(), kRows, inv_norm.data(), factor.data(), true, grad.data(),
                                         nullptr));
  for (int row = 0; row < kRows; ++row) {  // z · ∂/∂z is 0 for a function of the direction of z
    double along = 0;
    for (int c = 0; c < kColumns; ++c) {
      along += double(to_float(grad[row * kColumns + c])) * to_float(p.z[row * kColumns + c]);
    }
    near("grad", along, 0, 10);
  }

  constexpr int kOthers = 13;
  std::vector<int> domains(kFilled[0], 0), other_domains(kOthers, 1);
  std::vector<float> matrix(kFilled[0] * kOthers, NAN), row_parts(2 * kFilled[0] * kDomains);
  std::vector<E> g(kBlock * kBlock, kUnwritten);
  check_launch(uniclip_cuda_similarity_matrix(operand, rows.data(), rows.data() + kBlock * kPadded, kPadded,
                                              domains.data(), other_domains.data(), p.temperature.data(),
                                              p.offset.data(), kDomains, kFilled[0], kOthers, matrix.data(), nullptr));
  check_launch(uniclip_cuda_similarity_matrix_grad(operand, matrix.data(), matrix.data(), kOthers, domains.data(),
                                                   other_domains.data(), p.temperature.data(), kDomains, kFilled[0],
                                                   kOthers, g.data(), kBlock, kBlock, row_parts.data(), nullptr));
  for (int i = 0; i < kFilled[0]; ++i) {
    for (int j = 0; j < kOthers; ++j) {
      near("s", matrix[i * kOthers + j], s(i, kBlock + j), 20);
      near("g", to_float(g[i * kBlock + j]), s(i, kBlock + j) / p.temperature[1], 100);
    }
  }
}

// The layout of the same rows and one of padding, from their ids in reverse.
void run_layout() {
  const Problem<float> p;
  constexpr int kAll = kRows + 1;
  std::vector<int64_t> sample(kAll, -1), domain_ids(kAll, 0), row(kAll), by_sample(kAll), position(kAll);
  for (int i = 0; i < kSlots; ++i) {
    if (p.order[i] < 0) continue;
    sample[p.order[i]] = p.ids[i];
    domain_ids[p.order[i]] = p.domain(i);
  }
  const auto sort = [&](std::vector<int64_t>& order, const auto& keys) {
    for (int i = 0; i < kAll; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
  };
  sort(row, sample);
  for (int t = 0; t < kAll; ++t) by_sample[t] = sample[row[t]];
  std::vector<short> unsorted(kAll, -1), domain(kAll);
  std::vector<int> first(kAll, -1), end(kAll, -1);
  check_launch(uniclip_cuda_number_samples(by_sample.data(), row.data(), domain_ids.data(), 1, kAll, kDomains,
                                           unsorted.data(), first.data(), end.data(), nullptr));
  sort(position, unsorted);
  for (int t = 0; t < kAll; ++t) domain[t] = unsorted[position[t]];
  std::vector<int64_t> order(kSlots, -9), slot(kAll, -9);
  std::vector<int> ids(kSlots, -9);
  std::vector<LayoutTile> tiles(kTiles);
  std::vector<Span> spans(kTiles * kDomains, {-9, -9});
  check_launch(uniclip_cuda_layout(domain.data(), position.data(), row.data(), first.data(), end.data(), nullptr,
                                   p.mask.data(), kAll, kDomains, kSlots, order.data(), slot.data(), ids.data(),
                                   tiles.data(), spans.data(), nullptr));
  for (int i = 0; i < kSlots; ++i) {
    check("order", order[i], p.order[i], 0);
    check("an empty slot", ids[i] < 0, p.ids[i] < 0, 0);
  }
  for (int r = 0; r < kRows; ++r) check("slot", slot[r], p.slot[r], 0);
  check("slot of padding", slot[kRows], -1, 0);
  for (int t = 0; t < kTiles; ++t) {
    check("domain of a tile", tiles[t].domain, p.tiles[t].domain, 0);
    check("filled slots", tiles[t].filled, p.tiles[t].filled, 0);
    if (kFilled[t] > 0) check("last sample", tiles[t].last, ids[t * kBlock + kFilled[t] - 1], 0);
  }
  for (int k = 0; k < kTiles * kDomains; ++k) {
    check("start of a span", spans[k].start, p.spans[k].start, 0);
    check("end of a span", spans[k].end, p.spans[k].end, 0);
  }

  domain_ids[kRows] = kDomains;  // of the row of padding, where it does not matter
  for (float worst : {1.f, 0.f, INFINITY}) {
    std::vector<float> temperature = p.temperature;
    temperature[3] = worst;
    bool valid = worst != 1;
    check_launch(uniclip_cuda_check_values(temperature.data(), p.offset.data(), p.weight.data(), p.mask.data(),
                                           kDomains, sample.data(), 1, domain_ids.data(), 1, kAll, kDomains, &valid, 1,
                                           nullptr));
    check("valid", valid, worst == 1, 0);
  }
}

}  // namespace

int main() {
#if defined(__SANITIZE_THREAD__)
  const auto orders = {2};  // races show in any order, slowly
#else
  const auto orders = {0, 1, 2};
#endif
  for (int order : orders) {
    emulation::thread_order = order;
    try {
      run_layout();
      run<Float>(Operand::kFloat);
      run<TF32>(Operand::kTF32);
      run<BFloat16>(Operand::kBFloat16);
      run<Half>(Operand::kHalf);
    } catch (const std::exception& error) {
      std::printf("%s\n", error.what());
      return 2;
    }
  }
  std::printf("%d wrong\n", failures);
  return failures == 0 ? 0 : 1;
}
