//! A session and its socket behind one lock. Reads what has arrived, sends, and says whom to wake; waiting is left to the
//! blocking and the tokio client.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rustix::event::{poll, PollFd, PollFlags, Timespec};

use crate::error::{Error, NotSentReason};
use crate::observation::Fields;
use crate::options::ConnectionOptions;
use crate::reply::{Counters, LinkState};
use crate::session::{ModelKey, Session, SessionOptions, Step, INBOX_CAPACITY};
use crate::wire::Encoded;
use crate::zmq::{Context, IntOption, LinkEvent, Message, Socket, SocketKind};

/// Messages read in one go, so that a flood cannot hold a caller past its timeout.
const MESSAGES_PER_READ: usize = 1024;
/// Frames of one message that are kept; no valid reply has more.
const MAX_FRAMES: usize = 2 + 1024;

/// Of one attempt: a host that comes back is found within two seconds, whatever TCP's own backoff.
const CONNECT_ATTEMPT_MS: i32 = 1000;

/// See `Socket::see_to_commands`.
const FRAMES_BETWEEN_COMMANDS: usize = 64;

/// After what ZMTP does not allow, a frame beyond the limit among it, libzmq never connects again. So this long after a link broke that is
/// not up since it is connected anew: longer than an attempt and the longest pause before it, as libzmq may still be at it.
const RECONNECT_SILENCE: Duration = Duration::from_secs(3);

/// Wakes whoever waits for news of this connection.
pub(crate) trait Wake: Send + 'static {
    fn wake(&mut self);
}

/// News of the link takes longer to come, and a robot cannot act on it sooner: what follows a look so soon does without one.
/// A send that then finds the link broken looks at once.
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// Which of the two may have something to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrived {
    pub(crate) messages: bool,
    pub(crate) link_events: bool,
    /// When both were asked, where they were.
    pub(crate) looked_at: Option<Instant>,
}

/// Nobody has looked.
const UNKNOWN: Arrived = Arrived { messages: true, link_events: true, looked_at: None };

/// How a call finds out what has arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Look {
    /// It asks the sockets.
    Now,
    /// Likewise, unless somebody did a moment ago: then it reads what is known to be there, as far as it is awaited. For calls that look
    /// again soon, and not for those whose deadline has passed.
    Lately(Option<Instant>),
    /// It has waited for it. It reads as far as something is outstanding: to find out that there is no more costs system calls.
    Found(Arrived),
}

/// Duplicates of the sockets' descriptors, for waiting on outside the lock.
///
/// They are edge-triggered: only after its socket was found empty does one tell of what comes next. Whoever lets go of the lock has
/// found both sockets empty, or noted in [`Transport::unread`] which one was not.
pub(crate) struct Descriptors {
    pub(crate) socket: OwnedFd,
    pub(crate) monitor: OwnedFd,
}

impl Descriptors {
    /// Waits until something arrives, there is something to read at `also`, or the time is over. What there is, and whether `also` has
    /// something; none where a signal came in between.
    pub(crate) fn wait(&self, also: Option<BorrowedFd<'_>>, timeout: Duration) -> Option<(Arrived, bool)> {
        let timeout = Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let pollable = |descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN);
        // In this order: where a link event is seen, so are the messages that came before it.
        let mut polled = [
            pollable(self.monitor.as_fd()),
            pollable(self.socket.as_fd()),
            pollable(also.unwrap_or(self.socket.as_fd())),
        ];
        let used = if also.is_some() { 3 } else { 2 };
        poll(polled.get_mut(..used)?, Some(&timeout)).ok()?;
        let [link_events, messages, also] = polled.map(|polled| !polled.revents().is_empty());
        Some((Arrived { messages, link_events, looked_at: Some(Instant::now()) }, also))
    }
}

