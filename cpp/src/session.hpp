#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "inferential/options.hpp"
#include "inferential/status.hpp"
#include "message.hpp"
#include "ring.hpp"

namespace inferential {

/// What one client knows and decides: which requests are outstanding, which reply ends which, what get_result
/// gives out. It does no I/O and reads no clock; docs/protocol.md, section 6, is its specification.
class Session {
 public:
  using ModelIndex = std::uint32_t;

  struct Options {
    Time request_timeout{std::chrono::seconds(30)};
    std::size_t inbox_replies = 65536;
    bool hold_off = true;
  };

  Session(Options options, std::shared_ptr<MessagePool> pool);

  // ---- link

  LinkState link_state() const noexcept { return link_; }
  void link_up() noexcept;
  void link_down(Time now);
  void close(Time now);

  enum class Server { Unknown, V1, V2 };
  Server server() const noexcept { return server_; }
  /// True once: the moment to say that the server speaks v1.
  bool take_v1_notice() noexcept;

  // ---- sending

  /// The inbox of that id; the same for equal ids.
  ModelIndex model(std::string_view id);
  /// Likewise, where there is one.
  std::optional<ModelIndex> find_model(std::string_view id) const noexcept;

  struct Ticket {
    enum class Route { Transmit, Local, NotSent };
    Route route;
    std::uint64_t request_id;
  };
  /// Takes the next request id. Transmit: hand it to the transport and call transmitted(). Local: answered already.
  Ticket open_observe(ModelIndex model, std::string_view slot, float step_ms, std::uint64_t timestamp_ns, Time now);
  Ticket open_ping(std::uint64_t timestamp_ns, Time now);
  /// What became of a Transmit ticket.
  void transmitted(std::uint64_t request_id, bool sent) noexcept;

  bool may_cancel(ModelIndex model, std::uint64_t request_id) const noexcept;

  // ---- receiving

  /// A received message with its frames filled in; `framed` is false where the frames are not those of a reply.
  void receive(detail::MessageRef message, bool framed, Time now);
  /// Ends what has been outstanding for request_timeout.
  void expire(Time now);
  /// When expire() next has something to do.
  std::optional<Time> next_expiry() noexcept;

  struct Taken {
    enum class Outcome { Reply, Wait, NothingOutstanding, NotOk };
    Outcome outcome;
    detail::MessageRef message;  // of Reply and NotOk
  };
  /// Whether, as far as is known, there is nothing to take and something may still come.
  bool awaits(ModelIndex model) const noexcept {
    return models_[model].inbox.empty() && models_[model].outstanding > 0;
  }
  /// One step of get_result; Wait where it must wait for something to arrive.
  Taken take_result(ModelIndex model);
  /// The end of get_result's wait: everything of the model outstanding ends TIMED_OUT.
  void abandon(ModelIndex model);
  /// One step of next_reply.
  Taken take_next(ModelIndex model);

  /// The reply of that ping, or nothing yet.
  detail::MessageRef take_ping_reply(std::uint64_t request_id);
  bool is_outstanding(std::uint64_t request_id) const noexcept;
  void abandon_ping(std::uint64_t request_id) noexcept;

  /// The last hint that nobody has taken yet; 0 without one.
  float take_phase_shift_ms(ModelIndex model) noexcept { return std::exchange(models_[model].phase_shift_ms, 0.0f); }

  std::optional<Status> last_status(ModelIndex model) const noexcept { return models_[model].last_status; }
  const std::string& last_error(ModelIndex model) const noexcept { return models_[model].last_error; }
  const Counters& counters() const noexcept { return counters_; }
  /// How many slots of it are remembered.
  std::size_t slots_known(ModelIndex model) const noexcept { return models_[model].slot_indices.size(); }

 private:
  static constexpr ModelIndex ping_index = ~ModelIndex{0};

  struct Request {
    Time sent_at{0};
    std::uint64_t timestamp_ns = 0;
    ModelIndex model = 0;
    std::uint32_t slot = 0;
    float step_ms = 0;
    bool outstanding = false;
  };

  struct Slot {
    std::string name;
    std::uint64_t delivered = 0;  // the greatest request id given out through get_result
  };

  struct HoldOff {
    Status status;
    Reason reason;
    Time until;
    std::string error;
  };

  struct ModelState {
    std::string id;
    Ring<detail::MessageRef> inbox;
    std::map<std::string, std::uint32_t, std::less<>> slot_indices;
    std::vector<Slot> slots;
    std::vector<std::uint32_t> free_slots;
    std::size_t most_slots = 256;  // before those that are not in use are forgotten
    std::size_t outstanding = 0;
    std::optional<HoldOff> hold_off;
    float phase_shift_ms = 0;
    std::optional<Status> last_status;
    std::string last_error;
  };

  std::uint32_t slot_index(ModelIndex model, std::string_view name);
  void forget_slots(ModelIndex model);
  std::uint64_t open(Request request);
  Request* find(std::uint64_t request_id) noexcept;
  const Request* find(std::uint64_t request_id) const noexcept;
  void end(Request& request) noexcept;
  void drop_ended() noexcept;
  void finish(std::uint64_t request_id, Request request, detail::MessageRef message, Time now);
  void finish_local(std::uint64_t request_id, const Request& request, Status status, std::string_view error, Time now);
  void end_all(std::string_view error, Time now);
  detail::MessageRef local_reply(std::uint64_t request_id, const Request& request, Status status,
                                 std::string_view error);
  void push(ModelState& model, detail::MessageRef message);
  std::uint64_t oldest_outstanding(std::string_view model_id) const noexcept;
  std::uint64_t newest_of(ModelIndex model) const noexcept;  // outstanding or in the inbox; 0 = none
  void set_last(ModelState& model, Status status, std::string_view error);

  Options options_;
  std::shared_ptr<MessagePool> pool_;
  LinkState link_ = LinkState::Connecting;
  Server server_ = Server::Unknown;
  bool v1_seen_ = false;
  bool v1_notice_due_ = false;

  // Ids are consecutive, so a request is found by its distance from the first one kept.
  Ring<Request> requests_;
  std::uint64_t first_id_ = 1;
  std::uint64_t next_id_ = 1;

  std::vector<ModelState> models_;
  std::uint64_t ping_id_ = 0;
  detail::MessageRef ping_reply_;
  Counters counters_;
};

}  // namespace inferential
