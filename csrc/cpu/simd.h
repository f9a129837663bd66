// Vectors of T as wide as the instruction set that this file is compiled for, by the compiler's own vector extension.
// Included only by gemm.inc, inside one namespace per instruction set; UNICLIP_VECTOR_BYTES is set there.

template <class T>
struct VectorOf {
  static constexpr int size = UNICLIP_VECTOR_BYTES / sizeof(T);
  typedef T type __attribute__((vector_size(UNICLIP_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = VectorOf<T>::size;

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};
}
template <class V>
inline V larger(V a, V b) {
  return a > b ? a : b;
}

// a * b + c, rounded once where there is an instruction for it: ISO C++ keeps compilers from making one of two.
#if UNICLIP_VECTOR_BYTES == 64
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm512_fmadd_pd(a, b, c); }
#elif UNICLIP_VECTOR_BYTES == 32
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm256_fmadd_pd(a, b, c); }
#elif defined(__aarch64__)
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return vfmaq_f32(c, a, b); }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return vfmaq_f64(c, a, b); }
#else
template <class V>
inline V fma(V a, V b, V c) {
  return a * b + c;
}
#endif

// Lane l of the result is lane Source::of(l) of a and b, one after the other.
template <class Source, class V, int... lanes>
inline V shuffle(V a, V b, std::integer_sequence<int, lanes...>) {
  return __builtin_shufflevector(a, b, Source::of(lanes)...);
}
template <class Source, class V>
inline V shuffle(V a, V b) {
  return shuffle<Source>(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(a[0])>());
}

template <int half>
struct Swapped {
  static constexpr int of(int lane) { return lane ^ half; }
};
// All lanes joined: halves of the vector with each other, then quarters, and so on.
template <int half, class V, class F>
inline auto reduce(V v, const F& join) {
  if constexpr (half == 0) {
    return v[0];
  } else {
    return reduce<half / 2>(join(v, shuffle<Swapped<half>>(v, v)), join);
  }
}
template <class T>
inline T sum(Vec<T> v) {
  return reduce<kLanes<T> / 2>(v, [](Vec<T> a, Vec<T> b) { return a + b; });
}
template <class T>
inline T maximum(Vec<T> v) {
  return reduce<kLanes<T> / 2>(v, larger<Vec<T>>);
}

// Two rows trade blocks of `half` lanes: those right in the upper one for those left in the lower one.
template <int lanes, int half>
struct Upper {
  static constexpr int of(int lane) { return lane & half ? lanes + lane - half : lane; }
};
template <int lanes, int half>
struct Lower {
  static constexpr int of(int lane) { return lane & half ? lanes + lane : lane + half; }
};
// A square of as many vectors as each has lanes, transposed.
template <class V, int lanes, int half = lanes / 2>
inline void transpose_square(V (&rows)[lanes]) {
  if constexpr (half > 0) {
    for (int r = 0; r < lanes; ++r) {
      if (r & half) continue;
      const V upper = shuffle<Upper<lanes, half>>(rows[r], rows[r + half]);
      rows[r + half] = shuffle<Lower<lanes, half>>(rows[r], rows[r + half]);
      rows[r] = upper;
    }
    transpose_square<V, lanes, half / 2>(rows);
  }
}

// 0, 1, 2, …
template <class T>
inline Vec<T> iota() {
  Vec<T> v;
  for (int l = 0; l < kLanes<T>; ++l) v[l] = T(l);
  return v;
}

