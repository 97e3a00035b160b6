//! The part of libzmq that this crate uses, and all of its `unsafe` code.
//!
//! The wrappers hold these rules, on which every block below rests:
//!
//! * A `Socket` keeps its `Context` alive, so the context is terminated only after all its sockets are closed.
//! * A `Socket` may move between threads but not be shared (`Send`, not `Sync`); the lock it is kept under is the full
//!   memory fence that libzmq asks for.
//! * A `Message` is initialised from its construction to its drop. A `zmq_msg_t` may be moved in memory (libzmq's own
//!   `msg_t` is trivially copyable and holds no pointer to itself); only the bytes of a short message move with it, and
//!   the borrow checker sees to it that nobody holds a slice of them meanwhile.
//! * In the child of a fork contexts and sockets are left alone: libzmq's threads, and whoever held its locks, stayed behind.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::{io, ptr, slice};

use bytes::Bytes;

// Linked for libzmq's CURVE.
use libsodium_sys as _;

mod ffi {
    use super::{c_char, c_int, c_void};

    /// `zmq_msg_t`: 64 bytes, aligned as a pointer.
    #[repr(C, align(8))]
    pub struct Msg {
        pub opaque: [u8; 64],
    }

    pub type FreeFn = unsafe extern "C" fn(data: *mut c_void, hint: *mut c_void);

    extern "C" {
        pub fn zmq_errno() -> c_int;
        pub fn zmq_strerror(errnum: c_int) -> *const c_char;
        pub fn zmq_has(capability: *const c_char) -> c_int;
        pub fn zmq_ctx_new() -> *mut c_void;
        pub fn zmq_ctx_term(context: *mut c_void) -> c_int;
        pub fn zmq_socket(context: *mut c_void, kind: c_int) -> *mut c_void;
        pub fn zmq_close(socket: *mut c_void) -> c_int;
        pub fn zmq_setsockopt(socket: *mut c_void, option: c_int, value: *const c_void, length: usize) -> c_int;
        pub fn zmq_getsockopt(socket: *mut c_void, option: c_int, value: *mut c_void, length: *mut usize) -> c_int;
        pub fn zmq_bind(socket: *mut c_void, endpoint: *const c_char) -> c_int;
        pub fn zmq_connect(socket: *mut c_void, endpoint: *const c_char) -> c_int;
        pub fn zmq_disconnect(socket: *mut c_void, endpoint: *const c_char) -> c_int;
        pub fn zmq_socket_monitor(socket: *mut c_void, endpoint: *const c_char, events: c_int) -> c_int;
        pub fn zmq_msg_init(message: *mut Msg) -> c_int;
        pub fn zmq_msg_init_size(message: *mut Msg, size: usize) -> c_int;
        pub fn zmq_msg_init_data(
            message: *mut Msg,
            data: *mut c_void,
            size: usize,
            free: Option<FreeFn>,
            hint: *mut c_void,
        ) -> c_int;
        pub fn zmq_msg_send(message: *mut Msg, socket: *mut c_void, flags: c_int) -> c_int;
        pub fn zmq_msg_recv(message: *mut Msg, socket: *mut c_void, flags: c_int) -> c_int;
        pub fn zmq_msg_close(message: *mut Msg) -> c_int;
        pub fn zmq_msg_data(message: *mut Msg) -> *mut c_void;
        pub fn zmq_msg_size(message: *const Msg) -> usize;
        pub fn zmq_msg_more(message: *const Msg) -> c_int;
        // Of the C library.
        pub fn pthread_atfork(
            prepare: Option<extern "C" fn()>,
            parent: Option<extern "C" fn()>,
            child: Option<extern "C" fn()>,
        ) -> c_int;
    }
}

const DONTWAIT: c_int = 1;
const SNDMORE: c_int = 2;
const FD: c_int = 14;
const EVENTS: c_int = 15;
const LAST_ENDPOINT: c_int = 32;

/// Kinds of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SocketKind {
    Pair = 0,
    Dealer = 5,
    Router = 6,
}

/// Socket options that are C `int`s, with their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum IntOption {
    Linger = 17,
    ReconnectIvl = 18,
    ReconnectIvlMax = 21,
    SendHwm = 23,
    ReceiveHwm = 24,
    RouterMandatory = 33,
    Immediate = 39,
    Ipv6 = 42,
    HeartbeatIvl = 75,
    HeartbeatTtl = 76,
    HeartbeatTimeout = 77,
    ConnectTimeout = 79,
}

