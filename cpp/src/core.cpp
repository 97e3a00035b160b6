#include "core.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <utility>

namespace inferential::detail {
namespace {

std::string check_name(std::string_view what, std::string_view name) {
  std::string error;
  if (name.size() > wire::max_name_bytes) {
    error.append(what).append(" has ").append(std::to_string(name.size())).append(" bytes, at most 256 are allowed");
  } else if (!wire::is_utf8(name)) {
    error.append(what).append(" is not UTF-8");
  }
  return error;
}

// News of the link takes longer to come, and a robot cannot act on it sooner: a send that follows a look so soon does
// without one. If it finds the link broken it looks at once.
constexpr Time look_every = std::chrono::microseconds(100);

Error ended_error(const char* what, const Message& reply) {
  std::string text(what);
  text.append(" ended ").append(to_string(reply.status));
  if (!reply.error.empty()) text.append(": ").append(reply.error);
  return {ErrorCode::NotOk, reply.status, std::move(text)};
}

std::string check_client(std::string_view id, std::string_view type) {
  if (id.empty()) return "client_id must not be empty";
  auto error = check_name("client_id", id);
  return error.empty() ? check_name("client_type", type) : error;
}

Session::Options session_options(const ConnectionOptions& options) {
  return {std::chrono::milliseconds(options.request_timeout_ms), std::max<std::size_t>(options.inbox_replies, 1),
          options.hold_off};
}

std::uint64_t wall_clock_ns() noexcept {
  const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(since_epoch).count());
}

std::string check_draft(const v1::Observation& fields) {
  if (fields.model_id().empty()) return "model_id must not be empty";
  auto error = check_name("model_id", fields.model_id());
  if (error.empty()) error = check_name("slot", fields.slot());
  if (!error.empty()) return error;
  if (fields.priority() > wire::max_priority) {
    return "priority is " + std::to_string(fields.priority()) + ", must be 0 to 1000";
  }
  // Written so that NaN fails.
  if (!(fields.urgency() >= 0 && fields.urgency() <= 1)) {
    return "urgency is " + std::to_string(fields.urgency()) + ", must be 0 to 1";
  }
  if (!(fields.latency_budget_ms() >= 0 && std::isfinite(fields.latency_budget_ms()))) {
    return "latency_budget_ms is " + std::to_string(fields.latency_budget_ms()) + ", must be finite and 0 or more";
  }
  if (!(fields.step_ms() >= 0 && std::isfinite(fields.step_ms()))) {
    return "step_ms is " + std::to_string(fields.step_ms()) + ", must be finite and 0 or more";
  }
  if (fields.tensors_size() > wire::max_tensors) {
    return "tensors: " + std::to_string(fields.tensors_size()) + " of them, at most 256 are allowed";
  }
  if (fields.metadata().size() > wire::max_metadata) {
    return "metadata: " + std::to_string(fields.metadata().size()) + " entries, at most 4096 are allowed";
  }
  for (int i = 0; i < fields.tensors_size(); ++i) {
    const auto& key = fields.tensors(i).key();
    for (int j = 0; j < i; ++j) {
      if (fields.tensors(j).key() == key) return "tensor '" + std::string(key) + "': key is used twice";
    }
    if (!fields.metadata().empty() && fields.metadata().count(key) > 0) {
      return "metadata key '" + std::string(key) + "' is also a tensor's key: a model could not tell them apart";
    }
  }
  return {};
}

}  // namespace

void Draft::reset() {
  // As in Message::reset(): what holds memory keeps it, the client stays for good.
  fields.set_timestamp_ns(0);
  fields.set_urgency(0);
  fields.clear_tensors();
  fields.mutable_model_id()->clear();
  fields.clear_steps_remaining();
  fields.clear_metadata();
  fields.set_priority(0);
  fields.set_request_id(0);
  fields.set_latency_budget_ms(0);
  fields.set_step_ms(0);
  fields.set_kind(v1::KIND_OBSERVE);
  fields.set_latest_only(false);
  fields.mutable_slot()->clear();
  sources.clear();
  payload.clear();
  model.reset();
  error_code = ErrorCode::InvalidArgument;
  error.clear();
}

Core::Core(std::string_view address, std::string_view client_id, std::string_view client_type,
           ConnectionOptions options)
    : options_(std::move(options)),
      client_id_(client_id),
      client_type_(client_type),
      setup_error_(check_client(client_id, client_type)),
      session_(session_options(options_), pool_),
      transport_(address, options_) {
  if (setup_error_.empty()) setup_error_ = transport_.error();
  if (!setup_error_.empty()) close();
}

Core::~Core() = default;

Time Core::now() noexcept { return std::chrono::steady_clock::now().time_since_epoch(); }