// The low 32 bits of `ids` beside the lanes of Vec<T>: sample numbers compare as integers of T's width.
inline auto load_ids(const int32_t* p, float) {
  typedef int32_t V __attribute__((vector_size(UNICLIP_VECTOR_BYTES)));
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline auto load_ids(const int32_t* p, double) {
  typedef int64_t V __attribute__((vector_size(UNICLIP_VECTOR_BYTES)));
  V v;
  for (int l = 0; l < kLanes<double>; ++l) v[l] = p[l];
  return v;
}

// 2^x to 1e-7 of its value: x = n + f with |f| <= 1/2, a polynomial in f, n added to the exponent. Below -126 the
// result stays at 2^-126, which no sum beside a term of 1 can see; NaN stays NaN.
inline Vec<float> exp2(Vec<float> x) {
  typedef int32_t Int __attribute__((vector_size(UNICLIP_VECTOR_BYTES)));
  const Vec<float> y = x < -126.0f ? splat(-126.0f) : x;
  const Vec<float> shifted = y + 12582912.0f;  // 1.5 * 2^23 rounds to an integer, kept in the low bits
  const Vec<float> f = y - (shifted - 12582912.0f);
  Vec<float> p = splat(1.535367581e-4f);
  for (float c : {1.339889562e-3f, 9.618436283e-3f, 5.550332400e-2f, 2.402264792e-1f, 6.931472029e-1f, 1.0f}) {
    p = fma(p, f, splat(c));
  }
  const Int scaled = (Int)p + ((Int)shifted << 23);
  return x == x ? (Vec<float>)scaled : x;
}
inline Vec<double> exp2(Vec<double> x) {
  Vec<double> y{};
  for (int l = 0; l < kLanes<double>; ++l) y[l] = std::exp2(x[l]);
  return y;
}

// log(1 + r) for r >= 0 to 2e-7 of its value: of w = 1 + r = 2^n f with f between √½ and √2 a polynomial in f - 1 (that
// of the Cephes library), and what rounding takes from w is put back. NaN stays.
inline Vec<float> log1p(Vec<float> r) {
  typedef int32_t Int __attribute__((vector_size(UNICLIP_VECTOR_BYTES)));
  const Vec<float> w = 1 + r;
  const Int n = ((Int)w - 0x3f3504f3) >> 23;
  const Vec<float> g = (Vec<float>)((Int)w - (n << 23)) - 1;
  Vec<float> p = splat(7.0376836292e-2f);
  for (float c : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                  2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f, -0.5f}) {
    p = fma(p, g, splat(c));
  }
  const Vec<float> lost = (r - (w - 1)) / w;
  return fma(__builtin_convertvector(n, Vec<float>), splat(float(kLn2)), g + fma(p, g * g, lost));
}
inline Vec<double> log1p(Vec<double> r) {
  Vec<double> y{};
  for (int l = 0; l < kLanes<double>; ++l) y[l] = std::log1p(r[l]);
  return y;
}

// Loads widen to the accumulator, stores round to nearest even (NaN to a quiet NaN). Arithmetic is never done in 16
// bits.
typedef uint32_t Bits __attribute__((vector_size(UNICLIP_VECTOR_BYTES)));
typedef uint16_t HalfBits __attribute__((vector_size(UNICLIP_VECTOR_BYTES / 2)));

inline Bits load_bits(const void* p) {
  HalfBits narrow;
  std::memcpy(&narrow, p, sizeof narrow);
  return __builtin_convertvector(narrow, Bits);
}
inline void store_bits(void* p, Bits wide) {
  const HalfBits narrow = __builtin_convertvector(wide, HalfBits);
  std::memcpy(p, &narrow, sizeof narrow);
}

inline Vec<float> widen(const float* p) { return load(p); }
inline Vec<double> widen(const double* p) { return load(p); }
inline Vec<float> widen(const bfloat16* p) { return (Vec<float>)(load_bits(p) << 16); }
inline Vec<float> widen(const half* p) {
  const Bits h = load_bits(p), magnitude = h & 0x7fffu;
  const Bits scaled =
      (Bits)((Vec<float>)(magnitude << 13) * 0x1p112f);  // moves the exponent's bias, subnormals included
  const Bits special = (magnitude << 13) | 0x7f800000u;  // infinity and NaN
  return (Vec<float>)((magnitude < 0x7c00u ? scaled : special) | ((h & 0x8000u) << 16));
}

inline Vec<float> widen(const fixed16* p) {
  typedef int32_t Int __attribute__((vector_size(UNICLIP_VECTOR_BYTES)));
  const Int steps = (Int)(load_bits(p) << 16) >> 16;
  const Vec<float> x = __builtin_convertvector(steps, Vec<float>) * (1 / kFixedSteps);
  return steps == kFixedNaN ? splat(std::numeric_limits<float>::quiet_NaN()) : x;
}

inline void narrow(float* p, Vec<float> v) { store(p, v); }
inline void narrow(double* p, Vec<double> v) { store(p, v); }
inline void narrow(bfloat16* p, Vec<float> v) {
  const Bits u = (Bits)v;
  const Bits rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  store_bits(p, v == v ? rounded : 0x7fc0u - Bits{});
}
inline Bits steps(Vec<float> v) {
  return (Bits)(v * kFixedSteps + 12582912.0f);  // 1.5 * 2^23 rounds to an integer, kept in the low bits
}
inline void narrow(fixed16* p, Vec<float> v) {
  store_bits(p, v == v ? steps(v) : uint32_t(uint16_t(kFixedNaN)) - Bits{});
}
inline void narrow(half* p, Vec<float> v) {
  const Bits u = (Bits)v, magnitude = u & 0x7fffffffu;
  const Bits normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const Bits subnormal =
      (Bits)((Vec<float>)magnitude + 0.5f) - 0x3f000000u;  // 0.5 has half's smallest step as its last bit
  Bits h = magnitude < 0x38800000u ? subnormal : normal;
  h = magnitude < 0x477ff000u ? h : 0x7c00u - Bits{};
  h = v == v ? h : 0x7e00u - Bits{};
  store_bits(p, h | ((u >> 16) & 0x8000u));
}
