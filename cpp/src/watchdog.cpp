#include "watchdog.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace inferential {

Fallback Fallback::zero(Tensors template_tensors) { return Fallback(Kind::Zero, 0, std::move(template_tensors), {}); }

Fallback Fallback::hold(double max_ms, Tensors template_tensors) {
  if (!(max_ms >= 0)) {
    throw std::invalid_argument("Fallback::hold: max_ms is " + std::to_string(max_ms) + ", must be 0 or more");
  }
  return Fallback(Kind::Hold, max_ms, std::move(template_tensors), {});
}

Fallback Fallback::decay(double half_life_ms, Tensors template_tensors) {
  if (!(half_life_ms > 0 && std::isfinite(half_life_ms))) {
    throw std::invalid_argument("Fallback::decay: half_life_ms is " + std::to_string(half_life_ms) +
                                ", must be finite and above 0");
  }
  return Fallback(Kind::Decay, half_life_ms, std::move(template_tensors), {});
}

Fallback Fallback::callback(Callback function) {
  if (!function) throw std::invalid_argument("Fallback::callback: the function is empty");
  return Fallback(Kind::Callback, 0, {}, std::move(function));
}

}  // namespace inferential

namespace inferential::detail {
namespace {

double milliseconds(Time time) noexcept { return std::chrono::duration<double, std::milli>(time).count(); }

std::size_t words(std::size_t bytes) noexcept { return (bytes + 7) / 8; }

template <class T>
void scale(const Tensor& from, std::uint64_t* to, double factor) noexcept {
  const auto values = from.as<T>();
  auto* out = reinterpret_cast<T*>(to);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if constexpr (std::is_floating_point_v<T>) {
      out[i] = static_cast<T>(values[i] * factor);
    } else {
      out[i] = T::from_float(static_cast<float>(static_cast<float>(values[i]) * factor));
    }
  }
}

bool scale_floating(const Tensor& from, std::uint64_t* to, double factor) noexcept {
  switch (from.dtype()) {
    case DType::Float16: scale<float16>(from, to, factor); return true;
    case DType::Float32: scale<float>(from, to, factor); return true;
    case DType::Float64: scale<double>(from, to, factor); return true;
    case DType::BFloat16: scale<bfloat16>(from, to, factor); return true;
    case DType::Float8E4M3FN: scale<float8_e4m3fn>(from, to, factor); return true;
    case DType::Float8E5M2: scale<float8_e5m2>(from, to, factor); return true;
    default: return false;
  }
}

}  // namespace

void Watchdog::set_fallback(Fallback fallback) noexcept {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  fallback_ = std::move(fallback);
}

Action Watchdog::fresh(MessageRef message, Time now) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  last_ = std::move(message);
  return from_last(Source::Fresh, Tensors(last_), now);
}

Action Watchdog::from_last(Source source, Tensors tensors, Time now) const {
  Action action;
  action.source = source;
  action.tensors = std::move(tensors);
  if (last_) {
    action.reply.emplace(last_);
    action.age_ms = std::max(0.0, milliseconds(now - last_->sent_at));
    if (last_->step_ms > 0)
      action.steps_late = static_cast<std::uint64_t>(std::min(action.age_ms / last_->step_ms, 1e18));
  }
  return action;
}

Action Watchdog::zeros(Time now) const {
  if (last_) return from_last(Source::Zero, zeros_like(last_, Tensors(last_)), now);
  const auto& like = fallback_.template_tensors();
  if (like.empty()) return from_last(Source::None, {}, now);
  return from_last(Source::Zero, zeros_like(like.message_, like), now);
}

Action Watchdog::fall_back(Error why, Time now) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const double since_arrival_ms = last_ ? std::max(0.0, milliseconds(now - last_->received_at)) : 0;
  Action action;
  switch (fallback_.kind()) {
    case Fallback::Kind::Hold:
      action = last_ && since_arrival_ms <= fallback_.duration_ms() ? from_last(Source::Hold, Tensors(last_), now)
                                                                    : zeros(now);
      break;
    case Fallback::Kind::Decay:
      action = last_ ? from_last(Source::Decay, decayed(std::exp2(-since_arrival_ms / fallback_.duration_ms())), now)
                     : zeros(now);
      break;
    case Fallback::Kind::Callback: {
      if (in_callback_) break;                     // asked by the callback itself, it has no answer
      const auto function = fallback_.function();  // a copy, as it may set another one
      in_callback_ = true;
      struct Ending {
        bool& in_callback;
        ~Ending() { in_callback = false; }
      } const ending{in_callback_};
      action.source = Source::Callback;
      if (last_) action.reply.emplace(last_);
      action.tensors = function(last_ ? &*action.reply : nullptr, last_ ? milliseconds(now - last_->sent_at) : 0);
      break;
    }
    case Fallback::Kind::Zero: action = zeros(now); break;
  }
  action.error = std::move(why);
  return action;
}

Tensors Watchdog::zeros_like(const MessageRef& keep, const Tensors& like) const {
  auto message = pool_->acquire();
  message->based_on = keep;
  std::size_t size = 0;
  for (const auto& tensor : like) size += words(tensor.element_count() * itemsize(tensor.dtype()));
  message->storage.assign(std::max<std::size_t>(size, 1), 0);  // never a null pointer, not even for no elements
  const auto* at = message->storage.data();
  for (const auto& tensor : like) {
    const std::size_t bytes = tensor.element_count() * itemsize(tensor.dtype());
    message->tensors.emplace_back(tensor.key(), tensor.dtype(), Encoding::Raw, tensor.shape(),
                                  Span<const std::byte>{reinterpret_cast<const std::byte*>(at), bytes}, at,
                                  tensor.element_count(), 0);
    at += words(bytes);
  }
  return Tensors(std::move(message));
}

Tensors Watchdog::decayed(double factor) const {
  auto message = pool_->acquire();
  message->based_on = last_;
  std::size_t size = 0;
  for (const auto& tensor : last_->tensors) size += words(tensor.bytes().size());
  message->storage.assign(std::max<std::size_t>(size, 1), 0);
  auto* at = message->storage.data();
  for (const auto& tensor : last_->tensors) {
    if (tensor.encoding() != Encoding::Raw || !scale_floating(tensor, at, factor)) {
      message->tensors.push_back(tensor);
      continue;
    }
    const std::size_t bytes = tensor.bytes().size();
    message->tensors.emplace_back(tensor.key(), tensor.dtype(), Encoding::Raw, tensor.shape(),
                                  Span<const std::byte>{reinterpret_cast<const std::byte*>(at), bytes}, at,
                                  tensor.element_count(), tensor.timestamp_ns());
    at += words(bytes);
  }
  return Tensors(std::move(message));
}

}  // namespace inferential::detail