const MAX_MESSAGE_SIZE: c_int = 22;

/// What a monitor tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkEvent {
    /// ZMTP handshake done.
    Up,
    /// Connection gone.
    Down,
}

const EVENT_DISCONNECTED: u16 = 0x0200;
const EVENT_HANDSHAKE_SUCCEEDED: u16 = 0x1000;

/// The error of the libzmq call that just failed on this thread.
fn last_error() -> io::Error {
    // SAFETY: zmq_errno only reads this thread's errno; zmq_strerror returns a static string.
    unsafe {
        let number = ffi::zmq_errno();
        let text = CStr::from_ptr(ffi::zmq_strerror(number)).to_string_lossy();
        // libzmq's own numbers (above 156384712) mean nothing to the standard library.
        if number > 100_000 {
            io::Error::other(text.into_owned())
        } else {
            io::Error::from_raw_os_error(number)
        }
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result == -1 {
        Err(last_error())
    } else {
        Ok(())
    }
}

/// Whether the libzmq linked has this capability, for instance `c"curve"`.
pub fn has(capability: &CStr) -> bool {
    // SAFETY: the argument is a C string.
    unsafe { ffi::zmq_has(capability.as_ptr()) == 1 }
}

/// Forks of this process and its ancestors since this crate was first used in them.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// A process, told apart from the children that it forks. Counted rather than asked of the system, so that every call can ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    forks: u32,
}

impl Process {
    /// This one.
    pub fn current() -> Process {
        extern "C" fn count() {
            FORKS.fetch_add(1, Ordering::Relaxed);
        }
        static COUNTING: Once = Once::new();
        COUNTING.call_once(|| {
            // SAFETY: the function lives as long as the program, and does no more than a child of many threads may. Without
            // memory for it nothing is counted.
            unsafe { ffi::pthread_atfork(None, None, Some(count)) };
        });
        Process { forks: FORKS.load(Ordering::Relaxed) }
    }

    /// Whether it is this one, and this one is no child that was forked since.
    pub fn is_current(self) -> bool {
        self.forks == FORKS.load(Ordering::Relaxed)
    }
}

/// A libzmq context: the I/O thread and what it serves.
pub struct Context {
    raw: NonNull<c_void>,
    /// That made it.
    process: Process,
}

// SAFETY: libzmq documents contexts as thread-safe.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// A context with one I/O thread.
    ///
    /// # Errors
    /// Where the system has no descriptors left.
    pub fn new() -> io::Result<Arc<Context>> {
        let process = Process::current();
        // SAFETY: no arguments.
        let context = unsafe { ffi::zmq_ctx_new() };
        NonNull::new(context).map(|raw| Arc::new(Context { raw, process })).ok_or_else(last_error)
    }

    /// A socket of this context.
    ///
    /// # Errors
    /// Where there are too many.
    pub fn socket(self: &Arc<Self>, kind: SocketKind) -> io::Result<Socket> {
        // SAFETY: the context is live.
        let socket = unsafe { ffi::zmq_socket(self.raw.as_ptr(), kind as c_int) };
        let raw = NonNull::new(socket).ok_or_else(last_error)?;
        Ok(Socket { raw, context: Arc::clone(self) })
    }
}

impl Drop for Context {
    /// Blocks for at most the longest linger of its sockets, all of which are closed. In the child of a fork it does nothing: there
    /// the call waits for a thread that does not exist, or is interrupted for ever.
    fn drop(&mut self) {
        // SAFETY: nothing uses the context any more. A signal may interrupt the call, which is then repeated.
        unsafe {
            while self.process.is_current()
                && ffi::zmq_ctx_term(self.raw.as_ptr()) == -1
                && ffi::zmq_errno() == rustix::io::Errno::INTR.raw_os_error()
            {}
        }
    }
}

/// A socket; used by one thread at a time.
pub struct Socket {
    raw: NonNull<c_void>,
    /// Dropped after the socket is closed.
    context: Arc<Context>,
}

// SAFETY: libzmq lets a socket move between threads with a full fence, which moving a value between threads is.
unsafe impl Send for Socket {}

impl Socket {
    /// Whether this is the child of a fork of the process that made it: no call is of any use then.
    pub fn inherited(&self) -> bool {
        !self.context.process.is_current()
    }