struct Transport {
    socket: Socket,
    /// As it was connected to.
    endpoint: String,
    /// The last event of a link that is not up; none once that was answered by connecting anew, which makes the next one.
    not_up_since: Option<Instant>,
    monitor: Socket,
    descriptors: Arc<Descriptors>,
    /// What the descriptors do not tell of, and when they were asked last.
    unread: Arrived,
    /// Since the socket was found empty.
    frames_received: usize,
    /// Those read but not heeded yet: the messages before them come first.
    link_events: VecDeque<LinkEvent>,
    /// Of the message read last.
    frames: Vec<Bytes>,
    /// Of the message being sent.
    parts: Vec<Message>,
}

impl Transport {
    /// None where libzmq does not take the address.
    fn open(options: &ConnectionOptions, endpoint: &str) -> io::Result<Option<Transport>> {
        let context = Context::new()?;
        let socket = context.socket(SocketKind::Dealer)?;
        let int = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        let heartbeat = int(options.heartbeat_ms);
        socket.set(IntOption::Immediate, 1)?;
        socket.set(IntOption::SendHwm, int(options.send_queue))?;
        // As many as the inbox holds. With a full queue libzmq takes nothing more from the server, heartbeats neither: the link is lost, and
        // where the server is gone as well libzmq's next heartbeat ends the whole process.
        socket.set(IntOption::ReceiveHwm, INBOX_CAPACITY as i32)?;
        socket.set(IntOption::HeartbeatIvl, heartbeat)?;
        socket.set(IntOption::HeartbeatTimeout, 3 * heartbeat)?;
        socket.set(IntOption::HeartbeatTtl, 3 * heartbeat)?;
        socket.set(IntOption::ReconnectIvl, int(options.reconnect_ms))?;
        socket.set(IntOption::ReconnectIvlMax, int(options.reconnect_max_ms))?;
        socket.set(IntOption::ConnectTimeout, CONNECT_ATTEMPT_MS)?;
        socket.set(IntOption::Linger, int(options.linger_ms))?;
        if endpoint.contains('[') {
            socket.set(IntOption::Ipv6, 1)?; // without it libzmq takes such an address and never connects
        }
        socket.set_max_message_bytes(i64::try_from(options.max_message_bytes).unwrap_or(i64::MAX))?;
        let monitor = socket.monitor(&context)?;
        if socket.connect(endpoint).is_err() {
            return Ok(None);
        }
        let descriptors = Arc::new(Descriptors { socket: socket.descriptor()?, monitor: monitor.descriptor()? });
        let (link_events, frames, parts) = (VecDeque::new(), Vec::new(), Vec::new());
        Ok(Some(Transport {
            socket,
            endpoint: endpoint.to_owned(),
            not_up_since: None,
            monitor,
            descriptors,
            unread: UNKNOWN,
            frames_received: 0,
            link_events,
            frames,
            parts,
        }))
    }

    /// Takes note of what has arrived, and reads the link events of that moment: to be heeded after all messages, as those that
    /// came before a link event are there when it is. Whether it looked.
    fn read_link_events(&mut self, now: Instant, look: Look) -> bool {
        let lately = self.unread.looked_at.is_some_and(|at| now.saturating_duration_since(at) < LOOK_EVERY);
        let skips = matches!(look, Look::Lately(deadline) if lately && deadline.is_none_or(|deadline| now < deadline));
        let arrived = match look {
            Look::Found(arrived) => arrived,
            _ if skips => Arrived { messages: false, link_events: false, looked_at: None },
            // One system call for both sockets.
            _ => self.descriptors.wait(None, Duration::ZERO).map_or(UNKNOWN, |(arrived, _)| arrived),
        };
        self.unread.looked_at = arrived.looked_at.or(self.unread.looked_at);
        self.unread.messages |= arrived.messages;
        if arrived.link_events || self.unread.link_events {
            while let Ok(Some(event)) = self.monitor.receive_link_event() {
                self.not_up_since = (event != LinkEvent::Up).then_some(now);
                self.link_events.push_back(event);
            }
            self.unread.link_events = false;
        }
        !skips
    }

    /// When to connect anew, if nothing is heard of the link until then.
    fn reconnect_at(&self) -> Option<Instant> {
        self.not_up_since.map(|since| since + RECONNECT_SILENCE)
    }

