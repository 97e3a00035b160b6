#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "inferential/tensor.hpp"

namespace inferential::wire {

struct ImageSize {
  std::uint32_t height;
  std::uint32_t width;
};

/// What an image file's own header says, without decoding it; nothing where it is no such file.
std::optional<ImageSize> jpeg_size(const std::byte* data, std::size_t size) noexcept;
std::optional<ImageSize> png_size(const std::byte* data, std::size_t size) noexcept;

}  // namespace inferential::wire
