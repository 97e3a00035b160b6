#include "inferential/rate.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <thread>

namespace inferential {

Rate::Rate(double hz) : Rate(hz, Clock::now()) {}

Rate::Rate(double hz, Clock::time_point start) : start_(start), period_ns_(1e9 / hz) {
  if (!(hz >= 1e-3 && hz <= 1e6)) {  // NaN too
    throw std::invalid_argument("Rate: hz is " + std::to_string(hz) + ", must be 0.001 to 1000000");
  }
}

Rate::Tick Rate::next(Clock::time_point now) noexcept {
  const double elapsed_ns = std::chrono::duration<double, std::nano>(now - start_).count();
  // A tick that is exactly now is in time.
  const double upcoming = std::max(0.0, std::ceil(elapsed_ns / period_ns_));
  const auto in_time = tick_ + 1;
  const auto tick = std::max(in_time, static_cast<std::uint64_t>(upcoming));
  tick_ = tick;
  const auto offset = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double, std::nano>(static_cast<double>(tick) * period_ns_));
  return {start_ + offset, tick - in_time};
}

void Rate::delay_ms(double milliseconds) noexcept {
  if (!(milliseconds > 0 && std::isfinite(milliseconds))) return;
  const double left_ms = std::fmod(milliseconds, period_ns_ / 1e6);
  start_ += std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::milli>(left_ms));
}

std::uint64_t Rate::sleep() noexcept {
  const auto tick = next(Clock::now());
  std::this_thread::sleep_until(tick.at);
  return tick.missed;
}

}  // namespace inferential
