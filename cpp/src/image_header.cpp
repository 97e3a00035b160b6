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

std::optional<ImageShape> jpeg_shape(const std::byte* data, std::size_t size) noexcept {
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
    const bool frame_header = marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
    if (frame_header) {
      if (size - at < 10) return std::nullopt;
      return ImageShape{big_endian(data + at + 5, 2), big_endian(data + at + 7, 2), big_endian(data + at + 9, 1)};
    }
    const std::size_t length = big_endian(data + at + 2, 2);
    if (length < 2 || length > size - at - 2) return std::nullopt;
    at += 2 + length;
  }
  return std::nullopt;
}

std::optional<ImageShape> png_shape(const std::byte* data, std::size_t size) noexcept {
  static constexpr unsigned char start[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n',
                                            0,    0,   0,   13,  'I',  'H',  'D',  'R'};
  const auto* fields = data + sizeof start;  // width, height, bit depth, colour type
  if (size < sizeof start + 10 || std::memcmp(data, start, sizeof start) != 0) return std::nullopt;
  if (big_endian(fields + 8, 1) > 8) return std::nullopt;
  std::int64_t channels;
  switch (big_endian(fields + 9, 1)) {
    case 0: channels = 1; break;
    case 2:
    case 3: channels = 3; break;
    case 6: channels = 4; break;
    default: return std::nullopt;
  }
  return ImageShape{big_endian(fields + 4, 4), big_endian(fields, 4), channels};
}

}  // namespace inferential::wire
