#include "inferential/float_types.hpp"

#include <cmath>
#include <cstring>
#include <limits>

namespace inferential {
namespace {

/// An IEEE-like format: 1 sign bit, `exponent_bits`, `mantissa_bits`. Without infinity (`fn`), all
/// ones is the only NaN and the other codes of the highest exponent are numbers.
struct Format {
  int exponent_bits;
  int mantissa_bits;
  bool has_infinity;
};

constexpr Format float16_format{5, 10, true};
constexpr Format bfloat16_format{8, 7, true};
constexpr Format e4m3fn_format{4, 3, false};
constexpr Format e5m2_format{5, 2, true};

float decode(std::uint32_t bits, const Format& format) noexcept {
  const int total = 1 + format.exponent_bits + format.mantissa_bits;
  const bool negative = (bits >> (total - 1)) & 1;
  const std::uint32_t max_exponent = (1u << format.exponent_bits) - 1;
  const std::uint32_t mantissa_mask = (1u << format.mantissa_bits) - 1;
  const std::uint32_t exponent = (bits >> format.mantissa_bits) & max_exponent;
  const std::uint32_t mantissa = bits & mantissa_mask;
  const int bias = (1 << (format.exponent_bits - 1)) - 1;

  float magnitude;
  if (exponent == max_exponent && format.has_infinity) {
    magnitude = mantissa == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == max_exponent && mantissa == mantissa_mask) {
    magnitude = std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), 1 - bias - format.mantissa_bits);
  } else {
    magnitude = std::ldexp(static_cast<float>(mantissa | (1u << format.mantissa_bits)),
                           static_cast<int>(exponent) - bias - format.mantissa_bits);
  }
  return negative ? -magnitude : magnitude;
}

std::uint32_t encode(float value, const Format& format) noexcept {
  const int total = 1 + format.exponent_bits + format.mantissa_bits;
  const std::uint32_t sign = std::signbit(value) ? 1u << (total - 1) : 0;
  const std::uint32_t max_exponent = (1u << format.exponent_bits) - 1;
  const std::uint32_t mantissa_mask = (1u << format.mantissa_bits) - 1;
  const std::uint32_t top = max_exponent << format.mantissa_bits;
  const std::uint32_t nan = format.has_infinity ? top | (1u << (format.mantissa_bits - 1)) : top | mantissa_mask;
  const std::uint32_t overflow = format.has_infinity ? top : nan;  // also the first code past the largest number
  const int bias = (1 << (format.exponent_bits - 1)) - 1;

  if (std::isnan(value)) return sign | nan;
  if (std::isinf(value)) return sign | overflow;
  if (value == 0) return sign;

  // |value| = fraction x 2^exponent with fraction in [1, 2); below the least normal exponent the
  // unit in the last place stays that of the subnormals.
  int exponent = 0;
  std::frexp(std::fabs(value), &exponent);
  exponent -= 1;
  const int ulp = (exponent < 1 - bias ? 1 - bias : exponent) - format.mantissa_bits;
  // Exact in double; nearbyint rounds ties to even in the default mode.
  const double units = std::nearbyint(std::ldexp(static_cast<double>(std::fabs(value)), -ulp));
  // Codes of one sign are in numeric order, so a carry out of the mantissa lands on the right code by itself.
  const double code =
      units + std::ldexp(static_cast<double>(ulp + format.mantissa_bits - (1 - bias)), format.mantissa_bits);
  return code >= overflow ? sign | overflow : sign | static_cast<std::uint32_t>(code);
}

}  // namespace

float16 float16::from_float(float value) noexcept {
  return {static_cast<std::uint16_t>(encode(value, float16_format))};
}
float16::operator float() const noexcept { return decode(bits, float16_format); }

bfloat16 bfloat16::from_float(float value) noexcept {
  return {static_cast<std::uint16_t>(encode(value, bfloat16_format))};
}
bfloat16::operator float() const noexcept { return decode(bits, bfloat16_format); }

float8_e4m3fn float8_e4m3fn::from_float(float value) noexcept {
  return {static_cast<std::uint8_t>(encode(value, e4m3fn_format))};
}
float8_e4m3fn::operator float() const noexcept { return decode(bits, e4m3fn_format); }

float8_e5m2 float8_e5m2::from_float(float value) noexcept {
  return {static_cast<std::uint8_t>(encode(value, e5m2_format))};
}
float8_e5m2::operator float() const noexcept { return decode(bits, e5m2_format); }

}  // namespace inferential