    /// Connects anew where it is time. Not a second time before libzmq has told of the first: while it looks up a name it does
    /// nothing else, and would later do all of it.
    fn reconnect_when_silent(&mut self, now: Instant) {
        if self.reconnect_at().is_some_and(|at| at <= now) {
            let _ = self.socket.disconnect(&self.endpoint); // whatever is left of it
            let connected = self.socket.connect(&self.endpoint);
            self.not_up_since = connected.is_err().then_some(now);
            // As sending does.
            self.unread.messages = true;
        }
    }

    /// Reads the messages that have arrived, or as many as may be read in one go, or as are `awaited`. Whether there were any.
    fn read_messages(&mut self, session: &mut Session, awaited: bool) -> bool {
        let mut messages = 0;
        while self.unread.messages && messages < MESSAGES_PER_READ && (!awaited || session.awaits_anything()) {
            match self.receive() {
                Ok(true) => {
                    // Not the time of the call: what comes meanwhile came later.
                    session.on_message(Instant::now(), &self.frames);
                    messages += 1;
                }
                Ok(false) => self.unread.messages = false,
                Err(error) => {
                    tracing::warn!("receiving failed: {error}");
                    self.unread.messages = false;
                }
            }
        }
        self.frames.clear();
        messages > 0
    }

    /// Reads one whole message into `self.frames`; whether there was one.
    fn receive(&mut self) -> io::Result<bool> {
        self.frames.clear();
        if self.frames_received >= FRAMES_BETWEEN_COMMANDS {
            self.socket.see_to_commands();
        }
        let Some(mut frame) = self.socket.receive()? else {
            self.frames_received = 0;
            return Ok(false);
        };
        loop {
            self.frames_received += 1;
            let more = frame.more();
            if self.frames.len() < MAX_FRAMES {
                self.frames.push(Bytes::from(frame));
            }
            if !more {
                return Ok(true);
            }
            // The parts of a message arrive together.
            frame = self.socket.receive()?.ok_or_else(|| io::Error::other("a message ended in its middle"))?;
        }
    }

    /// All of a message or nothing: its frames exist before the first is handed over, and libzmq delivers either all or none.
    fn send(&mut self, encoded: &Encoded<'_>) -> io::Result<()> {
        self.parts.clear();
        self.parts.push(Message::new());
        self.parts.push(Message::copy_of(&encoded.envelope)?);
        for frame in &encoded.frames {
            self.parts.push(match frame.shared() {
                Some(bytes) => Message::sharing(bytes.clone())?,
                None => Message::gather(frame.length, frame.pieces())?,
            });
        }
        // Sending may take note of arrivals that the descriptor then tells of no more.
        self.unread.messages = true;
        send_all(self.parts.drain(..), |message, more| self.socket.send(message, more))
    }
}

/// Sends the parts of one message.
fn send_all(
    parts: impl ExactSizeIterator<Item = Message>,
    mut send: impl FnMut(Message, bool) -> io::Result<()>,
) -> io::Result<()> {
    let last = parts.len() - 1;
    let mut result = Ok(());
    for (index, part) in parts.enumerate() {
        if let Err(error) = send(part, index < last) {
            if index == 0 {
                return Err(error);
            }
            // The link broke in the midst. libzmq now drops all up to a last part: this message's, or else the next one's.
            result = Err(error);
        }
    }
    result
}

/// What is behind the lock.
pub(crate) struct Inner<W> {
    pub(crate) session: Session,
    pub(crate) wake: W,
    /// None once closed, or where it never could be opened.
    transport: Option<Transport>,
    /// States of the link that the callback has not been told of.
    untold: VecDeque<LinkState>,
    /// Whether some call is telling it: states are told one at a time and in order, whoever notices them.
    telling: bool,
}

