#pragma once

// The whole SDK: connect, observe, get a result or a declared fallback.
//
// Thread rules. A Connection and every Model and Observation made from it are one unit that one thread uses at
// a time; it may move between threads freely between calls. A call that finds another one in progress does
// nothing and gives ConcurrentUse - which also makes a second waiter on a model an error. Replies, Tensors and
// Actions are immutable and belong to whoever holds them, on any thread, for as long as they like.
//
// An object that was moved from may be assigned to or destroyed, nothing else.
//
// Calls do not throw: where memory runs out they give OutOfMemory. Constructors throw for want of memory, and Rate
// and Fallback for arguments out of range.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "inferential/error.hpp"
#include "inferential/export.hpp"
#include "inferential/options.hpp"
#include "inferential/rate.hpp"
#include "inferential/reply.hpp"
#include "inferential/status.hpp"
#include "inferential/tensor.hpp"
#include "inferential/version.hpp"

namespace inferential {

namespace detail {
class Core;
struct Draft;
class Watchdog;
}  // namespace detail

/// One observation being put together: `model.observe().tensor(...).send()`.
///
/// Tensor data is not copied before send(): it must stay valid until send() returns. Keys, strings and
/// shapes are copied at once. The first error made on the way is what send() returns.
class Observation {
 public:
  INFERENTIAL_API Observation(Observation&&) noexcept;
  INFERENTIAL_API Observation& operator=(Observation&&) noexcept;
  INFERENTIAL_API ~Observation();

  /// 0..1
  INFERENTIAL_API Observation& urgency(float value) noexcept;
  /// Actions that the client still has.
  INFERENTIAL_API Observation& steps_remaining(std::uint32_t steps) noexcept;
  /// Instead of the model handle's; 0 = highest, at most 1000.
  INFERENTIAL_API Observation& priority(std::uint32_t level) noexcept;
  /// Instead of the model handle's; 0 = the server's setting.
  INFERENTIAL_API Observation& latency_budget_ms(float budget_ms) noexcept;
  /// Instead of the model handle's.
  INFERENTIAL_API Observation& step_ms(float duration_ms) noexcept;
  /// May take the place of a queued one of the same connection, model and slot.
  INFERENTIAL_API Observation& latest_only(bool on = true) noexcept;
  /// Which body behind this connection; at most 256 bytes.
  INFERENTIAL_API Observation& slot(std::string_view name) noexcept;
  /// A string for the model; the key must not be a tensor's.
  INFERENTIAL_API Observation& metadata(std::string_view key, std::string_view value) noexcept;

  /// `count` elements in C order; product(shape) must be count.
  template <class T>
  Observation& tensor(std::string_view key, const T* data, std::size_t count, Shape shape,
                      TensorOptions options = {}) noexcept {
    return tensor_bytes(key, dtype_of<T>(), data, count * sizeof(T), shape, options);
  }
  Observation& tensor_f32(std::string_view key, const float* data, std::size_t count, Shape shape,
                          TensorOptions options = {}) noexcept {
    return tensor(key, data, count, shape, options);
  }
  /// One dimension, all of the container (which must outlive send()).
  template <class T>
  Observation& tensor(std::string_view key, const std::vector<T>& data, TensorOptions options = {}) noexcept {
    static_assert(!std::is_same_v<T, bool>,
                  "std::vector<bool> has no contiguous elements: use a vector of std::uint8_t and tensor_bytes");
    return tensor(key, data.data(), data.size(), {static_cast<std::int64_t>(data.size())}, options);
  }
  /// For a dtype known only at run time; byte_length must be product(shape) x itemsize(dtype).
  INFERENTIAL_API Observation& tensor_bytes(std::string_view key, DType dtype, const void* data,
                                            std::size_t byte_length, Shape shape, TensorOptions options = {}) noexcept;
  /// A JPEG or PNG file's bytes; the shape is (height, width, channels) of the decoded image.
  INFERENTIAL_API Observation& tensor_encoded(std::string_view key, Encoding encoding, const void* data,
                                              std::size_t byte_length, Shape shape,
                                              TensorOptions options = {}) noexcept;

  /// Sends it. Returns the request id, or why it was not sent (NotSent: the link is not up or the queue is full).
  /// Waits only where it is the connection's first send, for the handshake, at most connect_timeout_ms.
  /// The builder is spent afterwards.
  INFERENTIAL_API Result<std::uint64_t> send() noexcept;

 private:
  friend class Model;
  Observation(std::shared_ptr<detail::Core> core, std::unique_ptr<detail::Draft> draft) noexcept;

  std::shared_ptr<detail::Core> core_;
  std::unique_ptr<detail::Draft> draft_;
};

/// A model behind a connection. Movable. One that outlives its connection gives Closed.
/// Several handles of one id share one inbox.
class Model {
 public:
  INFERENTIAL_API Model(Model&&) noexcept;
  INFERENTIAL_API Model& operator=(Model&&) noexcept;
  INFERENTIAL_API ~Model();

