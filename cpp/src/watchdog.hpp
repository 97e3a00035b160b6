#pragma once

#include <memory>
#include <mutex>

#include "inferential/options.hpp"
#include "message.hpp"

namespace inferential::detail {

/// The fallback of one model handle: remembers the last fresh reply and makes actions. Reads no clock. Any thread may
/// use it at any time, as a call that finds the connection in use falls back too.
class Watchdog {
 public:
  Watchdog(Fallback fallback, std::shared_ptr<MessagePool> pool)
      : fallback_(std::move(fallback)), pool_(std::move(pool)) {}

  void set_fallback(Fallback fallback) noexcept;

  Action fresh(MessageRef message, Time now);
  Action fall_back(Error why, Time now);

 private:
  Tensors zeros_like(const MessageRef& keep, const Tensors& like) const;
  Tensors decayed(double factor) const;
  Action from_last(Source source, Tensors tensors, Time now) const;
  Action zeros(Time now) const;

  std::recursive_mutex mutex_;  // recursive: a callback may act
  bool in_callback_ = false;
  Fallback fallback_;
  std::shared_ptr<MessagePool> pool_;
  MessageRef last_;  // the last fresh reply
};

}  // namespace inferential::detail
