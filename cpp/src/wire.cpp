#include "wire.hpp"

#include <google/protobuf/io/coded_stream.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <unordered_set>

#include "image_header.hpp"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors travel little-endian and are not swapped");

namespace inferential::wire {
namespace {

bool is_raw(const v1::Tensor& tensor) noexcept {
  return tensor.encoding() == v1::ENCODING_UNSPECIFIED || tensor.encoding() == v1::ENCODING_RAW;
}

std::string field_error(const v1::Tensor& tensor, std::string_view field, std::string_view problem) {
  std::string text = "tensor '";
  text.append(tensor.key()).append("': ").append(field).append(" ").append(problem);
  return text;
}

std::string shape_text(const v1::Tensor& tensor) {
  std::string text = "(";
  for (int i = 0; i < tensor.shape_size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(tensor.shape(i));
  }
  return text + ")";
}

std::string check_image(const v1::Tensor& tensor, const std::byte* bytes) {
  const bool jpeg = tensor.encoding() == v1::ENCODING_JPEG;
  if (tensor.dtype() != v1::DTYPE_UINT8) return field_error(tensor, "dtype", "must be UINT8 for an encoded image");
  if (tensor.shape_size() != 3) {
    return field_error(tensor, "shape", shape_text(tensor) + " must be (height, width, channels) for an encoded image");
  }
  const auto channels = tensor.shape(2);
  if (channels != 1 && channels != 3 && channels != 4) {
    return field_error(tensor, "shape", shape_text(tensor) + " must have 1, 3 or 4 channels");
  }
  for (int i = 0; i < 2; ++i) {
    if (tensor.shape(i) < 1 || tensor.shape(i) > max_image_side) {
      return field_error(tensor, "shape", shape_text(tensor) + " must have a height and width of 1 to 16384");
    }
  }
  if (tensor.byte_length() == 0) return field_error(tensor, "byte_length", "must not be 0 for an encoded image");
  if (bytes == nullptr) return {};
  const auto own = jpeg ? jpeg_shape(bytes, tensor.byte_length()) : png_shape(bytes, tensor.byte_length());
  if (!own) {
    return field_error(tensor, "encoding",
                       jpeg ? "says JPEG, but the bytes are no JPEG file"
                            : "says PNG, but the bytes are no PNG file of 8-bit grey, RGB or RGBA");
  }
  if (own->height != tensor.shape(0) || own->width != tensor.shape(1) || own->channels != channels) {
    return field_error(tensor, "shape",
                       shape_text(tensor) + " is not the image's own, (" + std::to_string(own->height) + ", " +
                           std::to_string(own->width) + ", " + std::to_string(own->channels) + ")");
  }
  return {};
}

std::string check_key(const v1::Tensor& tensor) {
  return tensor.key().empty() ? "tensor '': key must not be empty" : std::string();
}

std::string check_types(const v1::Tensor& tensor) {
  if (itemsize(static_cast<DType>(tensor.dtype())) == 0) {
    return field_error(tensor, "dtype", std::to_string(tensor.dtype()) + " is not in the protocol's table");
  }
  if (tensor.encoding() < v1::ENCODING_UNSPECIFIED || tensor.encoding() > v1::ENCODING_PNG) {
    return field_error(tensor, "encoding", std::to_string(tensor.encoding()) + " is not RAW, JPEG or PNG");
  }
  return {};
}

std::string check_shape(const v1::Tensor& tensor, const std::byte* bytes) {
  if (tensor.shape_size() > max_dimensions) {
    return field_error(tensor, "shape",
                       "has " + std::to_string(tensor.shape_size()) + " dimensions, at most 32 are allowed");
  }
  for (const auto dimension : tensor.shape()) {
    if (dimension < 0) return field_error(tensor, "shape", shape_text(tensor) + " has a negative dimension");
  }
  if (!is_raw(tensor)) return check_image(tensor, bytes);
  std::uint64_t count = 0;
  const auto item = itemsize(static_cast<DType>(tensor.dtype()));
  const Span<const std::int64_t> shape{tensor.shape().data(), static_cast<std::size_t>(tensor.shape_size())};
  if (!element_count(shape, item, count) || tensor.byte_length() != count * item) {
    return field_error(tensor, "shape",
                       shape_text(tensor) + " of " + std::string(to_string(static_cast<DType>(tensor.dtype()))) +
                           " does not fit byte_length " + std::to_string(tensor.byte_length()));
  }
  return {};
}

// Where keys are few, comparing with all before beats a set, which would allocate.
bool key_seen_before(const TensorFields& tensors, int index) {
  for (int i = 0; i < index; ++i) {
    if (tensors[i].key() == tensors[index].key()) return true;
  }
  return false;
}

}  // namespace

bool element_count(Span<const std::int64_t> shape, std::size_t item_bytes, std::uint64_t& count) noexcept {
  constexpr auto limit = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  std::uint64_t product = 1;  // of the dimensions that are not 0
  bool zero = false;
  for (const auto dimension : shape) {
    if (dimension < 0) return false;
    if (dimension == 0) {
      zero = true;
    } else if (product > limit / item_bytes / static_cast<std::uint64_t>(dimension)) {
      return false;
    } else {
      product *= static_cast<std::uint64_t>(dimension);
    }
  }
  count = zero ? 0 : product;
  return true;
}

bool is_utf8(std::string_view text) noexcept {
  std::size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i++]);
    if (lead < 0x80) continue;
    int follow;
    std::uint32_t code;
    std::uint32_t least;
    if ((lead & 0xE0) == 0xC0) {
      follow = 1, code = lead & 0x1F, least = 0x80;
    } else if ((lead & 0xF0) == 0xE0) {
      follow = 2, code = lead & 0x0F, least = 0x800;
    } else if ((lead & 0xF8) == 0xF0) {
      follow = 3, code = lead & 0x07, least = 0x10000;
    } else {
      return false;
    }
    for (; follow > 0; --follow) {
      if (i == text.size()) return false;
      const auto next = static_cast<unsigned char>(text[i++]);
      if ((next & 0xC0) != 0x80) return false;
      code = code << 6 | (next & 0x3F);
    }
    if (code < least || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return false;
  }
  return true;
}