    /// Whether a call that failed so is to be repeated: a signal came in between. In the child of a fork all calls fail like that.
    fn interrupted(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::Interrupted && !self.inherited()
    }

    /// Sets an option.
    ///
    /// # Errors
    /// Where the value is out of range.
    pub fn set(&self, option: IntOption, value: i32) -> io::Result<()> {
        let value: c_int = value;
        let pointer = ptr::from_ref(&value).cast();
        // SAFETY: pointer and length describe `value`, which the call copies.
        check(unsafe { ffi::zmq_setsockopt(self.raw.as_ptr(), option as c_int, pointer, size_of::<c_int>()) })
    }

    /// Limits the size of frames that come in; a peer that sends a larger one loses its connection.
    ///
    /// # Errors
    /// Where the value is out of range.
    pub fn set_max_message_bytes(&self, value: i64) -> io::Result<()> {
        let pointer = ptr::from_ref(&value).cast();
        // SAFETY: pointer and length describe `value`, which the call copies.
        check(unsafe { ffi::zmq_setsockopt(self.raw.as_ptr(), MAX_MESSAGE_SIZE, pointer, size_of::<i64>()) })
    }

    fn get(&self, option: c_int) -> io::Result<c_int> {
        let mut value: c_int = 0;
        let mut length = size_of::<c_int>();
        let pointer = ptr::from_mut(&mut value).cast();
        // SAFETY: pointer and length describe `value`.
        check(unsafe { ffi::zmq_getsockopt(self.raw.as_ptr(), option, pointer, &mut length) })?;
        Ok(value)
    }

    /// Has libzmq see to its commands, as it does whenever it is asked for its events.
    ///
    /// In every 100th call that receives a frame it does so too, and aborts the program where that call is in the midst of a message and
    /// one of the commands says that the link is gone. So whoever reads many messages calls this between two of them.
    pub fn see_to_commands(&self) {
        let _ = self.get(EVENTS);
    }

