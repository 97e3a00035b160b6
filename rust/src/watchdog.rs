//! What to do without a fresh answer: `act` and its declared fallback. No I/O, no clock.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::reply::{milliseconds, Reply, Status};
use crate::tensor::Tensors;

/// Where the tensors of an [`Action`] come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// A fresh answer of the model.
    Fresh,
    /// The last fresh answer, held.
    Hold,
    /// The last fresh answer, fading.
    Decay,
    /// Zeros.
    Zero,
    /// The program's own callback.
    Callback,
    /// Nothing: there was no fresh answer yet and no template was declared.
    None,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Source::Fresh => "FRESH",
            Source::Hold => "HOLD",
            Source::Decay => "DECAY",
            Source::Zero => "ZERO",
            Source::Callback => "CALLBACK",
            Source::None => "NONE",
        })
    }
}

/// What `act` returns: always something to do.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Action {
    /// What to do.
    pub tensors: Tensors,
    /// Where it comes from.
    pub source: Source,
    /// Since the observation that the tensors answer was sent, in ms; 0 where they answer none.
    pub age_ms: f64,
    /// How many entries of an action chunk have gone by since then; 0 where `step_ms` is not known.
    pub steps_late: u64,
    /// The answer that the tensors come from: the fresh one, or the last fresh one; none before the first. With
    /// [`Source::Callback`] the one that the callback was given.
    pub reply: Option<Reply>,
    /// OK with a fresh answer, else what ended this act's wait: a refusal, LINK_LOST, TIMED_OUT; none where nothing was outstanding, or a
    /// timeout of 0 found nothing yet.
    pub status: Option<Status>,
    /// The same for people; empty with a fresh answer.
    pub error: String,
}

type Callback = dyn Fn(Option<&Reply>, Duration) -> Tensors + Send + Sync;

#[derive(Clone)]
enum Kind {
    Zero,
    Hold { max_ms: f64 },
    Decay { half_life_ms: f64 },
    Callback(Arc<Callback>),
}

/// What [`act`](crate::Model::act) does without a fresh answer.
///
/// A `template` says what zeros look like before the first fresh answer.
///
/// ```
/// use inferential::{Fallback, ModelOptions, Tensor};
///
/// let mut stand_still = inferential::Tensors::new();
/// stand_still.insert("actions", Tensor::from_vec(vec![0.0f32; 7], &[7])?);
/// let options = ModelOptions::new("policy").step_ms(20.0).fallback(Fallback::hold(200.0).template(stand_still));
/// # Ok::<(), inferential::Error>(())
/// ```
#[derive(Clone)]
pub struct Fallback {
    kind: Kind,
    template: Tensors,
}

impl Fallback {
    /// Zeros shaped like the last fresh answer, or like the template.
    pub fn zero() -> Fallback {
        Fallback::of(Kind::Zero)
    }

    /// The last fresh answer for at most `max_ms` (0 or more) after it arrived, then zeros. A wrong time shows in the model handle's
    /// first send.
    pub fn hold(max_ms: f64) -> Fallback {
        Fallback::of(Kind::Hold { max_ms })
    }

    /// The last fresh answer, its floating point tensors halved every `half_life_ms` (finite, above 0) since it arrived. A wrong time
    /// shows in the model handle's first send.
    pub fn decay(half_life_ms: f64) -> Fallback {
        Fallback::of(Kind::Decay { half_life_ms })
    }

    /// What `callback` returns for the last fresh answer (none before the first) and its age: the time since its
    /// observation was sent.
    pub fn callback(callback: impl Fn(Option<&Reply>, Duration) -> Tensors + Send + Sync + 'static) -> Fallback {
        Fallback::of(Kind::Callback(Arc::new(callback)))
    }

    /// What zeros look like before the first fresh answer: types and shapes of `template`.
    #[must_use]
    pub fn template(mut self, template: Tensors) -> Fallback {
        self.template = template.map(|tensor| tensor.zeros_like());
        self
    }

    fn of(kind: Kind) -> Fallback {
        Fallback { kind, template: Tensors::new() }
    }

