#include "image_header.hpp"

#include <cstring>

namespace inferential::wire {
namespace {

std::uint32_t big_endian(const std::byte* at, int bytes) noexcept {
  std::uint32_t value = 0;
  for (int i = 0; i < bytes; ++i) value = value << 8 | std::to_integer<std::uint32_t>(at[i]);
  return value;
}

}  // namespace

std::optional<ImageSize> jpeg_size(const std::byte* data, std::size_t size) noexcept {
  if (size < 4 || big_endian(data, 2) != 0xFFD8) return std::nullopt;  // start of image
  std::size_t at = 2;
  while (size - at >= 4) {
    if (data[at] != std::byte{0xFF}) return std::nullopt;
    const auto marker = std::to_integer<std::uint32_t>(data[at + 1]);
    if (marker == 0xFF) {  // fill byte
      ++at;
      continue;
    }
    if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD7)) {  // markers without a segment
      at += 2;
      continue;
    }
    if (marker == 0xD9 || marker == 0xDA) return std::nullopt;  // image data before any frame header
    const std::size_t length = big_endian(data + at + 2, 2);
    if (length < 2 || length > size - at - 2) return std::nullopt;
    const bool frame_header = marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
    if (frame_header) {
      if (length < 8) return std::nullopt;
      return ImageSize{big_endian(data + at + 5, 2), big_endian(data + at + 7, 2)};
    }
    at += 2 + length;
  }
  return std::nullopt;
}

std::optional<ImageSize> png_size(const std::byte* data, std::size_t size) noexcept {
  static constexpr unsigned char start[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n', 0, 0, 0, 13, 'I', 'H', 'D', 'R'};
  if (size < sizeof start + 8 || std::memcmp(data, start, sizeof start) != 0) return std::nullopt;
  return ImageSize{big_endian(data + sizeof start + 4, 4), big_endian(data + sizeof start, 4)};
}

}  // namespace inferential::wire
