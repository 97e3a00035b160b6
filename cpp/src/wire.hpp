#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "frame.hpp"
#include "inferential/tensor.hpp"
#include "inferential/v1/inferential.pb.h"
#include "message.hpp"

namespace inferential::wire {

inline constexpr std::size_t max_name_bytes = 256;
inline constexpr int max_tensors = 256;            // of an observation; a reply may have any number
inline constexpr std::size_t max_metadata = 4096;  // of an observation; a server cannot answer much more
inline constexpr int max_dimensions = 32;
inline constexpr std::uint32_t max_priority = 1000;
inline constexpr int max_image_side = 16384;
inline constexpr std::size_t tensor_alignment = 8;

/// The next place in a frame where a tensor may begin.
constexpr std::size_t aligned(std::size_t offset) noexcept {
  return (offset + tensor_alignment - 1) / tensor_alignment * tensor_alignment;
}

using TensorFields = google::protobuf::RepeatedPtrField<v1::Tensor>;

/// product(shape); false where a dimension is negative, or the bytes of the dimensions that are not 0 reach 2^63.
bool element_count(Span<const std::int64_t> shape, std::size_t item_bytes, std::uint64_t& count) noexcept;

bool is_utf8(std::string_view text) noexcept;

/// Why the tensor cannot hold these bytes (rules 1, 2, 3, 6, 7 and 8 of the protocol's section 2); empty when it can.
/// With `bytes` an image's own header is read too.
std::string check_content(const v1::Tensor& tensor, const std::byte* bytes);

/// Checks all of section 2; the first failure, naming tensor and field, or empty.
std::string check_tensors(const TensorFields& tensors, Span<const Frame> payload);

/// Where the bytes of one tensor to be sent are.
struct Source {
  const void* data;
  std::size_t byte_length;
};

/// Gives each tensor its frame and offset and copies the bytes into new frames (at least one).
/// Tensors of `own_frame_bytes` or more get frames of their own, unless `one_frame`.
void lay_out(v1::Observation& observation, const std::vector<Source>& sources, bool one_frame,
             std::size_t own_frame_bytes, std::vector<Frame>& payload);

/// Serialises into a frame.
Frame encode(const v1::Observation& observation);

/// Parses message.envelope into message.fields and makes message.tensors and message.metadata.
/// False where the message is invalid: message.error says why, fields.request_id() is 0 unless it could be read.
bool decode(detail::Message& message);

/// Fills message.tensors from fields.tensors and the payload, copying what is misaligned. All checked before.
void make_views(detail::Message& message);

}  // namespace inferential::wire