std::string check_content(const v1::Tensor& tensor, const std::byte* bytes) {
  auto error = check_key(tensor);
  if (error.empty()) error = check_types(tensor);
  if (error.empty()) error = check_shape(tensor, bytes);
  return error;
}

std::string check_tensors(const TensorFields& tensors, Span<const Frame> payload) {
  const bool few = tensors.size() <= 16;
  std::unordered_set<std::string_view> keys;
  for (int i = 0; i < tensors.size(); ++i) {
    const auto& tensor = tensors[i];
    auto error = check_key(tensor);
    if (!error.empty()) return error;
    if (few ? key_seen_before(tensors, i) : !keys.insert(tensor.key()).second)
      return field_error(tensor, "key", "is used twice in one message");
    error = check_types(tensor);
    if (!error.empty()) return error;
    if (tensor.frame() >= payload.size()) {
      return field_error(tensor, "frame",
                         std::to_string(tensor.frame()) + " is past the last of " + std::to_string(payload.size()) +
                             " payload frames");
    }
    const auto& frame = payload[tensor.frame()];
    if (tensor.byte_offset() > frame.size()) {
      return field_error(tensor, "byte_offset",
                         std::to_string(tensor.byte_offset()) + " is past the end of its frame of " +
                             std::to_string(frame.size()) + " bytes");
    }
    if (tensor.byte_length() > frame.size() - tensor.byte_offset()) {
      return field_error(tensor, "byte_length",
                         std::to_string(tensor.byte_length()) + " at byte_offset " +
                             std::to_string(tensor.byte_offset()) + " runs past its frame of " +
                             std::to_string(frame.size()) + " bytes");
    }
    error = check_shape(tensor, frame.data() + tensor.byte_offset());
    if (!error.empty()) return error;
  }
  return {};
}

void lay_out(v1::Observation& observation, const std::vector<Source>& sources, bool one_frame,
             std::size_t own_frame_bytes, std::vector<Frame>& payload) {
  payload.clear();
  const auto shares = [&](const Source& source) { return one_frame || source.byte_length < own_frame_bytes; };

  // The shared frame is the first that any tensor asks for, so that no frame is empty without need.
  std::size_t shared_size = 0;
  std::uint32_t frames = 0;
  std::uint32_t shared_frame = 0;
  bool shared = false;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    auto* tensor = observation.mutable_tensors(static_cast<int>(i));
    tensor->set_byte_length(sources[i].byte_length);
    if (shares(sources[i])) {
      if (!shared) shared_frame = frames++;
      shared = true;
      tensor->set_frame(shared_frame);
      tensor->set_byte_offset(aligned(shared_size));
      shared_size = aligned(shared_size) + sources[i].byte_length;
    } else {
      tensor->set_frame(frames++);
      tensor->set_byte_offset(0);
    }
  }

  for (std::uint32_t i = 0; i < std::max(frames, 1u); ++i) payload.emplace_back();
  if (shared) payload[shared_frame] = Frame(shared_size);
  std::size_t end = 0;  // of what is written of the shared frame
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const auto& tensor = observation.tensors(static_cast<int>(i));
    auto& frame = payload[tensor.frame()];
    if (shares(sources[i])) {
      // Gaps are zeroed: what was in that memory before is nobody else's business.
      std::memset(frame.data() + end, 0, tensor.byte_offset() - end);
      end = tensor.byte_offset() + sources[i].byte_length;
    } else {
      frame = Frame(sources[i].byte_length);
    }
    if (sources[i].byte_length > 0) {
      std::memcpy(frame.data() + tensor.byte_offset(), sources[i].data, sources[i].byte_length);
    }
  }
}

