#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

#include "inferential/export.hpp"
#include "inferential/status.hpp"
#include "inferential/tensor.hpp"

namespace inferential {

/// Where the time went, in ms on the server's clock.
struct Timing {
  float queue_ms = 0;            ///< arrival to dispatch
  float inference_ms = 0;        ///< the model's execution alone
  float server_ms = 0;           ///< arrival to send
  std::uint32_t batch_size = 0;  ///< requests that ran in the same call
  std::string_view replica;
};

/// One string of a reply's metadata.
struct MetadataEntry {
  std::string_view key;
  std::string_view value;
};

/// How one request ended: the model's tensors, or why there are none.
///
/// Immutable; copies share the received frames and may be read on any thread, and outlive the connection.
/// Every view it gives (strings, tensors, pointers) is valid while it or a copy of it lives.
class Reply {
 public:
  explicit Reply(detail::MessageRef message) noexcept : message_(std::move(message)) {}

  bool ok() const noexcept { return status() == Status::Ok; }
  INFERENTIAL_API Status status() const noexcept;
  INFERENTIAL_API Reason reason() const noexcept;
  /// What was wrong, where, and what would be right; empty when OK.
  INFERENTIAL_API std::string_view error() const noexcept;
  /// True where the SDK made the reply and the server did not send it: hold-off, TimedOut, LinkLost, an undecodable
  /// reply.
  INFERENTIAL_API bool is_local() const noexcept;

  INFERENTIAL_API std::uint64_t request_id() const noexcept;
  INFERENTIAL_API std::string_view model_id() const noexcept;
  INFERENTIAL_API std::string_view slot() const noexcept;
  INFERENTIAL_API std::string_view response_id() const noexcept;

  /// Sending of the observation to now.
  INFERENTIAL_API double age_ms() const noexcept;
  /// Sending of the observation to arrival of this reply.
  INFERENTIAL_API double round_trip_ms() const noexcept;
  INFERENTIAL_API Timing timing() const noexcept;
  /// A hint not to ask this model again before; 0 = none.
  INFERENTIAL_API float retry_after_ms() const noexcept;
  /// A hint to delay the next observation by this, once; 0 = none.
  INFERENTIAL_API float phase_shift_ms() const noexcept;
  /// The server's wall clock at sending, in ns.
  INFERENTIAL_API std::uint64_t timestamp_ns() const noexcept;
  /// This client's wall clock when it sent the observation, in ns.
  INFERENTIAL_API std::uint64_t observation_timestamp_ns() const noexcept;
  /// 0 from a v1 server.
  INFERENTIAL_API std::uint32_t protocol_version() const noexcept;

  /// The tensor of that key, or a missing one (false, and {nullptr, 0} from as<T>()).
  Tensor operator[](std::string_view key) const noexcept { return tensors()[key]; }
  [[nodiscard]] Result<Tensor> find(std::string_view key) const { return tensors().find(key); }
  template <class T>
  [[nodiscard]] Result<Span<const T>> get(std::string_view key) const {
    return tensors().template get<T>(key);
  }
  Tensors tensors() const noexcept { return Tensors(message_); }

  /// The model's strings, sorted by key.
  INFERENTIAL_API Span<const MetadataEntry> metadata() const noexcept;
  /// The string of that key; a null view where there is none.
  INFERENTIAL_API std::string_view metadata(std::string_view key) const noexcept;

 private:
  detail::MessageRef message_;
};

}  // namespace inferential
