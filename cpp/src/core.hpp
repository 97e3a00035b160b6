#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "inferential/options.hpp"
#include "message.hpp"
#include "session.hpp"
#include "transport.hpp"
#include "wire.hpp"

namespace inferential::detail {

/// An observation being put together, kept for reuse.
struct Draft {
  v1::Observation fields;
  std::vector<wire::Source> sources;
  std::vector<Frame> payload;
  std::optional<std::uint32_t> model;  // its inbox
  ErrorCode error_code = ErrorCode::InvalidArgument;
  std::string error;  // the first one; empty = none

  void reset();
};

/// The state behind a Connection, which its models share: session, transport and the rule that one
/// call is in progress at a time.
class Core {
 public:
  Core(std::string_view address, std::string_view client_id, std::string_view client_type, ConnectionOptions options);
  ~Core();

  /// Holds the connection for one call. False where another call holds it. At its end it reports
  /// link changes and carries out a close() that came meanwhile.
  class Call {
   public:
    explicit Call(Core& core) noexcept : Call(core, core.try_enter()) {}
    ~Call() {
      if (entered_) core_.leave();
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    explicit operator bool() const noexcept { return entered_; }

   protected:
    Call(Core& core, bool entered) noexcept : core_(core), entered_(entered) {}

   private:
    Core& core_;
    const bool entered_;
  };

  /// A call that waits for nothing, for threads that only watch: a call that finds it in progress waits for its end. A
  /// robot must not lose an action because somebody looked.
  class Glance : std::unique_lock<std::recursive_mutex>, public Call {
   public:
    explicit Glance(Core& core) noexcept
        : std::unique_lock<std::recursive_mutex>(core.glancing_, std::try_to_lock),
          Call(core, owns_lock() && core.claim()) {}
    using Call::operator bool;
  };

  /// Why the connection could not be set up; empty when it could. Never changes.
  const std::string& setup_error() const noexcept { return setup_error_; }
  const std::shared_ptr<MessagePool>& pool() const noexcept { return pool_; }
  void request_close() noexcept;
  LinkState last_link_state() const noexcept { return last_link_state_.load(); }

  // All below: with a Call in hand.

  std::unique_ptr<Draft> take_draft();
  void return_draft(std::unique_ptr<Draft> draft) noexcept;
  std::unique_ptr<Draft> new_draft() const;

  Session& session() noexcept { return session_; }
  enum class Reading {
    All,      ///< looks, reads all there is, ends what has become overdue
    Awaited,  ///< likewise, but reads no further where nothing is outstanding any more
    Known,    ///< reads what is known to be there: for callers that wait next, which looks
  };
  /// Reads what has arrived: frames first, then link events.
  void pump(Time now, Reading reading = Reading::All);
  Result<std::uint64_t> send(Draft& draft);
  bool cancel(Session::ModelIndex model, std::uint64_t request_id);
  Result<MessageRef> await_result(Session::ModelIndex model, double timeout_ms);
  Result<MessageRef> await_next(Session::ModelIndex model, double timeout_ms);
  Result<MessageRef> ping(double timeout_ms);
  bool await_up(double timeout_ms);

  static Time now() noexcept;
  static Error concurrent_use();
  static Error out_of_memory() noexcept { return {ErrorCode::OutOfMemory, std::nullopt, {}}; }

 private:
  bool try_enter() noexcept;
  bool claim() noexcept;
  void disown() noexcept;  // in the child of a fork
  void leave() noexcept;
  void close() noexcept;
  Error closed_error() const;
  Error nothing_outstanding() const;
  static Error no_timeout();
  Error not_sent_error(std::uint64_t request_id = 0) const;
  void await_first_handshake(double timeout_ms);
  bool tells_ids() const noexcept { return session_.server() == Session::Server::V2; }
  void note_link(LinkState before);
  void notice(std::string_view text) noexcept;
  Session::Taken await(Session::ModelIndex model, Session::Taken (Session::*take)(Session::ModelIndex), Time deadline);
  void wait(Time now, Time deadline);
  static Time deadline_after(Time now, double timeout_ms) noexcept;

  const ConnectionOptions options_;
  const std::string client_id_;
  const std::string client_type_;
  std::string setup_error_;
  std::shared_ptr<MessagePool> pool_ = std::make_shared<MessagePool>();
  Session session_;
  Transport transport_;

  std::atomic<bool> busy_{false};
  std::recursive_mutex glancing_;  // recursive: a callback may ask for the state of the link
  std::atomic<bool> close_requested_{false};
  std::atomic<LinkState> last_link_state_{LinkState::Connecting};
  bool closed_ = false;
  bool inherited_ = false;  // by a fork
  bool waited_for_handshake_ = false;
  Time looked_at_{0};
  std::vector<std::unique_ptr<Draft>> drafts_;
  bool link_changed_ = false;  // in this call
  // Not reported yet. Whoever reports goes on until there is none, others leave theirs to it: so they come in order.
  std::mutex link_changes_mutex_;
  std::vector<LinkState> link_changes_;
  bool reporting_ = false;
  std::vector<Transport::LinkEvent> link_events_;
};

}  // namespace inferential::detail
