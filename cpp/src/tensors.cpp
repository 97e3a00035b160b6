#include <cstring>
#include <new>

#include "inferential/tensor.hpp"
#include "message.hpp"
#include "wire.hpp"

namespace inferential {

Error Tensor::type_error(DType wanted) const {
  if (!*this) return {ErrorCode::MissingTensor, std::nullopt, "there is no such tensor"};
  std::string text = "tensor '";
  text.append(key_).append("' ");
  if (encoding_ != Encoding::Raw) {
    text.append("is a ").append(to_string(encoding_)).append(" file: use bytes() and decode it");
  } else {
    text.append("is ").append(to_string(dtype_)).append(", not ").append(to_string(wanted));
  }
  return {ErrorCode::WrongType, std::nullopt, std::move(text)};
}

Span<const Tensor> Tensors::all() const noexcept {
  if (!message_) return {};
  return {message_->tensors.data(), message_->tensors.size()};
}

Tensor Tensors::operator[](std::string_view key) const noexcept {
  for (const auto& tensor : all()) {
    if (tensor.key() == key) return tensor;
  }
  return {};
}

Result<Tensor> Tensors::find(std::string_view key) const {
  if (const Tensor tensor = (*this)[key]) return tensor;
  std::string text = "no tensor '";
  text.append(key).append("'; there ");
  if (empty()) {
    text += "are none";
  } else {
    text += "is ";
    for (std::size_t i = 0; i < size(); ++i) text.append(i == 0 ? "'" : ", '").append(all()[i].key()).append("'");
  }
  return Error{ErrorCode::MissingTensor, std::nullopt, std::move(text)};
}

// ---- TensorsBuilder

struct TensorsBuilder::State {
  v1::Observation fields;  // the wire's own layout and checks serve here as well
  std::vector<std::vector<std::byte>> bytes;
  std::string error;
};

TensorsBuilder::TensorsBuilder() : state_(std::make_unique<State>()) {}
TensorsBuilder::~TensorsBuilder() = default;
TensorsBuilder::TensorsBuilder(TensorsBuilder&&) noexcept = default;
TensorsBuilder& TensorsBuilder::operator=(TensorsBuilder&&) noexcept = default;

TensorsBuilder& TensorsBuilder::add_zeros(std::string_view key, DType dtype, Shape shape) {
  std::uint64_t count = 0;
  // A shape that cannot be counted fails add_bytes' own check, with nothing allocated for it.
  const bool countable = itemsize(dtype) > 0 && wire::element_count(shape.dimensions(), itemsize(dtype), count);
  const std::vector<std::byte> zeros(countable ? count * itemsize(dtype) : 0);
  return add_bytes(key, dtype, zeros.data(), zeros.size(), shape);
}

TensorsBuilder& TensorsBuilder::add_bytes(std::string_view key, DType dtype, const void* data, std::size_t byte_length,
                                          Shape shape) {
  auto* tensor = state_->fields.add_tensors();
  tensor->mutable_key()->assign(key);
  tensor->set_dtype(static_cast<v1::DType>(dtype));
  for (const auto dimension : shape.dimensions()) tensor->add_shape(dimension);
  tensor->set_encoding(v1::ENCODING_RAW);
  tensor->set_byte_length(byte_length);
  if (state_->error.empty() && data == nullptr && byte_length > 0) {
    state_->error = "tensor '" + std::string(key) + "': data is a null pointer";
  }
  if (state_->error.empty()) state_->error = wire::check_content(*tensor, nullptr);
  auto& copy = state_->bytes.emplace_back(state_->error.empty() ? byte_length : 0);
  if (!copy.empty()) std::memcpy(copy.data(), data, copy.size());
  return *this;
}

Result<Tensors> TensorsBuilder::build() {
  const auto state = std::exchange(state_, std::make_unique<State>());
  if (!state->error.empty()) return Error{ErrorCode::InvalidArgument, std::nullopt, state->error};

  detail::MessageRef message(new detail::Message);
  message->references.store(1, std::memory_order_relaxed);
  std::vector<wire::Source> sources;
  for (const auto& bytes : state->bytes) sources.push_back({bytes.data(), bytes.size()});
  wire::lay_out(state->fields, sources, true, 0, message->payload);
  message->fields.mutable_tensors()->Swap(state->fields.mutable_tensors());
  message->error = wire::check_tensors(message->fields.tensors(), {message->payload.data(), message->payload.size()});
  if (!message->error.empty()) return Error{ErrorCode::InvalidArgument, std::nullopt, message->error};
  wire::make_views(*message);
  return Tensors(std::move(message));
}

}  // namespace inferential
