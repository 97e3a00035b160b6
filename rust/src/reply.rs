//! What comes back for an observation.

use std::collections::HashMap;
use std::fmt;
use std::ops::Index;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::tensor::{Tensor, Tensors};

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($variant:ident $number:literal $text:literal $doc:literal;)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $(#[doc = $doc] $variant,)*
            /// A code this version does not know.
            Other(i32),
        }

        impl $name {
            /// The code for this number.
            pub const fn from_code(code: i32) -> $name {
                match code { $($number => $name::$variant,)* other => $name::Other(other) }
            }

            /// The number; on the wire where it is one of the protocol.
            pub const fn code(self) -> i32 {
                match self { $($name::$variant => $number,)* $name::Other(other) => other }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $($name::$variant => formatter.write_str($text),)*
                    $name::Other(code) => write!(formatter, "{code}"),
                }
            }
        }
    };
}

codes! {
    /// How a request ended. Codes from 1001 on are said by this crate and never by a server.
    Status {
        Ok 0 "OK" "Answered: tensors and metadata are the model's.";
        InvalidObservation 1 "INVALID_OBSERVATION" "A field or tensor is wrong; mend the program.";
        UnknownModel 2 "UNKNOWN_MODEL" "The server has no such model; mend the program.";
        Rejected 3 "REJECTED" "Refused under load; fall back and wait `retry_after_ms`.";
        Expired 4 "EXPIRED" "Its deadline passed before it could be answered; fall back.";
        Superseded 5 "SUPERSEDED" "A newer observation took its place.";
        ModelError 6 "MODEL_ERROR" "The model failed, or its reply could not be read; fall back.";
        Unavailable 7 "UNAVAILABLE" "The model has no live replica; fall back and wait `retry_after_ms`.";
        ShuttingDown 8 "SHUTTING_DOWN" "The server is draining; fall back.";
        Unauthenticated 9 "UNAUTHENTICATED" "Reserved for authentication.";
        Cancelled 10 "CANCELLED" "This client asked for it.";
        TimedOut 1001 "TIMED_OUT" "No reply in the time given; fall back.";
        LinkLost 1002 "LINK_LOST" "The link went down while it was outstanding; fall back.";
        NotSent 1003 "NOT_SENT" "It never left this process.";
    }
}

impl Status {
    /// Whether the model answered.
    pub const fn is_ok(self) -> bool {
        matches!(self, Status::Ok)
    }
}

codes! {
    /// Why, finer than [`Status`].
    Reason {
        None 0 "NONE" "Nothing finer to say.";
        QueueFull 1 "QUEUE_FULL" "The server's queue is full.";
        CannotMeetDeadline 2 "CANNOT_MEET_DEADLINE" "It would have been late.";
        OverShare 3 "OVER_SHARE" "Others have a better claim under load.";
        TooLarge 4 "TOO_LARGE" "Message or queue share too large.";
    }
}

/// Where the time went, in ms on the server's clock.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Timing {
    /// Arrival to dispatch.
    pub queue_ms: f32,
    /// The model's execution alone.
    pub inference_ms: f32,
    /// Arrival to send.
    pub server_ms: f32,
    /// Requests that ran in the same call.
    pub batch_size: u32,
    /// Which replica ran it.
    pub replica: String,
}

/// The terminal outcome of one request: the server's reply, or what this crate says in its place.
///
/// `reply["actions"]` panics where there is no such tensor, as a map's index does; [`tensor`](Reply::tensor) is the checked form.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Reply {
    /// The id [`send`](crate::Observation::send) gave.
    pub request_id: u64,
    /// The model asked.
    pub model_id: String,
    /// The slot the observation was sent with.
    pub slot: String,
    /// How it ended.
    pub status: Status,
    /// Why, finer than the status.
    pub reason: Reason,
    /// For people: what was wrong, and what would be right. Empty with status OK.
    pub error: String,
    /// Whether this crate answered in the server's place (link lost, timed out, hold-off, unreadable reply).
    pub local: bool,
    /// The model's arrays; a bare array is named `actions`.
    pub tensors: Tensors,
    /// The model's strings.
    pub metadata: HashMap<String, String>,
    /// With REJECTED and UNAVAILABLE, how long not to ask this model again, in ms; 0 is no hint.
    pub retry_after_ms: f32,
    /// A hint of the server: delay the next observation by this many ms, once; 0 is none.
    pub phase_shift_ms: f32,
    /// Where the time went; none from v1 servers and in local answers.
    pub timing: Option<Timing>,
    /// The server's name for this reply, unique there.
    pub response_id: String,
    /// The server's wall clock at sending, in ns since 1970; 0 in local answers.
    pub timestamp_ns: u64,
    /// This client's wall clock at sending the observation, in ns since 1970.
    pub observation_timestamp_ns: u64,
    /// How long one action lasts, as sent with the observation, in ms; 0 is not known.
    pub step_ms: f32,
    pub(crate) sent: Instant,
    pub(crate) arrived: Instant,
}

impl Reply {
    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], with the names there are.
    pub fn tensor(&self, key: &str) -> Result<&Tensor, Error> {
        self.tensors.tensor(key)
    }

    /// Time since the observation was sent, in ms: how old what the model saw is by now.
    pub fn age_ms(&self) -> f64 {
        milliseconds(self.sent.elapsed())
    }

    /// Time from sending the observation to the arrival of this reply, in ms.
    pub fn round_trip_ms(&self) -> f64 {
        milliseconds(self.arrived.saturating_duration_since(self.sent))
    }
}

impl Index<&str> for Reply {
    type Output = Tensor;

    fn index(&self, key: &str) -> &Tensor {
        self.tensors.index(key)
    }
}

/// A server's answer to a ping.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Pong {
    /// Every model of the server, and whether it is ready.
    pub models: HashMap<String, bool>,
    /// The server's version.
    pub server: String,
    /// The protocol it speaks.
    pub protocol: u32,
    /// From sending the ping to its answer, in ms.
    pub round_trip_ms: f64,
}

/// State of the link to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkState {
    /// Never up so far.
    Connecting,
    /// The server is there.
    Up,
    /// It was up and is lost; it comes back by itself.
    Down,
    /// Closed by this program, or never opened because the address cannot be used.
    Closed,
}

impl fmt::Display for LinkState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            LinkState::Connecting => "CONNECTING",
            LinkState::Up => "UP",
            LinkState::Down => "DOWN",
            LinkState::Closed => "CLOSED",
        })
    }
}

/// What happened on a connection so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Observations handed to the link.
    pub sent: u64,
    /// Observations that never left this process.
    pub not_sent: u64,
    /// Requests the server answered OK.
    pub ok: u64,
    /// Requests the server answered otherwise, or with a reply that could not be read.
    pub not_ok: u64,
    /// Replies to requests that had ended already, and older ones than one already delivered.
    pub late_replies: u64,
    /// Messages that could not be read and named no request.
    pub bad_replies: u64,
    /// Requests abandoned by `get_result` or unanswered within `request_timeout_ms`.
    pub timed_out: u64,
    /// Requests outstanding when the link went down.
    pub link_lost: u64,
    /// Requests answered here, because the server had asked not to be asked.
    pub held_off: u64,
    /// Replies dropped because nobody took them.
    pub replies_dropped: u64,
    /// How often the link came up again.
    pub reconnects: u64,
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