Frame encode(const v1::Observation& observation) {
  Frame frame(observation.ByteSizeLong());
  observation.SerializeWithCachedSizesToArray(reinterpret_cast<std::uint8_t*>(frame.data()));
  return frame;
}

namespace {

/// A number of ms; 0, which says nothing, in the place of what is none.
float hint(float ms) noexcept { return std::isfinite(ms) && ms > 0 ? ms : 0; }

}  // namespace

bool decode(detail::Message& message) {
  auto& fields = message.fields;
  const auto size = message.envelope.size();
  bool parsed = false;
  if (size <= static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    google::protobuf::io::CodedInputStream input(reinterpret_cast<const std::uint8_t*>(message.envelope.data()),
                                                 static_cast<int>(size));
    // Merge, not Parse, which clears first and with that frees the submessages that reset() keeps.
    parsed = fields.MergeFromCodedStream(&input) && input.ConsumedEntireMessage();
  }
  if (!parsed) {
    fields.set_request_id(0);  // what was read before the failure is not to be trusted
    message.error = "the reply's envelope of " + std::to_string(size) + " bytes is not a ModelResponse";
    return false;
  }
  message.error = check_tensors(fields.tensors(), {message.payload.data(), message.payload.size()});
  if (message.error.empty() && message.payload.empty()) {
    message.error = "the reply has no payload frame: at least one must follow the envelope";
  }
  if (!message.error.empty()) return false;
  make_views(message);

  for (const auto& entry : fields.metadata()) message.metadata.push_back({entry.first, entry.second});
  std::sort(message.metadata.begin(), message.metadata.end(),
            [](const MetadataEntry& left, const MetadataEntry& right) { return left.key < right.key; });
  message.status = static_cast<Status>(static_cast<std::int32_t>(fields.status()));
  message.reason = static_cast<Reason>(static_cast<std::int32_t>(fields.reason()));
  message.error.assign(fields.error());
  message.request_id = fields.request_id();
  // Never to ask again is a hint too.
  message.retry_after_ms = std::isinf(fields.retry_after_ms()) && fields.retry_after_ms() > 0
                               ? std::numeric_limits<float>::max()
                               : hint(fields.retry_after_ms());
  fields.set_phase_shift_ms(hint(fields.phase_shift_ms()));
  message.observation_timestamp_ns = fields.observation_timestamp_ns();
  return true;
}

namespace {

bool needs_copy(const v1::Tensor& tensor, const std::byte* bytes) noexcept {
  if (!is_raw(tensor) || tensor.byte_length() == 0) return false;
  if (reinterpret_cast<std::uintptr_t>(bytes) % itemsize(static_cast<DType>(tensor.dtype())) != 0) return true;
  // A C++ bool may only hold 0 or 1; the wire's may hold any byte.
  return tensor.dtype() == v1::DTYPE_BOOL &&
         std::any_of(bytes, bytes + tensor.byte_length(), [](std::byte value) { return value > std::byte{1}; });
}

}  // namespace

void make_views(detail::Message& message) {
  alignas(tensor_alignment) static constexpr std::byte nowhere[tensor_alignment] = {};
  const auto at = [&](const v1::Tensor& tensor) {
    return message.payload[tensor.frame()].data() + tensor.byte_offset();
  };

  std::size_t copied = 0;
  for (const auto& tensor : message.fields.tensors()) {
    if (needs_copy(tensor, at(tensor))) copied += aligned(tensor.byte_length());
  }
  message.storage.resize(copied / tensor_alignment);

  auto* free = reinterpret_cast<std::byte*>(message.storage.data());
  for (const auto& tensor : message.fields.tensors()) {
    const std::byte* bytes = at(tensor);
    // No elements still means a valid, aligned pointer: {nullptr, 0} stands for a missing tensor.
    const std::byte* elements = tensor.byte_length() == 0 ? nowhere : bytes;
    if (needs_copy(tensor, bytes)) {
      if (tensor.dtype() == v1::DTYPE_BOOL) {
        std::transform(bytes, bytes + tensor.byte_length(), free,
                       [](std::byte value) { return value == std::byte{0} ? std::byte{0} : std::byte{1}; });
      } else {
        std::memcpy(free, bytes, tensor.byte_length());
      }
      elements = free;
      free += aligned(tensor.byte_length());
    }
    const auto dtype = static_cast<DType>(tensor.dtype());
    const auto encoding = is_raw(tensor) ? Encoding::Raw : static_cast<Encoding>(tensor.encoding());
    std::uint64_t count = 0;
    const Span<const std::int64_t> shape{tensor.shape().data(), static_cast<std::size_t>(tensor.shape_size())};
    element_count(shape, itemsize(dtype), count);
    message.tensors.emplace_back(tensor.key(), dtype, encoding, shape,
                                 Span<const std::byte>{bytes, static_cast<std::size_t>(tensor.byte_length())}, elements,
                                 count, tensor.timestamp_ns());
  }
}

}  // namespace inferential::wire
