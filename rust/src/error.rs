//! Everything that can go wrong, by what a caller can do about it.

use crate::tensor::DType;

/// What went wrong.
///
/// An observation that was sent and not answered, or answered with an error, is no `Error`: it ends as a
/// [`Reply`](crate::Reply) whose [`status`](crate::Reply::status) says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server's address cannot be used. Mend the address.
    #[error(
        "address {address:?} must be tcp://HOST:PORT, with a port of 1 to 65535 and an IPv6 address in brackets, or ipc://PATH"
    )]
    InvalidAddress {
        /// The address as it was given.
        address: String,
    },

    /// A setting is out of its range. Mend the program.
    #[error("option {name}: {reason}")]
    InvalidOption {
        /// The setting's name.
        name: &'static str,
        /// What was given and what would be right.
        reason: String,
    },

    /// An observation that no server would accept. It was not sent and used no request id. Mend the program.
    #[error("observation for model {model:?}: {field}: {reason}")]
    InvalidObservation {
        /// The model it was meant for.
        model: String,
        /// The field or tensor.
        field: String,
        /// What was given and what would be right.
        reason: String,
    },

    /// Data, shape, dtype and encoding of a tensor do not fit together.
    #[error("tensor: {reason}")]
    InvalidTensor {
        /// What was given and what would be right.
        reason: String,
    },

    /// There is no tensor of that name.
    #[error("no tensor {key:?}; there are: {available}")]
    MissingTensor {
        /// The name asked for.
        key: String,
        /// The names there are, separated by commas.
        available: String,
    },

    /// The tensor holds another type; nothing was reinterpreted.
    #[error("the tensor holds {actual}, not {requested}")]
    WrongDType {
        /// The type asked for.
        requested: DType,
        /// The type the tensor holds.
        actual: DType,
    },

    /// The observation never left this process. It ended with this error and is told nowhere else.
    #[error("request {request_id} was not sent: {reason}")]
    NotSent {
        /// The id the request had taken.
        request_id: u64,
        /// Why.
        reason: NotSentReason,
    },

    /// The connection is closed.
    #[error("the connection is closed")]
    Closed,

    /// Another call waits for this model's replies already; only one may at a time.
    #[error("another call already waits for replies of model {model:?}; only one may at a time")]
    Busy {
        /// The model.
        model: String,
    },

    /// The operating system or libzmq refused an operation.
    #[error("{operation}: {reason}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The system's own words.
        reason: String,
    },
}

/// Why an observation was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotSentReason {
    /// No server was reached yet.
    #[error("no server has been reached yet")]
    NeverUp,
    /// The link to the server is down; it comes back by itself.
    #[error("the link to the server is down")]
    LinkDown,
    /// The send queue is full: the server or the network is slower than this loop.
    #[error("the send queue is full")]
    QueueFull,
    /// The connection was closed.
    #[error("the connection is closed")]
    Closed,
}
