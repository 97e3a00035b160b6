#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "frame.hpp"
#include "inferential/reply.hpp"
#include "inferential/tensor.hpp"
#include "inferential/v1/inferential.pb.h"

namespace inferential {

/// Monotonic time; always an argument below the client layer.
using Time = std::chrono::nanoseconds;

class MessagePool;

namespace detail {

/// What stands behind a Reply or a Tensors: one received message, or one made here.
/// Written while it has one owner, immutable afterwards.
struct Message {
  // As received.
  Frame envelope;
  std::vector<Frame> payload;
  v1::ModelResponse fields;  // reused: strings and tensors keep their capacity

  // As decoded. Views point into the members above and into `storage`.
  std::vector<Tensor> tensors;
  std::vector<std::uint64_t> storage;  // what had to be copied: misaligned tensors, or tensors made here
  std::vector<MetadataEntry> metadata;

  // The outcome: of the wire, or local.
  Status status = Status::Ok;
  Reason reason = Reason::None;
  std::string error;
  bool local = false;
  std::uint64_t request_id = 0;

  // What the session knows of the request.
  std::string slot;
  std::uint32_t slot_index = 0;
  float step_ms = 0;
  float retry_after_ms = 0;
  std::uint64_t observation_timestamp_ns = 0;
  Time sent_at{0};
  Time received_at{0};

  MessageRef based_on;  // keeps alive the message that this one's keys and shapes are views of

  std::shared_ptr<MessagePool> pool;
  mutable std::atomic<std::uint32_t> references{0};

  void reset();
};

}  // namespace detail

/// Keeps messages for reuse, so that a reply costs no allocation in the steady state.
/// Replies may be dropped on any thread, hence the lock.
class MessagePool : public std::enable_shared_from_this<MessagePool> {
 public:
  detail::MessageRef acquire();
  void recycle(detail::Message* message) noexcept;

 private:
  static constexpr std::size_t kept = 64;

  std::mutex mutex_;
  std::vector<std::unique_ptr<detail::Message>> free_;
};

}  // namespace inferential