Time Core::deadline_after(Time now, double timeout_ms) noexcept {
  constexpr double longest_ms = 1e12;  // some 30 years, which a Time can hold
  const double bounded = timeout_ms > 0 ? std::min(timeout_ms, longest_ms) : 0;
  return now + std::chrono::duration_cast<Time>(std::chrono::duration<double, std::milli>(bounded));
}

// ---- one call at a time

bool Core::claim() noexcept {
  if (busy_.exchange(true)) return false;
  if (!closed_ && transport_.inherited()) disown();
  return true;
}

bool Core::try_enter() noexcept {
  if (claim()) return true;
  if (transport_.inherited()) return false;  // the thread that is in a call stayed behind
  const std::lock_guard<std::recursive_mutex> no_glance(glancing_);
  return claim();
}

void Core::leave() noexcept {
  bool report = false;
  if (std::exchange(link_changed_, false)) {
    const std::lock_guard<std::mutex> lock(link_changes_mutex_);
    report = !std::exchange(reporting_, true);
  }
  busy_.store(false);
  while (report) {
    LinkState state;
    {
      const std::lock_guard<std::mutex> lock(link_changes_mutex_);
      if (link_changes_.empty()) {
        reporting_ = false;
        break;
      }
      state = link_changes_.front();
      link_changes_.erase(link_changes_.begin());
    }
    options_.on_link_change(state);
  }
  // A close() that found this call in progress left the closing to it.
  if (close_requested_.load()) request_close();
}

void Core::request_close() noexcept {
  close_requested_.store(true);
  if (!try_enter()) return;
  close_requested_.store(false);
  if (!closed_) {
    try {
      pump(now());
    } catch (const std::bad_alloc&) {
      // What could not be read ends LINK_LOST below.
    }
    close();
  }
  leave();
}

void Core::disown() noexcept {
  inherited_ = true;
  close();
}

void Core::close() noexcept {
  closed_ = true;
  const auto before = session_.link_state();
  try {
    session_.close(now());
    note_link(before);
  } catch (const std::bad_alloc&) {
    // The replies that say so are lost, the link state is set.
  }
  transport_.close();
}

Error Core::concurrent_use() {
  return {ErrorCode::ConcurrentUse, std::nullopt,
          "another call on this connection is in progress: one thread at a time may use a connection and its models"};
}

Error Core::closed_error() const {
  if (!setup_error_.empty()) return {ErrorCode::InvalidArgument, Status::NotSent, setup_error_};
  return {
      ErrorCode::Closed, Status::NotSent,
      inherited_ ? "the connection was made before a fork: each process makes its own" : "the connection is closed"};
}

Error Core::no_timeout() { return {ErrorCode::InvalidArgument, std::nullopt, "timeout_ms is NaN, must be a number"}; }

Error Core::nothing_outstanding() const {
  if (!closed_) return {ErrorCode::NothingOutstanding, std::nullopt, "nothing of this model is outstanding"};
  auto error = closed_error();
  error.status.reset();  // of no request
  return error;
}

void Core::note_link(LinkState before) {
  last_link_state_.store(session_.link_state());
  if (session_.link_state() == before || !options_.on_link_change) return;
  const std::lock_guard<std::mutex> lock(link_changes_mutex_);
  link_changes_.push_back(session_.link_state());
  link_changed_ = true;
}

void Core::notice(std::string_view text) noexcept {
  if (options_.on_notice) {
    options_.on_notice(text);
  } else {
    std::fprintf(stderr, "inferential: %.*s\n", static_cast<int>(text.size()), text.data());
  }
}

// ---- drafts

std::unique_ptr<Draft> Core::new_draft() const {
  auto draft = std::make_unique<Draft>();
  draft->fields.mutable_client()->mutable_id()->assign(client_id_);
  draft->fields.mutable_client()->mutable_type()->assign(client_type_);
  return draft;
}

std::unique_ptr<Draft> Core::take_draft() {
  if (drafts_.empty()) return new_draft();
  auto draft = std::move(drafts_.back());
  drafts_.pop_back();
  return draft;
}

void Core::return_draft(std::unique_ptr<Draft> draft) noexcept {
  constexpr std::size_t kept = 8;
  if (draft == nullptr || drafts_.size() >= kept) return;
  try {
    draft->reset();
    drafts_.push_back(std::move(draft));
  } catch (const std::bad_alloc&) {
    // Then it is not kept.
  }
}

// ---- input