  INFERENTIAL_API std::string_view id() const noexcept;

  [[nodiscard]] INFERENTIAL_API Observation observe() noexcept;

  // Timeouts are in ms and may be fractions. One below 0 is as 0: it only looks. NaN is an InvalidArgument.

  /// For control loops: the first OK reply newer than the last one delivered for its slot. Without one, the
  /// error says why: TimedOut (everything of this model outstanding was abandoned; not with timeout 0),
  /// NothingOutstanding, NotOk with the status, Closed, ConcurrentUse.
  [[nodiscard]] INFERENTIAL_API Result<Reply> get_result(double timeout_ms = 100) noexcept;

  /// For pipelines: every terminal reply with its status, in order of arrival. A timeout abandons nothing.
  [[nodiscard]] INFERENTIAL_API Result<Reply> next_reply(double timeout_ms = 100) noexcept;

  /// get_result with the declared fallback: always an action, never later than the timeout. (One of Source::None where
  /// another thread is in a call.)
  [[nodiscard]] INFERENTIAL_API Action act(double timeout_ms) noexcept;
  /// Replaces ModelOptions::fallback; false where another call is in progress.
  INFERENTIAL_API bool set_fallback(Fallback fallback) noexcept;

  /// Asks the server to drop an outstanding request, which then ends CANCELLED. True when that was sent: not
  /// for a request that is not outstanding, nor to a server not known to speak v2.
  INFERENTIAL_API bool cancel(std::uint64_t request_id) noexcept;

  /// The server's last hint, not taken yet, to delay the next observation by this, once: `rate.delay_ms(...)`. 0
  /// without one.
  INFERENTIAL_API double take_phase_shift_ms() noexcept;

  /// How the last get_result or act ended; nothing where nothing was outstanding, or a timeout of 0 found nothing yet.
  INFERENTIAL_API std::optional<Status> last_status() const noexcept;
  /// The words that came with last_status().
  INFERENTIAL_API std::string last_error() const;

 private:
  friend class Connection;
  Model(std::shared_ptr<detail::Core> core, std::string id, ModelOptions options);
  std::uint32_t index();
  std::optional<std::uint32_t> known_index() const noexcept;

  std::shared_ptr<detail::Core> core_;
  std::string id_;
  ModelOptions options_;
  std::unique_ptr<detail::Watchdog> watchdog_;
  std::optional<std::uint32_t> index_;  // the inbox, from the first call on
};

/// A link to one server. Movable; closes when destroyed, in less than a second whatever the server does, or when the
/// server's name is looked up if that is under way. In the child of a fork it is closed: each process makes its own.
class Connection {
 public:
  /// Neither blocks nor fails for want of a server. The address is tcp://HOST:PORT (`tcp://` may be left out, the port
  /// may not, and an IPv6 address stands in brackets) or ipc://PATH.
  /// A bad address, client id or option shows in the first send and in link_state(); open() tells at once.
  INFERENTIAL_API Connection(std::string_view address, std::string_view client_id, std::string_view client_type,
                             ConnectionOptions options = {});
  /// As the constructor; a bad address, id or option is an error here.
  [[nodiscard]] INFERENTIAL_API static Result<Connection> open(std::string_view address, std::string_view client_id,
                                                               std::string_view client_type,
                                                               ConnectionOptions options = {});
  INFERENTIAL_API Connection(Connection&&) noexcept;
  INFERENTIAL_API Connection& operator=(Connection&&) noexcept;
  INFERENTIAL_API ~Connection();

  /// A bad argument shows in the handle's first send.
  [[nodiscard]] INFERENTIAL_API Model model(std::string_view id, float latency_budget_ms = 50.0f,
                                            std::uint32_t priority = 1);
  [[nodiscard]] INFERENTIAL_API Model model(std::string_view id, ModelOptions options);

  /// Reads what has arrived, then tells. While another thread is in a call: the state as last seen.
  INFERENTIAL_API LinkState link_state() noexcept;
  /// Waits for the link to be up; false when it is not by then. A timeout not above 0, or NaN, only looks.
  INFERENTIAL_API bool wait_until_up(double timeout_ms) noexcept;

  /// A PING's reply: metadata `model:<id>` = `ready` | `not ready`, `server`, `protocol`. The timeout is as
  /// those of a Model.
  [[nodiscard]] INFERENTIAL_API Result<Reply> ping(double timeout_ms = 1000) noexcept;

  /// ConcurrentUse while another thread is in a call.
  [[nodiscard]] INFERENTIAL_API Result<Counters> counters() noexcept;

  /// Ends what is outstanding LINK_LOST. Where another thread is in a call, that call ends first and then closes.
  INFERENTIAL_API void close() noexcept;

 private:
  explicit Connection(std::shared_ptr<detail::Core> core) noexcept;

  std::shared_ptr<detail::Core> core_;
};

}  // namespace inferential
