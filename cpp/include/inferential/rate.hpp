#pragma once

#include <chrono>
#include <cstdint>

#include "inferential/export.hpp"

namespace inferential {

/// Paces a loop on a fixed grid that starts at construction. Missed ticks are skipped, not caught up.
/// Used by one thread.
class Rate {
 public:
  using Clock = std::chrono::steady_clock;

  /// Throws std::invalid_argument unless hz is 0.001 to 1,000,000.
  INFERENTIAL_API explicit Rate(double hz);

  /// Waits until the next tick; returns how many ticks were missed since the last call (0 when in time).
  INFERENTIAL_API std::uint64_t sleep() noexcept;

  /// Moves the grid, and with it the next tick, by so much. What is not finite or not above 0 moves nothing; of what is
  /// longer than a period counts what is left after whole periods: no hint holds a loop up for longer.
  INFERENTIAL_API void delay_ms(double milliseconds) noexcept;

  /// sleep() without the sleeping: the tick to wait for and the number missed, for a caller with a clock of its own.
  struct Tick {
    Clock::time_point at;
    std::uint64_t missed;
  };
  INFERENTIAL_API Tick next(Clock::time_point now) noexcept;
  /// With the grid's start given.
  INFERENTIAL_API Rate(double hz, Clock::time_point start);

 private:
  Clock::time_point start_;
  double period_ns_;
  std::uint64_t tick_ = 0;  // index of the last tick waited for
};

}  // namespace inferential