impl<W: Wake> Inner<W> {
    /// Reads what has arrived, link events after messages. Whether there may be more to read.
    fn read(&mut self, now: Instant, look: Look) -> bool {
        let mut news = false;
        let mut more = false;
        let mut looked = true;
        if self.transport.as_ref().is_some_and(|transport| transport.socket.inherited()) {
            tracing::error!(
                "this connection was made before a fork, by the parent process; each process makes its own"
            );
            // Nobody is woken: whoever waits does so in the parent.
            self.transport = None;
            self.session.close(now);
        }
        if let Some(transport) = &mut self.transport {
            // Replies of a v1 server carry no id: one that is left would be taken for the answer to the next request.
            let tells_ids = self.session.tells_ids();
            let look = if tells_ids || matches!(look, Look::Found(_)) { look } else { Look::Now };
            looked = transport.read_link_events(now, look);
            let known = !looked || matches!(look, Look::Found(_));
            let awaited = known && tells_ids && transport.link_events.is_empty();
            news = transport.read_messages(&mut self.session, awaited);
            more = transport.unread.messages;
            while let (false, Some(event)) = (more, transport.link_events.pop_front()) {
                news = true;
                match event {
                    LinkEvent::Up => self.session.link_up(),
                    LinkEvent::Down => self.session.link_down(now),
                }
            }
            if looked && !more {
                transport.reconnect_when_silent(now);
                more = transport.unread.messages;
            }
        }
        if looked && !more {
            self.session.on_timer(now); // what came in time is read by then, however late
        }
        if news {
            self.wake.wake();
        }
        more
    }

    /// Until when a call may wait that has a deadline and perhaps a timer.
    pub(crate) fn wait_until(&self, deadline: Instant, timer: Option<Instant>) -> Instant {
        let reconnect_at = self.transport.as_ref().and_then(Transport::reconnect_at);
        [timer, reconnect_at].into_iter().flatten().fold(deadline, Instant::min)
    }

    fn send(&mut self, encoded: &Encoded<'_>) -> io::Result<()> {
        let Some(transport) = &mut self.transport else { return Err(io::ErrorKind::NotConnected.into()) };
        let result = transport.send(encoded);
        if transport.read_messages(&mut self.session, false) {
            self.wake.wake();
        }
        result
    }
}

/// What became of an attempt to send.
pub(crate) enum Attempt {
    /// It has this request id.
    Sent(u64),
    /// The caller should wait for the handshake until then, and try again.
    WaitUntil(Instant),
}

type LinkCallback = Arc<dyn Fn(LinkState) + Send + Sync>;

/// One connection.
pub(crate) struct Endpoint<W> {
    inner: Mutex<Inner<W>>,
    link_callback: Mutex<Option<LinkCallback>>,
    /// Why it never could be opened.
    failure: Option<Error>,
    connect_timeout: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held came from outside (a callback); the state is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Wake> Endpoint<W> {
    /// Opens the socket; what fails is kept and told by every use.
    pub(crate) fn open(options: ConnectionOptions, wake: W) -> (Endpoint<W>, Option<Arc<Descriptors>>) {
        let session = Session::new(SessionOptions {
            client_id: options.client_id.clone(),
            client_type: options.client_type.clone(),
            hold_off: options.hold_off,
            request_timeout: Duration::from_millis(options.request_timeout_ms),
            max_message_bytes: options.max_message_bytes,
        });
        let connect_timeout = options.connect_timeout();
        let opened = options.check().and_then(|endpoint| {
            let io = |reason: io::Error| Error::Io { operation: "opening the connection", reason: reason.to_string() };
            let bad_address = || Error::InvalidAddress { address: options.server.clone() };
            Transport::open(&options, &endpoint).map_err(io)?.ok_or_else(bad_address)
        });
        let mut inner = Inner { session, wake, transport: None, untold: VecDeque::new(), telling: false };
        let (descriptors, failure) = match opened {
            Ok(transport) => {
                let descriptors = Arc::clone(&transport.descriptors);
                inner.transport = Some(transport);
                (Some(descriptors), None)
            }
            Err(error) => {
                tracing::error!("{error}");
                inner.session.close(Instant::now());
                (None, Some(error))
            }
        };
        let endpoint = Endpoint { inner: Mutex::new(inner), link_callback: Mutex::new(None), failure, connect_timeout };
        (endpoint, descriptors)
    }

    /// Why it never could be opened.
    pub(crate) fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// Reads what has arrived, then runs `work` under the lock. The flag says whether there may be more to read.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Inner<W>, Instant, bool) -> R) -> R {
        self.with_look(Look::Now, work)
    }

