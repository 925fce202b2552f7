// The exponential of softmax, sigmoid and ELU, which need neither its overflow nor its subnormal numbers: inlined and
// half as many operations as xsimd's, whose call costs the caller its registers besides.
#pragma once

#include <type_traits>

#include <xsimd/xsimd.hpp>

namespace strata::kernels {

/// e^x for finite x up to 88; what is below -87 counts as -87, whose exponential is 1.6e-38. Relative error below
/// 1.5e-7, and exactly 1 for 0. (Numbers of double precision: xsimd's exponential.)
///
/// e^x = 2^n e^f with the whole number n next to x / ln 2 and |f| <= ln 2 / 2; e^f = 1 + f q(f), q the polynomial of
/// degree 5 with the least largest relative error of e^f (2e-9).
template <class Batch>
[[nodiscard]] [[gnu::always_inline]] inline Batch bounded_exp(Batch x) noexcept {
  using Scalar = typename Batch::value_type;
  if constexpr (!std::is_same_v<Scalar, float>) {
    return xsimd::exp(x);
  } else {
    x = xsimd::max(x, Batch(-87.0F));
    const auto n = xsimd::nearbyint_as_int(x * Batch(1.442695041F));
    const Batch whole = xsimd::to_float(n);
    // ln 2 in two parts, of which the first has few enough digits for an exact product.
    Batch f = xsimd::fma(whole, Batch(-0.693359375F), x);
    f = xsimd::fma(whole, Batch(2.12194440e-4F), f);
    Batch q(1.384364424e-3F);
    q = xsimd::fma(q, f, Batch(8.374163404e-3F));
    q = xsimd::fma(q, f, Batch(4.166800257e-2F));
    q = xsimd::fma(q, f, Batch(0.1666643117F));
    q = xsimd::fma(q, f, Batch(0.4999999421F));
    q = xsimd::fma(q, f, Batch(1.000000032F));
    return xsimd::ldexp(xsimd::fma(f, q, Batch(1.0F)), n);
  }
}

}  // namespace strata::kernels
