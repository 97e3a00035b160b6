#include "session.hpp"

#include <algorithm>
#include <utility>

#include "wire.hpp"

namespace inferential {

using detail::MessageRef;

Session::Session(Options options, std::shared_ptr<MessagePool> pool) : options_(options), pool_(std::move(pool)) {}

// ---- link

void Session::link_up() noexcept {
  if (link_ == LinkState::Closed || link_ == LinkState::Up) return;
  if (link_ == LinkState::Down) ++counters_.reconnects;
  link_ = LinkState::Up;
}

void Session::link_down(Time now) {
  if (link_ != LinkState::Up) return;  // a connection that fails in its handshake was never up
  link_ = LinkState::Down;
  server_ = Server::Unknown;
  for (auto& model : models_) model.hold_off.reset();
  end_all("the link to the server went down while this request was outstanding", now);
}

void Session::close(Time now) {
  if (link_ == LinkState::Closed) return;
  link_ = LinkState::Closed;
  end_all("the connection was closed while this request was outstanding", now);
}

void Session::end_all(std::string_view error, Time now) {
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (!requests_[i].outstanding) continue;
    const Request request = requests_[i];
    end(requests_[i]);
    if (request.model == ping_index) continue;
    ++counters_.link_lost;
    finish_local(first_id_ + i, request, Status::LinkLost, error, now);
  }
  drop_ended();
}

bool Session::take_v1_notice() noexcept { return std::exchange(v1_notice_due_, false); }

// ---- sending

Session::ModelIndex Session::model(std::string_view id) {
  if (const auto known = find_model(id)) return *known;
  models_.emplace_back();
  models_.back().id.assign(id);
  return static_cast<ModelIndex>(models_.size() - 1);
}

std::optional<Session::ModelIndex> Session::find_model(std::string_view id) const noexcept {
  for (ModelIndex i = 0; i < models_.size(); ++i) {
    if (models_[i].id == id) return i;
  }
  return std::nullopt;
}

std::uint32_t Session::slot_index(ModelIndex of, std::string_view name) {
  auto& model = models_[of];
  const auto known = model.slot_indices.find(name);
  if (known != model.slot_indices.end()) return known->second;
  if (model.free_slots.empty() && model.slots.size() >= model.most_slots) forget_slots(of);
  auto index = static_cast<std::uint32_t>(model.slots.size());
  if (model.free_slots.empty()) {
    model.slots.push_back({std::string(name), 0});
  } else {
    index = model.free_slots.back();
    model.slots[index] = {std::string(name), 0};
    model.free_slots.pop_back();
  }
  model.slot_indices.emplace(name, index);
  return index;
}

void Session::forget_slots(ModelIndex of) {
  // Slots of which no reply can come any more need not be remembered: their names may keep changing.
  auto& model = models_[of];
  std::vector<bool> used(model.slots.size());
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i].outstanding && requests_[i].model == of) used[requests_[i].slot] = true;
  }
  for (std::size_t i = 0; i < model.inbox.size(); ++i) used[model.inbox[i]->slot_index] = true;
  for (auto slot = model.slot_indices.begin(); slot != model.slot_indices.end();) {
    if (used[slot->second]) {
      ++slot;
    } else {
      model.free_slots.push_back(slot->second);
      slot = model.slot_indices.erase(slot);
    }
  }
  model.most_slots = std::max<std::size_t>(256, 2 * model.slot_indices.size());
}

std::uint64_t Session::open(Request request) {
  drop_ended();
  if (requests_.empty()) first_id_ = next_id_;
  requests_.push_back(request);
  return next_id_++;
}

Session::Ticket Session::open_observe(ModelIndex index, std::string_view slot, float step_ms,
                                      std::uint64_t timestamp_ns, Time now) {
  auto& model = models_[index];
  Request request;
  request.sent_at = now;
  request.timestamp_ns = timestamp_ns;
  request.model = index;
  request.slot = slot_index(index, slot);
  request.step_ms = step_ms;

  if (link_ != LinkState::Up) {
    ++counters_.not_sent;
    return {Ticket::Route::NotSent, open(request)};
  }
  if (options_.hold_off && model.hold_off) {
    if (now < model.hold_off->until) {
      const auto request_id = open(request);
      const auto& hold_off = *model.hold_off;
      auto message = local_reply(request_id, request, hold_off.status, hold_off.error);
      message->reason = hold_off.reason;
      message->retry_after_ms = std::chrono::duration<float, std::milli>(hold_off.until - now).count();
      message->received_at = now;
      ++counters_.held_off;
      push(model, std::move(message));
      return {Ticket::Route::Local, request_id};
    }
    model.hold_off.reset();
  }
  request.outstanding = true;
  const auto request_id = open(request);
  ++model.outstanding;
  return {Ticket::Route::Transmit, request_id};
}

