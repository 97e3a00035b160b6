#include "message.hpp"

#include <new>
#include <utility>

namespace inferential {

namespace detail {

void Message::reset() {
  tensors.clear();
  metadata.clear();
  storage.clear();
  payload.clear();
  envelope = Frame();
  // Not fields.Clear(): that would free the submessages whose capacity the next reply reuses.
  fields.mutable_client()->mutable_id()->clear();
  fields.mutable_client()->mutable_type()->clear();
  fields.mutable_response_id()->clear();
  fields.set_timestamp_ns(0);
  fields.clear_tensors();
  fields.set_inference_latency_ms(0);
  fields.mutable_model_id()->clear();
  fields.clear_metadata();
  fields.set_request_id(0);
  fields.set_status(v1::STATUS_OK);
  fields.mutable_error()->clear();
  fields.set_retry_after_ms(0);
  auto* timing = fields.mutable_timing();
  timing->set_queue_ms(0);
  timing->set_inference_ms(0);
  timing->set_server_ms(0);
  timing->set_batch_size(0);
  timing->mutable_replica()->clear();
  fields.set_observation_timestamp_ns(0);
  fields.set_phase_shift_ms(0);
  fields.set_protocol_version(0);
  fields.set_reason(v1::REASON_NONE);
  // What is left are fields that only a newer server knows: parsing would add the next reply's to them.
  constexpr std::size_t empty_client_and_timing = 2 + 3;
  if (fields.ByteSizeLong() > empty_client_and_timing) fields.Clear();
  status = Status::Ok;
  reason = Reason::None;
  error.clear();
  local = false;
  request_id = 0;
  slot.clear();
  slot_index = 0;
  step_ms = 0;
  retry_after_ms = 0;
  observation_timestamp_ns = 0;
  sent_at = received_at = Time{0};
  based_on = MessageRef();
}

void retain(const Message* message) noexcept { message->references.fetch_add(1, std::memory_order_relaxed); }

void release(const Message* message) noexcept {
  if (message->references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  auto* last = const_cast<Message*>(message);  // the last owner may change it again
  auto pool = std::move(last->pool);
  if (pool != nullptr) {
    pool->recycle(last);
  } else {
    delete last;
  }
}

}  // namespace detail

detail::MessageRef MessagePool::acquire() {
  std::unique_ptr<detail::Message> message;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      message = std::move(free_.back());
      free_.pop_back();
    }
  }
  if (message == nullptr) message = std::make_unique<detail::Message>();
  message->pool = shared_from_this();
  message->references.store(1, std::memory_order_relaxed);
  return detail::MessageRef(message.release());
}

void MessagePool::recycle(detail::Message* message) noexcept {
  std::unique_ptr<detail::Message> owned(message);
  try {
    owned->reset();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.size() < kept) free_.push_back(std::move(owned));
  } catch (const std::bad_alloc&) {
    // Then it is not kept.
  }
}

// ---- Reply

Status Reply::status() const noexcept { return message_->status; }
Reason Reply::reason() const noexcept { return message_->reason; }
std::string_view Reply::error() const noexcept { return message_->error; }
bool Reply::is_local() const noexcept { return message_->local; }
std::uint64_t Reply::request_id() const noexcept { return message_->request_id; }
std::string_view Reply::model_id() const noexcept { return message_->fields.model_id(); }
std::string_view Reply::slot() const noexcept { return message_->slot; }
std::string_view Reply::response_id() const noexcept { return message_->fields.response_id(); }

double Reply::age_ms() const noexcept {
  const Time now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now - message_->sent_at).count();
}

double Reply::round_trip_ms() const noexcept {
  return std::chrono::duration<double, std::milli>(message_->received_at - message_->sent_at).count();
}

Timing Reply::timing() const noexcept {
  const auto& timing = message_->fields.timing();
  return {timing.queue_ms(), timing.inference_ms(), timing.server_ms(), timing.batch_size(), timing.replica()};
}

float Reply::retry_after_ms() const noexcept { return message_->retry_after_ms; }
float Reply::phase_shift_ms() const noexcept { return message_->fields.phase_shift_ms(); }
std::uint64_t Reply::timestamp_ns() const noexcept { return message_->fields.timestamp_ns(); }
std::uint64_t Reply::observation_timestamp_ns() const noexcept { return message_->observation_timestamp_ns; }
std::uint32_t Reply::protocol_version() const noexcept { return message_->fields.protocol_version(); }

Span<const MetadataEntry> Reply::metadata() const noexcept {
  return {message_->metadata.data(), message_->metadata.size()};
}

std::string_view Reply::metadata(std::string_view key) const noexcept {
  for (const auto& entry : message_->metadata) {
    if (entry.key == key) return entry.value;
  }
  return {};
}

}  // namespace inferential