    /// As `with`, and finds out what has arrived in another way.
    pub(crate) fn with_look<R>(&self, look: Look, work: impl FnOnce(&mut Inner<W>, Instant, bool) -> R) -> R {
        let mut inner = lock(&self.inner);
        let more = inner.read(Instant::now(), look);
        let now = Instant::now(); // to read thousands of messages takes a while
        let result = work(&mut inner, now, more);
        let changes = inner.session.take_link_changes();
        inner.untold.extend(changes);
        let tells = !inner.untold.is_empty() && !std::mem::replace(&mut inner.telling, true);
        drop(inner);
        if tells {
            self.tell();
        }
        result
    }

    /// Tells the callback of all states that it has not been told of, in order. By one call at a time: what others notice meanwhile,
    /// the callback itself among them, is told by this one.
    fn tell(&self) {
        /// Whatever the callback does, the next call may tell what is left.
        struct Telling<'a, W>(&'a Mutex<Inner<W>>);
        impl<W> Drop for Telling<'_, W> {
            fn drop(&mut self) {
                lock(self.0).telling = false;
            }
        }
        let telling = Telling(&self.inner);
        loop {
            let mut inner = lock(&self.inner);
            let Some(state) = inner.untold.pop_front() else {
                // Under the same lock, so that nobody leaves a state to this call that is over.
                inner.telling = false;
                std::mem::forget(telling);
                return;
            };
            drop(inner);
            // Called without locks, so that it may use the connection.
            let callback = lock(&self.link_callback).clone();
            if let Some(callback) = callback {
                callback(state);
            }
        }
    }

    /// Runs `work` under the lock without reading first.
    pub(crate) fn peek<R>(&self, work: impl FnOnce(&mut Inner<W>) -> R) -> R {
        work(&mut lock(&self.inner))
    }

    /// The reason it never could be opened in the place of a mere "closed".
    pub(crate) fn explain(&self, error: Error) -> Error {
        match (&error, &self.failure) {
            (Error::Closed, Some(failure)) => failure.clone(),
            _ => error,
        }
    }

    pub(crate) fn model(&self, id: &str) -> ModelKey {
        self.peek(|inner| inner.session.model(id))
    }

    /// Sends an observation, or says that the handshake comes first.
    pub(crate) fn send(&self, key: ModelKey, fields: &Fields<'_>) -> Result<Attempt, Error> {
        self.with_look(Look::Lately(None), |inner, now, _| {
            inner.session.check(key, fields)?;
            if let Some(until) = inner.session.handshake_deadline(now, self.connect_timeout) {
                return Ok(Attempt::WaitUntil(until));
            }
            let (request_id, encoded) = match inner.session.observe(now, wall_clock_ns(), key, fields)? {
                Step::Answered(request_id) => return Ok(Attempt::Sent(request_id)),
                Step::Send(request_id, encoded) => (request_id, encoded),
            };
            let Err(error) = inner.send(&encoded) else { return Ok(Attempt::Sent(request_id)) };
            inner.session.not_sent(key, request_id);
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(Error::Io { operation: "sending an observation", reason: error.to_string() });
            }
            // Either nobody is there any more, which the monitor then says, or the queue is full.
            inner.read(now, Look::Now);
            let up = inner.session.link_state() == LinkState::Up;
            let reason = if up { NotSentReason::QueueFull } else { NotSentReason::LinkDown };
            Err(Error::NotSent { request_id, reason })
        })
        .map_err(|error| self.explain(error))
    }

    /// Until when a ping should wait for the handshake, as [`send`](Endpoint::send) does.
    pub(crate) fn handshake_deadline(&self) -> Option<Instant> {
        self.with(|inner, now, _| inner.session.handshake_deadline(now, self.connect_timeout))
    }

    /// A wait for the handshake, though perhaps a shorter one, has run out.
    pub(crate) fn handshake_waited(&self) {
        self.peek(|inner| inner.session.handshake_waited(Instant::now()));
    }

    pub(crate) fn cancel(&self, key: ModelKey, request_id: u64) -> bool {
        self.with(|inner, _, _| {
            let message = inner.session.cancel(key, request_id, wall_clock_ns());
            message.is_some_and(|message| inner.send(&message).is_ok())
        })
    }

    /// Sends a ping; its id, where one could be sent.
    pub(crate) fn ping(&self) -> Result<Option<u64>, Error> {
        self.with(|inner, now, _| {
            if inner.session.link_state() == LinkState::Closed {
                return Err(self.explain(Error::Closed));
            }
            let Some((request_id, message)) = inner.session.ping(now, wall_clock_ns()) else { return Ok(None) };
            if inner.send(&message).is_err() {
                inner.session.forget_ping(request_id);
                return Ok(None);
            }
            Ok(Some(request_id))
        })
    }

    pub(crate) fn link_state(&self) -> LinkState {
        self.with(|inner, _, _| inner.session.link_state())
    }

    pub(crate) fn counters(&self) -> Counters {
        self.with(|inner, _, _| inner.session.counters())
    }

    pub(crate) fn on_link_change(&self, callback: impl Fn(LinkState) + Send + Sync + 'static) {
        *lock(&self.link_callback) = Some(Arc::new(callback));
    }

    /// What closes the socket when dropped, which may take as long as `linger_ms`.
    #[cfg(feature = "tokio")]
    pub(crate) fn take_transport(&self) -> impl Send + 'static {
        self.peek(|inner| inner.transport.take())
    }

    /// Ends everything outstanding. What it returns closes the socket when dropped, which may take as long as `linger_ms`.
    pub(crate) fn close(&self) -> impl Send + 'static {
        self.with(|inner, now, _| {
            inner.session.close(now);
            inner.wake.wake();
            inner.transport.take()
        })
    }
}

