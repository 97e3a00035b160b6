#pragma once

// Replies as a server would send them, for tests.

#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cpp/src/message.hpp"
#include "cpp/src/wire.hpp"

namespace inferential::test {

inline Frame frame_of(std::string_view bytes) {
  Frame frame(bytes.size());
  if (!bytes.empty()) std::memcpy(frame.data(), bytes.data(), bytes.size());
  return frame;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

/// A reply with one FLOAT32 tensor `actions` in `payload`, or without tensors for an empty payload.
inline v1::ModelResponse response(std::uint64_t request_id, std::string_view model_id, Status status = Status::Ok,
                                  const std::vector<float>& actions = {}) {
  v1::ModelResponse fields;
  fields.set_request_id(request_id);
  fields.mutable_model_id()->assign(model_id);
  fields.set_status(static_cast<v1::Status>(status));
  fields.set_protocol_version(request_id == 0 ? 0 : 2);
  if (!actions.empty()) {
    auto* tensor = fields.add_tensors();
    tensor->set_key("actions");
    tensor->set_dtype(v1::DTYPE_FLOAT32);
    tensor->set_encoding(v1::ENCODING_RAW);
    tensor->add_shape(static_cast<std::int64_t>(actions.size()));
    tensor->set_byte_length(actions.size() * sizeof(float));
  }
  return fields;
}

inline detail::MessageRef message_of(MessagePool& pool, std::string_view envelope,
                                     const std::vector<std::string>& payload) {
  auto message = pool.acquire();
  message->envelope = frame_of(envelope);
  for (const auto& bytes : payload) message->payload.push_back(frame_of(bytes));
  return message;
}

inline detail::MessageRef message_of(MessagePool& pool, const v1::ModelResponse& fields,
                                     const std::vector<std::string>& payload = {""}) {
  return message_of(pool, fields.SerializeAsString(), payload);
}

}  // namespace inferential::test