void Core::pump(Time now, Reading reading) {
  if (closed_) return;
  if (reading != Reading::Known) {
    transport_.look();
    looked_at_ = now;
  }
  link_events_.clear();
  while (const auto event = transport_.next_link_event(now)) link_events_.push_back(*event);
  while (auto received = transport_.receive(*pool_)) {
    // Not the time of the call: what comes meanwhile came later.
    session_.receive(std::move(received->message), received->framed, Core::now());
    // To find out that there is no more costs system calls. But replies of a v1 server carry no id: one that is left
    // would be taken for the answer to the next request.
    if (reading == Reading::Awaited && link_events_.empty() && tells_ids() && !session_.next_expiry()) break;
  }
  for (const auto event : link_events_) {
    const auto before = session_.link_state();
    if (event == Transport::LinkEvent::Up) {
      session_.link_up();
    } else {
      session_.link_down(now);
    }
    note_link(before);
  }
  if (reading != Reading::Known) {
    session_.expire(now);  // what came in time is read by then, however late
    transport_.revive(now);
  }
  if (session_.take_v1_notice()) {
    notice(
        "the server speaks protocol version 1: replies are matched by model in order of arrival, and there is no "
        "cancel or ping");
  }
}

void Core::wait(Time now, Time deadline) {
  if (const auto expiry = session_.next_expiry()) deadline = std::min(deadline, *expiry);
  if (const auto revival = transport_.revival_due()) deadline = std::min(deadline, *revival);
  transport_.wait(deadline - now);
}

Session::Taken Core::await(Session::ModelIndex model, Session::Taken (Session::*take)(Session::ModelIndex),
                           Time deadline) {
  for (Reading reading = Reading::Known;; reading = Reading::Awaited) {
    const Time at = now();
    pump(at, at < deadline && session_.awaits(model) ? reading : Reading::All);
    auto taken = (session_.*take)(model);
    if (taken.outcome != Session::Taken::Outcome::Wait || at >= deadline) return taken;
    wait(at, deadline);
  }
}

Result<MessageRef> Core::await_result(Session::ModelIndex model, double timeout_ms) {
  if (std::isnan(timeout_ms)) return no_timeout();
  const Time start = now();
  const Time deadline = deadline_after(start, timeout_ms);
  auto taken = await(model, &Session::take_result, deadline);
  switch (taken.outcome) {
    case Session::Taken::Outcome::Reply: return std::move(taken.message);
    case Session::Taken::Outcome::NotOk: return ended_error("the request", *taken.message);
    case Session::Taken::Outcome::Wait:
      if (deadline > start) {
        session_.abandon(model);
        return Error{ErrorCode::TimedOut, Status::TimedOut,
                     "no reply within the timeout; what was outstanding is abandoned"};
      }
      return Error{ErrorCode::TimedOut, std::nullopt, "no reply yet"};
    case Session::Taken::Outcome::NothingOutstanding: break;
  }
  return nothing_outstanding();
}

Result<MessageRef> Core::await_next(Session::ModelIndex model, double timeout_ms) {
  if (std::isnan(timeout_ms)) return no_timeout();
  auto taken = await(model, &Session::take_next, deadline_after(now(), timeout_ms));
  if (taken.outcome == Session::Taken::Outcome::Reply) return std::move(taken.message);
  if (taken.outcome == Session::Taken::Outcome::Wait) {
    return Error{ErrorCode::TimedOut, std::nullopt, "no reply within the timeout; nothing is abandoned"};
  }
  return nothing_outstanding();
}

bool Core::await_up(double timeout_ms) {
  const Time deadline = deadline_after(now(), timeout_ms);
  for (;;) {
    const Time at = now();
    pump(at);
    if (session_.link_state() == LinkState::Up) return true;
    if (closed_ || at >= deadline) return false;
    wait(at, deadline);
  }
}

// ---- output

void Core::await_first_handshake(double timeout_ms) {
  const bool first = !waited_for_handshake_;
  waited_for_handshake_ = true;
  if (first && session_.link_state() == LinkState::Connecting) {
    await_up(std::min<double>(timeout_ms, options_.connect_timeout_ms));
  } else if (const Time at = now(); at - looked_at_ >= look_every || !tells_ids()) {
    pump(at);
  }
}

Error Core::not_sent_error(std::uint64_t request_id) const {
  std::string text = "not sent: the link is ";
  text.append(to_string(session_.link_state()));
  if (session_.link_state() == LinkState::Up) text += ", the send queue is full";
  return {ErrorCode::NotSent, Status::NotSent, std::move(text), request_id};
}