/// The deadline of a wait that begins now.
pub(crate) fn after(timeout_ms: u64) -> Instant {
    const LONG: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + Duration::from_millis(timeout_ms).min(LONG)
}

fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether more follow, of each part that `send_all` hands over, where one cannot be.
    fn parts_tried(breaks_at: usize) -> Vec<bool> {
        let mut tried = Vec::new();
        let parts = (0..4).map(|_| Message::new());
        let sent = send_all(parts, |_, more| {
            tried.push(more);
            if tried.len() - 1 == breaks_at {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                Ok(())
            }
        });
        assert_eq!(sent.is_err(), breaks_at < 4);
        tried
    }

    #[test]
    fn after_a_silence_it_connects_anew_once() {
        let options = ConnectionOptions::new("127.0.0.1:1", "agent-01", "");
        let mut transport = Transport::open(&options, &options.check().unwrap()).unwrap().unwrap();
        let now = Instant::now();
        assert_eq!(transport.reconnect_at(), None); // libzmq is at it, and knows of no mistake
        transport.not_up_since = Some(now);
        transport.unread.messages = false;
        transport.reconnect_when_silent(now + RECONNECT_SILENCE - Duration::from_millis(1));
        assert_eq!((transport.reconnect_at(), transport.unread.messages), (Some(now + RECONNECT_SILENCE), false));
        transport.reconnect_when_silent(now + RECONNECT_SILENCE);
        assert_eq!((transport.reconnect_at(), transport.unread.messages), (None, true));
        // There is one connection again, not two.
        assert!(transport.socket.disconnect(&transport.endpoint).is_ok());
        assert!(transport.socket.disconnect(&transport.endpoint).is_err());
    }

    #[test]
    fn a_message_in_whose_midst_the_link_breaks_is_finished_all_the_same() {
        assert_eq!(parts_tried(0), [true]); // a full queue takes nothing
        for breaks_at in 1..=4 {
            assert_eq!(parts_tried(breaks_at), [true, true, true, false]);
        }
    }
}
