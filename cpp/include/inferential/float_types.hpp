#pragma once

#include <cstdint>

#include "inferential/export.hpp"

namespace inferential {

// Holders for the bits of floating point types that C++17 has no name for. Conversion from float
// rounds to nearest, ties to even; what is too large becomes infinity, or NaN in float8_e4m3fn,
// which has no infinity.

struct float16 {
  std::uint16_t bits = 0;
  INFERENTIAL_API static float16 from_float(float value) noexcept;
  INFERENTIAL_API explicit operator float() const noexcept;
};

struct bfloat16 {
  std::uint16_t bits = 0;
  INFERENTIAL_API static bfloat16 from_float(float value) noexcept;
  INFERENTIAL_API explicit operator float() const noexcept;
};

struct float8_e4m3fn {
  std::uint8_t bits = 0;
  INFERENTIAL_API static float8_e4m3fn from_float(float value) noexcept;
  INFERENTIAL_API explicit operator float() const noexcept;
};

struct float8_e5m2 {
  std::uint8_t bits = 0;
  INFERENTIAL_API static float8_e5m2 from_float(float value) noexcept;
  INFERENTIAL_API explicit operator float() const noexcept;
};

}  // namespace inferential
