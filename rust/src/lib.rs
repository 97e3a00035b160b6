//! Client for Inferential, which serves many robots and game agents from a few shared models.
//!
//! ```no_run
//! use inferential::Connection;
//!
//! let conn = Connection::new("tcp://localhost:5555", "agent-01", "franka");
//! let model = conn.model("policy-v2", 30.0, 1);
//!
//! let state: Vec<f32> = vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7];
//! model.observe()
//!     .urgency(0.8)
//!     .tensor_f32("state", &state, &[7])
//!     .send();
//!
//! if let Some(result) = model.get_result(50) {
//!     let actions = result["actions"].as_f32();
//! }
//! ```
//!
//! [`Connection`] and [`Model`] block; [`AsyncConnection`] and [`AsyncModel`] (feature `tokio`, on by default) are for tokio. Both
//! are thin shells around one state machine without I/O.
//!
//! # Every request ends once
//!
//! A sent observation ends in exactly one outcome: the server's terminal reply, or TIMED_OUT or LINK_LOST said by this
//! crate; one that was not sent says so at once. [`get_result`](Model::get_result) is for control loops and gives only fresh
//! answers; [`next_reply`](Model::next_reply) is for pipelines and gives every outcome; [`act`](Model::act) always gives something to do.
//!
//! # Features
//!
//! | feature | default | brings |
//! |---|---|---|
//! | `tokio` | yes | `AsyncConnection`, `AsyncModel`, `Rate::sleep_async` |
//! | `half` | no | `half::f16` and `half::bf16` as tensor elements |
//! | `ndarray` | no | `Tensor::from_array`, `Tensor::as_array`, `Observation::array` |

// Nothing that comes from outside may bring the program down.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]
#![deny(unsafe_code)]

mod blocking;
mod endpoint;
mod error;
mod image;
mod minifloat;
mod options;
mod rate;
mod reply;
mod tensor;
#[cfg(feature = "tokio")]
mod tokio;
mod watchdog;

// The layers below the clients are visible for this project's own tests, benchmarks and fuzz targets. They are no part of
// the API and may change in any release.
#[doc(hidden)]
pub mod observation;
#[doc(hidden)]
#[rustfmt::skip]
#[allow(clippy::all, missing_docs)]
pub mod proto;
#[doc(hidden)]
pub mod session;
#[doc(hidden)]
pub mod wire;
#[doc(hidden)]
pub mod zmq;

pub use blocking::{Connection, Model};
pub use error::{Error, NotSentReason};
pub use observation::{Observation, Sent};
pub use options::{ConnectionOptions, ModelOptions, DEFAULT_TIMEOUT_MS};
pub use rate::Rate;
pub use reply::{Counters, LinkState, Pong, Reason, Reply, Status, Timing};
pub use tensor::{
    BF16Bits, DType, Element, Encoding, F16Bits, F8E4M3FnBits, F8E5M2Bits, Tensor, Tensors, MAX_DIMENSIONS,
};
#[cfg(feature = "tokio")]
pub use tokio::{AsyncConnection, AsyncModel};
pub use watchdog::{Action, Fallback, Source};

/// The programs of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