Session::Ticket Session::open_ping(std::uint64_t timestamp_ns, Time now) {
  Request request;
  request.sent_at = now;
  request.timestamp_ns = timestamp_ns;
  request.model = ping_index;
  ping_reply_ = MessageRef();
  if (link_ != LinkState::Up) return {Ticket::Route::NotSent, 0};
  request.outstanding = true;
  ping_id_ = open(request);
  return {Ticket::Route::Transmit, ping_id_};
}

void Session::transmitted(std::uint64_t request_id, bool sent) noexcept {
  auto* request = find(request_id);
  if (request == nullptr) return;
  const bool ping = request->model == ping_index;
  if (!sent) end(*request);
  if (!ping) ++(sent ? counters_.sent : counters_.not_sent);
}

bool Session::may_cancel(ModelIndex model, std::uint64_t request_id) const noexcept {
  const auto* request = find(request_id);
  return link_ == LinkState::Up && server_ == Server::V2 && request != nullptr && request->model == model;
}

// ---- the table of requests

Session::Request* Session::find(std::uint64_t request_id) noexcept {
  return const_cast<Request*>(std::as_const(*this).find(request_id));
}

const Session::Request* Session::find(std::uint64_t request_id) const noexcept {
  if (request_id < first_id_ || request_id - first_id_ >= requests_.size()) return nullptr;
  const auto& request = requests_[request_id - first_id_];
  return request.outstanding ? &request : nullptr;
}

void Session::end(Request& request) noexcept {
  request.outstanding = false;
  if (request.model != ping_index) --models_[request.model].outstanding;
}

void Session::drop_ended() noexcept {
  while (!requests_.empty() && !requests_.front().outstanding) {
    requests_.pop_front();
    ++first_id_;
  }
}

std::uint64_t Session::oldest_outstanding(std::string_view model_id) const noexcept {
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    const auto& request = requests_[i];
    if (request.outstanding && request.model != ping_index && models_[request.model].id == model_id) {
      return first_id_ + i;
    }
  }
  return 0;
}

std::uint64_t Session::newest_of(ModelIndex index) const noexcept {
  const auto& model = models_[index];
  std::uint64_t newest = 0;
  for (std::size_t i = 0; i < model.inbox.size(); ++i) newest = std::max(newest, model.inbox[i]->request_id);
  if (model.outstanding == 0) return newest;
  for (std::size_t i = requests_.size(); i-- > 0 && first_id_ + i > newest;) {
    if (requests_[i].outstanding && requests_[i].model == index) return first_id_ + i;
  }
  return newest;
}

bool Session::is_outstanding(std::uint64_t request_id) const noexcept { return find(request_id) != nullptr; }

// ---- receiving

void Session::receive(MessageRef message, bool framed, Time now) {
  const bool decoded = framed && wire::decode(*message);
  const auto echoed = message->fields.request_id();
  if (echoed != 0 && echoed < next_id_) server_ = Server::V2;

  if (!decoded) {
    auto* request = find(echoed);
    if (request == nullptr) {
      ++counters_.bad_replies;
      return;
    }
    const Request ended = *request;
    end(*request);
    if (ended.model == ping_index) {
      ++counters_.bad_replies;
      return;
    }
    ++counters_.not_ok;
    finish_local(echoed, ended, Status::ModelError, "undecodable reply: " + message->error, now);
    return;
  }

  std::uint64_t request_id = echoed;
  if (request_id == 0) {
    if (server_ == Server::Unknown) server_ = Server::V1;
    v1_notice_due_ = v1_notice_due_ || !v1_seen_;
    v1_seen_ = true;
    message->fields.mutable_timing()->set_inference_ms(message->fields.inference_latency_ms());
    request_id = oldest_outstanding(message->fields.model_id());
  }
  auto* request = find(request_id);
  if (request == nullptr) {
    ++counters_.late_replies;
    return;
  }
  const Request ended = *request;
  end(*request);
  finish(request_id, ended, std::move(message), now);
}