    /// What is wrong with its time.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.kind {
            Kind::Hold { max_ms } if max_ms.is_nan() || max_ms < 0.0 => {
                Err(format!("hold for {max_ms} ms; must be 0 or more"))
            }
            Kind::Decay { half_life_ms } if !half_life_ms.is_finite() || half_life_ms <= 0.0 => {
                Err(format!("decay with a half-life of {half_life_ms} ms; must be finite and above 0"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Fallback {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Zero => formatter.write_str("Zero"),
            Kind::Hold { max_ms } => write!(formatter, "Hold({max_ms} ms)"),
            Kind::Decay { half_life_ms } => write!(formatter, "Decay({half_life_ms} ms)"),
            Kind::Callback(_) => formatter.write_str("Callback"),
        }
    }
}

/// Why a `get_result` gave no answer.
#[derive(Debug)]
pub(crate) enum Missed {
    /// A request ended so, or TIMED_OUT.
    Ended(Status, String),
    /// It only looked.
    NotYet,
    /// Nothing was outstanding.
    Nothing,
}

/// How a `get_result` ended.
pub(crate) type Outcome = Result<Reply, Missed>;

/// What the session gave, and how it says that the call ended.
pub(crate) fn outcome(reply: Option<Reply>, last: Option<(Status, String)>) -> Outcome {
    reply.ok_or_else(|| last.map_or(Missed::Nothing, |(status, error)| Missed::Ended(status, error)))
}

/// Remembers the last fresh answer of one model handle.
#[derive(Debug)]
pub(crate) struct Watchdog {
    fallback: Fallback,
    fresh: Mutex<Option<Arc<Reply>>>,
}

impl Watchdog {
    pub(crate) fn new(fallback: Fallback) -> Watchdog {
        Watchdog { fallback, fresh: Mutex::new(None) }
    }

    /// The action for what this very `get_result` gave.
    pub(crate) fn decide(&self, result: Result<Outcome, Error>, now: Instant) -> Action {
        let (status, error) = match result {
            Ok(Ok(reply)) => return self.on_fresh(reply, now),
            Ok(Err(Missed::Ended(status, error))) => (Some(status), error),
            Ok(Err(Missed::NotYet)) => (None, "no reply yet".to_owned()),
            Ok(Err(Missed::Nothing)) => (None, "nothing was outstanding".to_owned()),
            Err(error) => (None, error.to_string()),
        };
        Action { status, error, ..self.fall_back(now) }
    }

    fn on_fresh(&self, reply: Reply, now: Instant) -> Action {
        let action = self.action(Source::Fresh, reply.tensors.clone(), Some(&reply), now);
        *self.fresh() = Some(Arc::new(reply));
        Action { status: Some(Status::Ok), ..action }
    }

    fn fresh(&self) -> MutexGuard<'_, Option<Arc<Reply>>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fall_back(&self, now: Instant) -> Action {
        // Not locked while the callback runs, which may act on the model itself.
        let fresh = self.fresh().clone();
        let fresh = fresh.as_deref();
        let since_arrival = fresh.map(|reply| milliseconds(now.saturating_duration_since(reply.arrived)));
        let (source, tensors) = match (&self.fallback.kind, fresh, since_arrival) {
            (Kind::Callback(callback), _, _) => {
                let age = fresh.map_or(Duration::ZERO, |reply| now.saturating_duration_since(reply.sent));
                let action = self.action(Source::Callback, callback(fresh, age), None, now);
                return Action { reply: fresh.cloned(), ..action };
            }
            (Kind::Hold { max_ms }, Some(reply), Some(since)) if since <= *max_ms => {
                (Source::Hold, reply.tensors.clone())
            }
            (Kind::Decay { half_life_ms }, Some(reply), Some(since)) => {
                let factor = 0.5f64.powf(since / half_life_ms);
                (Source::Decay, reply.tensors.map(|tensor| tensor.scaled(factor)))
            }
            (_, Some(reply), _) => (Source::Zero, reply.tensors.map(|tensor| tensor.zeros_like())),
            (_, None, _) if !self.fallback.template.is_empty() => (Source::Zero, self.fallback.template.clone()),
            (_, None, _) => (Source::None, Tensors::new()),
        };
        self.action(source, tensors, fresh, now)
    }

    fn action(&self, source: Source, tensors: Tensors, answered: Option<&Reply>, now: Instant) -> Action {
        let age_ms = answered.map_or(0.0, |reply| milliseconds(now.saturating_duration_since(reply.sent)));
        let step_ms = answered.map_or(0.0, |reply| f64::from(reply.step_ms));
        let steps_late = if step_ms > 0.0 { (age_ms / step_ms).floor() as u64 } else { 0 };
        Action { tensors, source, age_ms, steps_late, reply: answered.cloned(), status: None, error: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::reply::Reason;
    use crate::tensor::{F16Bits, F8E4M3FnBits, Tensor};

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    /// An answer sent at `start` and arrived 10 ms later.
    fn answer(start: Instant, tensors: Tensors) -> Reply {
        Reply {
            request_id: 1,
            model_id: "policy".to_owned(),
            slot: String::new(),
            status: Status::Ok,
            reason: Reason::None,
            error: String::new(),
            local: false,
            tensors,
            metadata: HashMap::new(),
            retry_after_ms: 0.0,
            phase_shift_ms: 0.0,
            timing: None,
            response_id: String::new(),
            timestamp_ns: 0,
            observation_timestamp_ns: 0,
            step_ms: 20.0,
            sent: start,
            arrived: start + ms(10),
        }
    }

    fn actions(values: &[f32]) -> Tensors {
        let tensor = Tensor::from_slice(values, &[values.len()]).unwrap();
        [("actions".to_owned(), tensor)].into_iter().collect()
    }

    fn values(action: &Action) -> Vec<f32> {
        action.tensors["actions"].to_vec().unwrap()
    }

    /// A watchdog that has seen [2, -4], and when that was sent.
    fn fed(fallback: Fallback) -> (Watchdog, Instant) {
        let start = Instant::now();
        let watchdog = Watchdog::new(fallback);
        let action = watchdog.decide(Ok(Ok(answer(start, actions(&[2.0, -4.0])))), start + ms(50));
        assert_eq!((action.source, action.age_ms, action.steps_late), (Source::Fresh, 50.0, 2));
        assert_eq!((action.status, values(&action)), (Some(Status::Ok), vec![2.0, -4.0]));
        assert_eq!(action.reply.unwrap().request_id, 1);
        (watchdog, start)
    }

    fn without(watchdog: &Watchdog, now: Instant) -> Action {
        watchdog.decide(Ok(Err(Missed::Ended(Status::Expired, "late".to_owned()))), now)
    }

    #[test]
    fn hold_until_its_time_is_over() {
        let (watchdog, start) = fed(Fallback::hold(100.0));
        let held = without(&watchdog, start + ms(110)); // 100 ms after it arrived
        assert_eq!((held.source, held.age_ms, held.steps_late), (Source::Hold, 110.0, 5));
        assert_eq!(values(&held), [2.0, -4.0]);
        assert_eq!((held.status, held.error.as_str()), (Some(Status::Expired), "late"));
        let from = |action: &Action| action.reply.as_ref().map(|reply| reply.request_id);
        assert_eq!(from(&held), Some(1));
        let over = without(&watchdog, start + ms(111));
        assert_eq!(from(&over), Some(1));
        assert_eq!((over.source, values(&over), over.age_ms), (Source::Zero, vec![0.0, 0.0], 111.0));
    }

    #[test]
    fn decay_halves_floats_and_holds_the_rest() {
        let start = Instant::now();
        let watchdog = Watchdog::new(Fallback::decay(50.0));
        let mut tensors = actions(&[8.0, -4.0]);
        tensors.insert("gripper", Tensor::from_slice(&[7i32], &[1]).unwrap());
        tensors.insert("double", Tensor::from_slice(&[8.0f64], &[]).unwrap());
        tensors.insert("half", Tensor::from_slice(&[F16Bits::from_f32(8.0)], &[1]).unwrap());
        tensors.insert("eighth", Tensor::from_slice(&[F8E4M3FnBits::from_f32(8.0)], &[1]).unwrap());
        watchdog.decide(Ok(Ok(answer(start, tensors))), start + ms(10));
        let action = without(&watchdog, start + ms(110)); // two half-lives after it arrived
        assert_eq!((action.source, values(&action)), (Source::Decay, vec![2.0, -1.0]));
        assert_eq!(action.tensors["gripper"].as_slice::<i32>().unwrap(), [7]);
        assert_eq!(action.tensors["double"].as_slice::<f64>().unwrap(), [2.0]);
        assert_eq!(action.tensors["half"].as_slice::<F16Bits>().unwrap()[0].to_f32(), 2.0);
        assert_eq!(action.tensors["eighth"].as_slice::<F8E4M3FnBits>().unwrap()[0].to_f32(), 2.0);
        assert_eq!(action.tensors["double"].shape(), [0usize; 0]);
    }

    #[test]
    fn decay_rounds_once_and_keeps_what_is_no_number() {
        let factor = 0.5f64.powf(0.1);
        let values: Vec<f32> = (1..1000).map(|number| number as f32 * 0.1).collect();
        let scaled = Tensor::from_slice(&values, &[values.len()]).unwrap().scaled(factor);
        let exact: Vec<f32> = values.iter().map(|&value| (f64::from(value) * factor) as f32).collect();
        assert_eq!(scaled.as_f32().unwrap(), exact);
        let nans = [F8E4M3FnBits(0x7f), F8E4M3FnBits(0xff)];
        assert_eq!(Tensor::from_slice(&nans, &[2]).unwrap().scaled(factor).as_slice::<F8E4M3FnBits>().unwrap(), nans);
    }

    #[test]
    fn zero_has_the_shape_of_the_last_answer_or_of_the_template() {
        let template = actions(&[1.0, 1.0, 1.0]);
        let watchdog = Watchdog::new(Fallback::zero().template(template.clone()));
        let before = without(&watchdog, Instant::now());
        assert_eq!((before.source, values(&before), before.age_ms), (Source::Zero, vec![0.0; 3], 0.0));
        assert!(before.reply.is_none());
        let (watchdog, start) = fed(Fallback::zero().template(template));
        let after = without(&watchdog, start + ms(60));
        assert_eq!((after.source, values(&after), after.age_ms), (Source::Zero, vec![0.0; 2], 60.0));
    }

    #[test]
    fn without_answer_and_template_there_is_nothing() {
        for fallback in [Fallback::zero(), Fallback::hold(100.0), Fallback::decay(100.0)] {
            let action = without(&Watchdog::new(fallback), Instant::now());
            assert_eq!((action.source, action.tensors.len(), action.age_ms), (Source::None, 0, 0.0));
            assert!(action.reply.is_none());
        }
        let held = Watchdog::new(Fallback::hold(1e9).template(actions(&[1.0])));
        assert_eq!(without(&held, Instant::now()).source, Source::Zero);
    }

    #[test]
    fn callback_is_given_the_last_answer_and_its_age() {
        let callback = |last: Option<&Reply>, age: Duration| {
            actions(&[last.map_or(-1.0, |reply| reply.request_id as f32), age.as_millis() as f32])
        };
        let before = without(&Watchdog::new(Fallback::callback(callback)), Instant::now());
        assert_eq!((before.source, values(&before)), (Source::Callback, vec![-1.0, 0.0]));
        let (watchdog, start) = fed(Fallback::callback(callback));
        let after = without(&watchdog, start + ms(70));
        assert_eq!((values(&after), after.age_ms, after.steps_late), (vec![1.0, 70.0], 0.0, 0));
        assert!(before.reply.is_none());
        assert_eq!(after.reply.unwrap().request_id, 1);
    }

    #[test]
    fn errors_fall_back_too() {
        let (watchdog, start) = fed(Fallback::hold(1000.0));
        let action = watchdog.decide(Err(Error::Closed), start + ms(60));
        assert_eq!((action.source, action.error), (Source::Hold, Error::Closed.to_string()));
        let idle = watchdog.decide(Ok(Err(Missed::Nothing)), start + ms(60));
        assert_eq!((idle.status, idle.error.as_str()), (None, "nothing was outstanding"));
        let early = watchdog.decide(Ok(Err(Missed::NotYet)), start + ms(60));
        assert_eq!((early.status, early.error.as_str()), (None, "no reply yet"));
    }

    #[test]
    fn a_wrong_time_is_told() {
        for right in [Fallback::zero(), Fallback::hold(0.0), Fallback::hold(f64::INFINITY), Fallback::decay(0.1)] {
            assert_eq!(right.check(), Ok(()));
        }
        for wrong in [f64::NAN, -1.0] {
            assert!(Fallback::hold(wrong).check().is_err() && Fallback::decay(wrong).check().is_err());
        }
        assert!(Fallback::decay(0.0).check().is_err() && Fallback::decay(f64::INFINITY).check().is_err());
    }
}