Result<std::uint64_t> Core::send(Draft& draft) {
  if (closed_) return closed_error();
  if (draft.error.empty()) draft.error = check_draft(draft.fields);
  if (!draft.error.empty()) return Error{draft.error_code, std::nullopt, std::move(draft.error)};

  std::size_t size = 0;  // as in one frame
  for (const auto& source : draft.sources) size = wire::aligned(size) + source.byte_length;
  const auto limit = static_cast<std::uint64_t>(options_.max_message_bytes);
  const auto envelope_size = draft.fields.ByteSizeLong();  // too little by a few bytes: the tensors have no place yet
  if (size > limit || envelope_size > limit) {
    const auto what = size > limit ? "the tensors have " + std::to_string(size)
                                   : "the metadata and all else but the tensors has " + std::to_string(envelope_size);
    return Error{ErrorCode::InvalidArgument, std::nullopt,
                 what + " bytes, more than max_message_bytes (" + std::to_string(limit) +
                     "): a server would drop the connection"};
  }

  await_first_handshake(options_.connect_timeout_ms);
  const auto timestamp_ns = wall_clock_ns();
  const auto ticket =
      session_.open_observe(*draft.model, draft.fields.slot(), draft.fields.step_ms(), timestamp_ns, now());
  if (ticket.route == Session::Ticket::Route::Local) return ticket.request_id;
  if (ticket.route == Session::Ticket::Route::NotSent) return not_sent_error(ticket.request_id);

  draft.fields.set_timestamp_ns(timestamp_ns);
  draft.fields.set_request_id(ticket.request_id);
  bool sent = false;
  try {
    wire::lay_out(draft.fields, draft.sources, session_.server() != Session::Server::V2, options_.own_frame_bytes,
                  draft.payload);
    auto envelope = wire::encode(draft.fields);
    sent = transport_.send(envelope, draft.payload);
  } catch (const std::bad_alloc&) {
    session_.transmitted(ticket.request_id, false);
    throw;
  }
  session_.transmitted(ticket.request_id, sent);
  if (sent) return ticket.request_id;
  pump(now());  // either nobody is there any more, as the monitor then says, or the queue is full
  return not_sent_error(ticket.request_id);
}

bool Core::cancel(Session::ModelIndex model, std::uint64_t request_id) {
  if (closed_) return false;
  pump(now());
  if (!session_.may_cancel(model, request_id)) return false;
  auto draft = take_draft();
  draft->fields.set_kind(v1::KIND_CANCEL);
  draft->fields.set_priority(1);
  draft->fields.set_request_id(request_id);
  draft->fields.set_timestamp_ns(wall_clock_ns());
  draft->payload.emplace_back();
  auto envelope = wire::encode(draft->fields);
  const bool sent = transport_.send(envelope, draft->payload);
  return_draft(std::move(draft));
  return sent;
}

Result<MessageRef> Core::ping(double timeout_ms) {
  if (closed_) return closed_error();
  if (std::isnan(timeout_ms)) return no_timeout();
  const Time deadline = deadline_after(now(), timeout_ms);
  await_first_handshake(timeout_ms);
  if (session_.server() == Session::Server::V1) {
    return Error{ErrorCode::Unsupported, std::nullopt, "the server speaks protocol version 1, which has no ping"};
  }
  const auto timestamp_ns = wall_clock_ns();
  const auto ticket = session_.open_ping(timestamp_ns, now());
  if (ticket.route != Session::Ticket::Route::Transmit) return not_sent_error();
  struct Ending {  // whatever happens: nothing ends a ping but this and its reply
    Session& session;
    const std::uint64_t request_id;
    ~Ending() { session.abandon_ping(request_id); }
  } const ending{session_, ticket.request_id};
  auto draft = take_draft();
  draft->fields.set_kind(v1::KIND_PING);
  draft->fields.set_priority(1);
  draft->fields.set_request_id(ticket.request_id);
  draft->fields.set_timestamp_ns(timestamp_ns);
  draft->payload.emplace_back();
  auto envelope = wire::encode(draft->fields);
  const bool sent = transport_.send(envelope, draft->payload);
  return_draft(std::move(draft));
  session_.transmitted(ticket.request_id, sent);
  if (!sent) {
    pump(now());
    return not_sent_error();
  }

  for (;;) {
    const Time at = now();
    pump(at);
    if (auto reply = session_.take_ping_reply(ticket.request_id)) {
      if (reply->status == Status::Ok) return reply;
      return ended_error("the ping", *reply);
    }
    if (!session_.is_outstanding(ticket.request_id)) {
      const auto status = session_.link_state() == LinkState::Up ? Status::ModelError : Status::LinkLost;
      return Error{ErrorCode::NotOk, status, "the ping ended " + std::string(to_string(status))};
    }
    if (at >= deadline) break;
    wait(at, deadline);
  }
  return Error{ErrorCode::TimedOut, Status::TimedOut, "no reply to the ping within the timeout"};
}

}  // namespace inferential::detail
