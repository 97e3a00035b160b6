#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "inferential/reply.hpp"
#include "inferential/status.hpp"
#include "inferential/tensor.hpp"

namespace inferential {

/// Settings of a connection. The defaults are the protocol's.
struct ConnectionOptions {
  /// How long the first send waits for the handshake; later sends never wait.
  int connect_timeout_ms = 1000;
  /// A request without a reply for so long ends TimedOut.
  int request_timeout_ms = 30000;
  /// 300..1000; a silent peer is given up after three of them.
  int heartbeat_interval_ms = 1000;
  int reconnect_interval_ms = 50;
  int reconnect_interval_max_ms = 500;
  /// How long closing may wait for what is still queued to leave.
  int linger_ms = 200;
  int send_queue_messages = 1000;
  /// Larger messages are refused here, before a server would drop the connection for them.
  std::int64_t max_message_bytes = 256LL * 1024 * 1024;
  /// Tensors of at least this size travel as frames of their own, once the server is known to speak v2.
  std::size_t own_frame_bytes = 64 * 1024;
  /// Replies that wait in a model's inbox; past that the oldest is dropped.
  std::size_t inbox_replies = 65536;
  /// Answer requests locally while a model's retry_after_ms runs.
  bool hold_off = true;
  /// Called on the thread that uses the connection, at the end of the call that noticed; may use the connection, must
  /// not throw.
  std::function<void(LinkState)> on_link_change;
  /// Rare notices (a v1 server, say). Standard error where none is given. Must not throw.
  std::function<void(std::string_view)> on_notice;
};

/// What `act` does when there is no fresh answer. Making one throws std::invalid_argument for a time out of its range
/// or an empty function.
class Fallback {
 public:
  /// Gets the last fresh reply (nullptr where there was none) and its age in ms (0 then). Must not throw, and
  /// finds the connection in use.
  using Callback = std::function<Tensors(const Reply* last_fresh, double age_ms)>;

  /// Zeros shaped like the last fresh tensors, or like the template before the first.
  INFERENTIAL_API static Fallback zero(Tensors template_tensors = {});
  /// The last fresh tensors for at most max_ms (0 or more) after their arrival, zeros after that.
  INFERENTIAL_API static Fallback hold(double max_ms, Tensors template_tensors = {});
  /// The last fresh tensors, halved every half_life_ms (above 0) since their arrival; others than floating point ones
  /// stay.
  INFERENTIAL_API static Fallback decay(double half_life_ms, Tensors template_tensors = {});
  INFERENTIAL_API static Fallback callback(Callback function);

  enum class Kind { Zero, Hold, Decay, Callback };
  Kind kind() const noexcept { return kind_; }
  double duration_ms() const noexcept { return duration_ms_; }
  const Tensors& template_tensors() const noexcept { return template_; }
  const Callback& function() const noexcept { return function_; }

 private:
  Fallback(Kind kind, double duration_ms, Tensors template_tensors, Callback function)
      : kind_(kind),
        duration_ms_(duration_ms),
        template_(std::move(template_tensors)),
        function_(std::move(function)) {}

  Kind kind_;
  double duration_ms_;
  Tensors template_;
  Callback function_;
};

/// Settings of a model handle; observations may override the first three.
struct ModelOptions {
  float latency_budget_ms = 50.0f;  ///< 0 = the server's setting
  std::uint32_t priority = 1;       ///< 0 = highest, at most 1000
  float step_ms = 0;                ///< how long one action lasts; 0 = not told
  Fallback fallback = Fallback::zero();
};

/// Per tensor.
struct TensorOptions {
  std::uint64_t timestamp_ns = 0;  ///< wall clock when it was measured; 0 = not known
};

/// Where an action's tensors came from.
enum class Source { Fresh, Hold, Decay, Zero, Callback, None };

INFERENTIAL_API std::string_view to_string(Source source) noexcept;

/// What `act` returns: always an action.
struct Action {
  Source source = Source::None;
  Tensors tensors;
  double age_ms = 0;             ///< since the observation that the tensors answer was sent
  std::uint64_t steps_late = 0;  ///< entries of an action chunk that have already gone by
  std::optional<Reply> reply;    ///< the fresh one, or the last fresh one that the tensors come from
  std::optional<Error> error;    ///< why the action is not fresh, with the status behind it where there is one

  Tensor operator[](std::string_view key) const noexcept { return tensors[key]; }
};

/// What a connection has counted since it was made.
struct Counters {
  std::uint64_t sent = 0;
  std::uint64_t not_sent = 0;
  std::uint64_t ok = 0;
  std::uint64_t not_ok = 0;
  std::uint64_t late_replies = 0;
  std::uint64_t bad_replies = 0;
  std::uint64_t timed_out = 0;
  std::uint64_t link_lost = 0;
  std::uint64_t held_off = 0;
  std::uint64_t replies_dropped = 0;
  std::uint64_t reconnects = 0;
};

}  // namespace inferential