void Session::finish(std::uint64_t request_id, Request request, MessageRef message, Time now) {
  message->request_id = request_id;
  message->sent_at = request.sent_at;
  message->received_at = now;
  message->step_ms = request.step_ms;
  // Whatever the reply says.
  message->observation_timestamp_ns = request.timestamp_ns;
  auto* model_id = message->fields.mutable_model_id();
  if (request.model == ping_index) {
    model_id->clear();
    if (request_id == ping_id_) ping_reply_ = std::move(message);
    return;
  }
  auto& model = models_[request.model];
  model_id->assign(model.id);
  message->slot.assign(model.slots[request.slot].name);
  message->slot_index = request.slot;
  const Status status = message->status;
  ++(status == Status::Ok ? counters_.ok : counters_.not_ok);
  const bool hint = status == Status::Rejected || status == Status::Unavailable;
  if (hint && message->retry_after_ms > 0) {
    // At most a day: a larger number is no hint, and an infinite one no duration.
    const double wait_ms = std::min<double>(message->retry_after_ms, 24.0 * 3600 * 1000);
    const auto wait = std::chrono::duration_cast<Time>(std::chrono::duration<double, std::milli>(wait_ms));
    model.hold_off = HoldOff{status, message->reason, now + wait, message->error};
  }
  const float shift_ms = message->fields.phase_shift_ms();
  if (shift_ms > 0) model.phase_shift_ms = shift_ms;
  push(model, std::move(message));
}

MessageRef Session::local_reply(std::uint64_t request_id, const Request& request, Status status,
                                std::string_view error) {
  auto message = pool_->acquire();
  const auto& model = models_[request.model];
  message->local = true;
  message->status = status;
  message->error.assign(error);
  message->request_id = request_id;
  message->fields.mutable_model_id()->assign(model.id);
  message->slot.assign(model.slots[request.slot].name);
  message->slot_index = request.slot;
  message->step_ms = request.step_ms;
  message->observation_timestamp_ns = request.timestamp_ns;
  message->sent_at = request.sent_at;
  return message;
}

void Session::finish_local(std::uint64_t request_id, const Request& request, Status status, std::string_view error,
                           Time now) {
  auto message = local_reply(request_id, request, status, error);
  message->received_at = now;
  push(models_[request.model], std::move(message));
}

void Session::push(ModelState& model, MessageRef message) {
  if (model.inbox.size() >= options_.inbox_replies) {
    model.inbox.pop_front();
    ++counters_.replies_dropped;
  }
  model.inbox.push_back(std::move(message));
}

void Session::expire(Time now) {
  // Requests stand in the order they were sent in, so only the first ones can be due.
  for (drop_ended(); !requests_.empty() && now - requests_.front().sent_at >= options_.request_timeout; drop_ended()) {
    const Request request = requests_.front();
    if (request.model == ping_index) return;  // it has a timeout of its own, and nothing is sent meanwhile
    const auto request_id = first_id_;
    end(requests_.front());
    ++counters_.timed_out;
    finish_local(request_id, request, Status::TimedOut, "no reply within request_timeout_ms of sending", now);
  }
}

std::optional<Time> Session::next_expiry() noexcept {
  drop_ended();
  if (requests_.empty() || requests_.front().model == ping_index) return std::nullopt;
  return requests_.front().sent_at + options_.request_timeout;
}

void Session::set_last(ModelState& model, Status status, std::string_view error) {
  model.last_status = status;
  model.last_error.assign(error);
}

Session::Taken Session::take_result(ModelIndex index) {
  auto& model = models_[index];
  std::uint64_t newest = 0;  // not known yet
  while (!model.inbox.empty()) {
    auto message = model.inbox.pop_front();
    const auto request_id = message->request_id;
    if (message->status == Status::Ok) {
      auto& delivered = model.slots[message->slot_index].delivered;
      if (request_id <= delivered) {
        ++counters_.late_replies;
        if (request_id == newest) newest = 0;
        continue;
      }
      delivered = request_id;
      set_last(model, Status::Ok, {});
      return {Taken::Outcome::Reply, std::move(message)};
    }
    if (newest == 0) newest = newest_of(index);
    if (newest > request_id) continue;
    set_last(model, message->status, message->error);
    return {Taken::Outcome::NotOk, std::move(message)};
  }
  model.last_status.reset();  // so far; abandon() says more
  model.last_error.clear();
  return {model.outstanding == 0 ? Taken::Outcome::NothingOutstanding : Taken::Outcome::Wait, {}};
}

void Session::abandon(ModelIndex index) {
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (!requests_[i].outstanding || requests_[i].model != index) continue;
    end(requests_[i]);
    ++counters_.timed_out;
  }
  set_last(models_[index], Status::TimedOut, "no reply within the time given");
}

Session::Taken Session::take_next(ModelIndex index) {
  auto& model = models_[index];
  if (!model.inbox.empty()) return {Taken::Outcome::Reply, model.inbox.pop_front()};
  return {model.outstanding == 0 ? Taken::Outcome::NothingOutstanding : Taken::Outcome::Wait, {}};
}

MessageRef Session::take_ping_reply(std::uint64_t request_id) {
  if (request_id != ping_id_) return {};
  return std::exchange(ping_reply_, MessageRef());
}

void Session::abandon_ping(std::uint64_t request_id) noexcept {
  if (auto* request = find(request_id)) end(*request);
}

}  // namespace inferential
