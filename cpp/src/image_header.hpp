#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "inferential/tensor.hpp"

namespace inferential::wire {

struct ImageShape {
  std::int64_t height;
  std::int64_t width;
  std::int64_t channels;
};

/// What an image file's own header says, without decoding it; nothing where it is no such file, or a PNG
/// that is not 8-bit grey, RGB, RGBA or with a palette (which reads as RGB).
std::optional<ImageShape> jpeg_shape(const std::byte* data, std::size_t size) noexcept;
std::optional<ImageShape> png_shape(const std::byte* data, std::size_t size) noexcept;

}  // namespace inferential::wire