    /// A descriptor that becomes readable when there is news. It is edge-triggered: only after `receive` has said that
    /// nothing is there does it signal what comes next. It is a duplicate, valid for as long as its owner keeps it.
    ///
    /// # Errors
    /// Where the system has no descriptors left.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        let raw: RawFd = self.get(FD)?;
        // SAFETY: the descriptor belongs to this live socket for the length of this statement.
        unsafe { BorrowedFd::borrow_raw(raw) }.as_fd().try_clone_to_owned()
    }

    /// Binds; returns the address with the port in it that the system chose.
    ///
    /// # Errors
    /// Where the address is invalid or in use.
    pub fn bind(&self, address: &str) -> io::Result<String> {
        let address = CString::new(address)?;
        // SAFETY: the argument is a C string.
        check(unsafe { ffi::zmq_bind(self.raw.as_ptr(), address.as_ptr()) })?;
        let mut endpoint = [0u8; 256];
        let mut length = endpoint.len();
        let pointer = endpoint.as_mut_ptr().cast();
        // SAFETY: pointer and length describe `endpoint`.
        check(unsafe { ffi::zmq_getsockopt(self.raw.as_ptr(), LAST_ENDPOINT, pointer, &mut length) })?;
        let text = CStr::from_bytes_until_nul(&endpoint).map_err(io::Error::other)?;
        Ok(text.to_string_lossy().into_owned())
    }

    /// Connects, in the background.
    ///
    /// # Errors
    /// Where the address is invalid.
    pub fn connect(&self, address: &str) -> io::Result<()> {
        let address = CString::new(address)?;
        // SAFETY: the argument is a C string.
        check(unsafe { ffi::zmq_connect(self.raw.as_ptr(), address.as_ptr()) })
    }

    /// Gives up a connection, given the address as [`connect`](Socket::connect) was.
    ///
    /// # Errors
    /// Where there is none.
    pub fn disconnect(&self, address: &str) -> io::Result<()> {
        let address = CString::new(address)?;
        // SAFETY: the argument is a C string.
        check(unsafe { ffi::zmq_disconnect(self.raw.as_ptr(), address.as_ptr()) })
    }

    /// A socket that receives this one's link events.
    ///
    /// # Errors
    /// Where there are too many sockets.
    pub fn monitor(&self, context: &Arc<Context>) -> io::Result<Socket> {
        // One per socket, so the socket's address makes the name unique.
        let address = format!("inproc://monitor-{:p}", self.raw);
        let c_address = CString::new(address.as_str())?;
        let events = c_int::from(EVENT_DISCONNECTED | EVENT_HANDSHAKE_SUCCEEDED);
        // SAFETY: the argument is a C string.
        check(unsafe { ffi::zmq_socket_monitor(self.raw.as_ptr(), c_address.as_ptr(), events) })?;
        let monitor = context.socket(SocketKind::Pair)?;
        monitor.set(IntOption::Linger, 0)?;
        // Unlimited: an idle program reads no events, and a full queue would stop ZMQ's own thread.
        monitor.set(IntOption::ReceiveHwm, 0)?;
        monitor.connect(&address)?;
        Ok(monitor)
    }

    /// On a monitor: the next link event, if there is one.
    ///
    /// # Errors
    /// Where the context is being terminated.
    pub fn receive_link_event(&self) -> io::Result<Option<LinkEvent>> {
        loop {
            let Some(event) = self.receive()? else { return Ok(None) };
            // The first frame starts with the event's number; the second is the address.
            let number = match event.as_ref() {
                [low, high, ..] => u16::from_ne_bytes([*low, *high]),
                _ => 0,
            };
            let mut more = event.more();
            while more {
                more = self.receive()?.is_some_and(|frame| frame.more());
            }
            match number {
                EVENT_HANDSHAKE_SUCCEEDED => return Ok(Some(LinkEvent::Up)),
                EVENT_DISCONNECTED => return Ok(Some(LinkEvent::Down)),
                _ => {}
            }
        }
    }

    /// The next frame, if one is there.
    ///
    /// # Errors
    /// Where the context is being terminated, and in the child of a fork.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        let mut message = Message::new();
        loop {
            // SAFETY: `message` is initialised.
            match check(unsafe { ffi::zmq_msg_recv(&mut message.0, self.raw.as_ptr(), DONTWAIT) }) {
                Ok(()) => return Ok(Some(message)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if self.interrupted(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends one frame, or fails at once; `more`: others follow.
    ///
    /// # Errors
    /// `WouldBlock` where no peer is there or the queue is full; `Interrupted` in the child of a fork.
    pub fn send(&self, mut message: Message, more: bool) -> io::Result<()> {
        let flags = if more { DONTWAIT | SNDMORE } else { DONTWAIT };
        loop {
            // SAFETY: `message` is initialised; on success the call has emptied it, and dropping it stays right.
            match check(unsafe { ffi::zmq_msg_send(&mut message.0, self.raw.as_ptr(), flags) }) {
                Err(error) if self.interrupted(&error) => {}
                result => return result,
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.inherited() {
            // SAFETY: the socket is live and not used after this.
            unsafe { ffi::zmq_close(self.raw.as_ptr()) };
        }
    }
}

/// One frame.
pub struct Message(ffi::Msg);

// SAFETY: a message owns its bytes or shares them by an atomic count.
unsafe impl Send for Message {}
// SAFETY: `&Message` gives read access only.
unsafe impl Sync for Message {}

impl Message {
    /// An empty frame.
    pub fn new() -> Message {
        let mut message = ffi::Msg { opaque: [0; 64] };
        // SAFETY: initialises `message`; it cannot fail.
        unsafe { ffi::zmq_msg_init(&mut message) };
        Message(message)
    }

    /// A frame of `length` bytes: copies of the pieces at their offsets, zeros between them.
    ///
    /// # Errors
    /// Where there is no memory, or the pieces overlap, are not in order or do not fit.
    pub fn gather<'p>(length: usize, pieces: impl Iterator<Item = (usize, &'p [u8])>) -> io::Result<Message> {
        let mut message = ffi::Msg { opaque: [0; 64] };
        // SAFETY: initialises `message` where it succeeds.
        check(unsafe { ffi::zmq_msg_init_size(&mut message, length) })?;
        let mut message = Message(message);
        // SAFETY: the message is initialised.
        let data = unsafe { ffi::zmq_msg_data(&mut message.0) }.cast::<u8>();
        let mut written = 0;
        for (offset, piece) in pieces.chain([(length, &[][..])]) {
            if offset < written || piece.len() > length.saturating_sub(offset) || offset > length {
                return Err(io::Error::other(format!("a piece at {offset} after {written} of {length} bytes")));
            }
            // SAFETY: `data` has `length` bytes that nobody else refers to, and written <= offset <= offset + piece <= length.
            unsafe {
                data.add(written).write_bytes(0, offset - written);
                data.add(offset).copy_from_nonoverlapping(piece.as_ptr(), piece.len());
            }
            written = offset + piece.len();
        }
        Ok(message)
    }

    /// A frame with a copy of these bytes.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn copy_of(bytes: &[u8]) -> io::Result<Message> {
        Message::gather(bytes.len(), std::iter::once((0, bytes)))
    }

    /// A frame that sends these bytes from where they lie and keeps them alive until then.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn sharing(bytes: Bytes) -> io::Result<Message> {
        /// Called once by libzmq's I/O thread, or by the thread that drops the message; `Bytes` may be dropped by any.
        unsafe extern "C" fn release(_data: *mut c_void, hint: *mut c_void) {
            // SAFETY: `hint` is the pointer that `Box::into_raw` gave below.
            drop(unsafe { Box::from_raw(hint.cast::<Bytes>()) });
        }
        let data = bytes.as_ptr().cast_mut().cast();
        let size = bytes.len();
        let owner = Box::into_raw(Box::new(bytes));
        let mut message = ffi::Msg { opaque: [0; 64] };
        // SAFETY: the bytes live as long as `owner`, which `release` frees; libzmq never writes to a message it sends.
        let result = check(unsafe { ffi::zmq_msg_init_data(&mut message, data, size, Some(release), owner.cast()) });
        if let Err(error) = result {
            // SAFETY: the call failed, so nobody else has the pointer.
            drop(unsafe { Box::from_raw(owner) });
            return Err(error);
        }
        Ok(Message(message))
    }

    /// Whether more frames of the same message follow.
    pub fn more(&self) -> bool {
        // SAFETY: the message is initialised.
        unsafe { ffi::zmq_msg_more(&self.0) == 1 }
    }
}

impl Default for Message {
    fn default() -> Self {
        Message::new()
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the message is initialised; zmq_msg_data only reads it, and its bytes live and stay as long as `self` is
        // borrowed. An empty message may have no address.
        unsafe {
            let size = ffi::zmq_msg_size(&self.0);
            if size == 0 {
                return &[];
            }
            slice::from_raw_parts(ffi::zmq_msg_data(ptr::from_ref(&self.0).cast_mut()).cast(), size)
        }
    }
}

impl From<Message> for Bytes {
    /// The frame's bytes, without a copy where they are many.
    fn from(message: Message) -> Bytes {
        const WORTH_SHARING: usize = 1024;
        if message.as_ref().len() < WORTH_SHARING {
            Bytes::copy_from_slice(message.as_ref())
        } else {
            Bytes::from_owner(message)
        }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: the message is initialised.
        unsafe { ffi::zmq_msg_close(&mut self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libzmq_has_curve() {
        assert!(has(c"curve"));
        assert!(!has(c"no such thing"));
    }

    #[test]
    fn shared_bytes_are_released_once() {
        struct Owner(Arc<Vec<u8>>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let owner = Arc::new(vec![7u8; 100_000]);
        let message = Message::sharing(Bytes::from_owner(Owner(Arc::clone(&owner)))).unwrap();
        assert_eq!(message.as_ref().as_ptr(), owner.as_ptr());
        assert_eq!(Arc::strong_count(&owner), 2);
        drop(message);
        assert_eq!(Arc::strong_count(&owner), 1);
    }

    #[test]
    fn pieces_are_gathered_with_zeros_between_them() {
        let gather = |length, pieces: &[(usize, &[u8])]| Message::gather(length, pieces.iter().copied());
        let message = gather(9, &[(1, b"ab"), (4, b""), (5, b"c")]).unwrap();
        assert_eq!(message.as_ref(), b"\0ab\0\0c\0\0\0");
        assert_eq!(gather(0, &[]).unwrap().as_ref(), b"");
        assert!(gather(9, &[(1, b"ab"), (2, b"c")]).is_err());
        assert!(gather(9, &[(8, b"ab")]).is_err());
        assert!(gather(9, &[(10, b"")]).is_err());
        assert!(gather(9, &[(usize::MAX, b"a")]).is_err());
    }

    #[test]
    fn messages_survive_moves() {
        for size in [0, 1, 33, 34, 5000] {
            let message = Message::copy_of(&vec![3u8; size]).unwrap();
            let moved = Box::new(message);
            assert_eq!((*moved).as_ref(), vec![3u8; size]);
            assert_eq!(Bytes::from(*moved), vec![3u8; size]);
        }
    }
}
