//! Pacing of a loop.

use std::time::{Duration, Instant};

use crate::error::Error;

/// Ticks of a fixed grid. Missed ticks are skipped, not caught up.
#[derive(Debug, Clone)]
struct Grid {
    period: Duration,
    next: Instant,
}

impl Grid {
    /// The tick to wait for, and how many were missed before it.
    fn advance(&mut self, now: Instant) -> (Instant, u64) {
        let late = now.saturating_duration_since(self.next).as_nanos();
        let missed = late.div_ceil(self.period.as_nanos());
        let tick = self.next + nanoseconds(missed.saturating_mul(self.period.as_nanos()));
        self.next = tick + self.period;
        (tick, u64::try_from(missed).unwrap_or(u64::MAX))
    }

    /// Moves every tick from the next one on, by what is left after whole periods.
    fn delay_ms(&mut self, milliseconds: f64) {
        if milliseconds.is_finite() && milliseconds > 0.0 {
            // In ms: 150 of them are three periods of 50, whereas 0.15 % 0.05 is nearly a fourth.
            let delay_ms = milliseconds % (self.period.as_secs_f64() * 1e3);
            self.next += Duration::from_secs_f64(delay_ms / 1e3);
        }
    }
}

fn nanoseconds(number: u128) -> Duration {
    Duration::from_nanos(u64::try_from(number).unwrap_or(u64::MAX / 2))
}

/// Paces a loop to a fixed frequency.
///
/// ```
/// let mut rate = inferential::Rate::new(200.0)?;
/// for _ in 0..3 {
///     // observe, act ...
///     let missed = rate.sleep(); // 0 when the loop was in time
/// }
/// # Ok::<(), inferential::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Rate {
    grid: Grid,
}

impl Rate {
    /// `hz` ticks a second, the first one period from now.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] where `hz` is not from 0.001 to 1,000,000.
    pub fn new(hz: f64) -> Result<Rate, Error> {
        if !(1e-3..=1e6).contains(&hz) {
            return Err(Error::InvalidOption { name: "hz", reason: format!("is {hz}; must be from 0.001 to 1000000") });
        }
        let period = Duration::from_secs_f64(1.0 / hz);
        Ok(Rate { grid: Grid { period, next: Instant::now() + period } })
    }

    /// Time between two ticks.
    pub fn period(&self) -> Duration {
        self.grid.period
    }

    /// Moves the grid, and with it the next tick, by so much; what is not finite or not above 0 moves nothing, and of what is longer than
    /// a period counts what is left after whole periods: no hint holds a loop up for longer. With
    /// `rate.delay_ms(model.take_phase_shift_ms())` before each sleep a loop follows the server's hints, by which a fleet's observations
    /// spread out.
    pub fn delay_ms(&mut self, milliseconds: f64) {
        self.grid.delay_ms(milliseconds);
    }

    /// Waits for the next tick; returns how many were missed since the last call (0 when in time).
    pub fn sleep(&mut self) -> u64 {
        let now = Instant::now();
        let (tick, missed) = self.grid.advance(now);
        std::thread::sleep(tick.saturating_duration_since(now));
        missed
    }

    /// [`sleep`](Rate::sleep) for async code. A call that is dropped has used up its tick.
    #[cfg(feature = "tokio")]
    pub async fn sleep_async(&mut self) -> u64 {
        let (tick, missed) = self.grid.advance(Instant::now());
        ::tokio::time::sleep_until(tick.into()).await;
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_ticks_are_skipped_and_counted() {
        let start = Instant::now();
        let ms = |number| start + Duration::from_millis(number);
        let mut grid = Grid { period: Duration::from_millis(10), next: ms(10) };
        assert_eq!(grid.advance(ms(3)), (ms(10), 0));
        assert_eq!(grid.advance(ms(12)), (ms(20), 0));
        assert_eq!(grid.advance(ms(30)), (ms(30), 0)); // just in time
        assert_eq!(grid.advance(ms(41)), (ms(50), 1)); // 40 is gone
        assert_eq!(grid.advance(ms(96)), (ms(100), 4)); // 60, 70, 80 and 90 are gone
        assert_eq!(grid.advance(ms(100)), (ms(110), 0));
    }

    #[test]
    fn a_delay_moves_the_grid_for_good() {
        let start = Instant::now();
        let ms = |number| start + Duration::from_millis(number);
        let mut grid = Grid { period: Duration::from_millis(10), next: ms(10) };
        assert_eq!(grid.advance(ms(3)), (ms(10), 0));
        grid.delay_ms(4.0);
        for nothing in [0.0, -3.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            grid.delay_ms(nothing);
        }
        assert_eq!(grid.advance(ms(12)), (ms(24), 0));
        assert_eq!(grid.advance(ms(35)), (ms(44), 1)); // 34 is gone
    }

    #[test]
    fn a_delay_holds_a_loop_up_for_less_than_a_period() {
        let start = Instant::now();
        let period = Duration::from_millis(10);
        for hint in [10.0, 3e9, f64::from(f32::MAX), f64::MAX] {
            let mut grid = Grid { period, next: start + period };
            grid.delay_ms(hint);
            let (tick, missed) = grid.advance(start);
            assert!(missed == 0 && tick >= start + period && tick <= start + 2 * period, "{hint}");
        }
        for (period_ms, hint) in [(50, 150.0), (20, 60.0), (10, 70.0), (3, 9.0)] {
            let period = Duration::from_millis(period_ms);
            let mut grid = Grid { period, next: start + period };
            grid.delay_ms(hint);
            assert_eq!(grid.next, start + period, "{hint}");
        }
        let mut grid = Grid { period, next: start + period };
        grid.delay_ms(34.0);
        assert_eq!(grid.advance(start).0.duration_since(start).as_micros(), 14_000);
    }

    #[test]
    fn hz_has_a_range() {
        for hz in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e7] {
            assert!(Rate::new(hz).is_err());
        }
        assert_eq!(Rate::new(50.0).unwrap().period(), Duration::from_millis(20));
    }
}
