//! The blocking client: waits on descriptors, outside the lock.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::endpoint::{after, Arrived, Attempt, Descriptors, Endpoint, Look, Wake};
use crate::error::Error;
use crate::observation::{Fields, Observation, Sent};
use crate::options::{ConnectionOptions, ModelOptions};
use crate::reply::{Counters, LinkState, Pong, Reply, Status};
use crate::session::{ModelKey, Session};
use crate::watchdog::{outcome, Action, Missed, Outcome, Watchdog};

/// Rings in a thread that waits, when another thread has read what it waits for.
struct Bell {
    rope: UnixStream,
    clapper: UnixStream,
}

/// The bells of threads that wait now, and those free for the next.
#[derive(Default)]
struct Bells {
    waiting: Vec<Arc<Bell>>,
    free: Vec<Arc<Bell>>,
}

impl Bells {
    /// A bell that rings from now on. None where the system has no descriptors left.
    fn hang(&mut self) -> Option<Arc<Bell>> {
        let bell = match self.free.pop() {
            Some(bell) => bell,
            None => {
                let (rope, clapper) = UnixStream::pair().ok()?;
                rope.set_nonblocking(true).and_then(|()| clapper.set_nonblocking(true)).ok()?;
                Arc::new(Bell { rope, clapper })
            }
        };
        self.waiting.push(Arc::clone(&bell));
        Some(bell)
    }

    fn take_down(&mut self, bell: Arc<Bell>) {
        self.waiting.retain(|other| !Arc::ptr_eq(other, &bell));
        self.free.push(bell);
    }
}

impl Wake for Bells {
    fn wake(&mut self) {
        for bell in &self.waiting {
            // A full pipe rings already.
            let _ = (&bell.rope).write(&[0]);
        }
    }
}

struct Shared {
    endpoint: Endpoint<Bells>,
    descriptors: Option<Arc<Descriptors>>,
}

/// What one look at the session gave.
enum Seen<T> {
    Done(T),
    Again,
    Wait(Option<Arc<Bell>>, Instant),
}

impl Shared {
    /// Waits until `look` gives something, or gives what `expire` gives at the deadline.
    fn wait<T>(
        &self,
        deadline: Instant,
        timer: impl Fn(&Session) -> Option<Instant>,
        mut look: impl FnMut(&mut Session) -> Option<T>,
        expire: impl Fn(&mut Session) -> T,
    ) -> T {
        let mut how = Look::Lately(Some(deadline));
        loop {
            let found = self.endpoint.with_look(how, |inner, now, more| {
                if let Some(found) = look(&mut inner.session) {
                    return Seen::Done(found);
                }
                if now >= deadline {
                    return Seen::Done(expire(&mut inner.session));
                }
                if more {
                    return Seen::Again;
                }
                let until = inner.wait_until(deadline, timer(&inner.session));
                Seen::Wait(inner.wake.hang(), until)
            });
            match found {
                Seen::Done(found) => return found,
                Seen::Again => how = Look::Now,
                Seen::Wait(bell, until) => {
                    how = self.sleep(bell.as_deref(), until).map_or(Look::Now, Look::Found);
                    if let Some(bell) = bell {
                        self.endpoint.peek(|inner| inner.wake.take_down(bell));
                    }
                }
            }
        }
    }

    /// Until something arrives, the bell rings, or the time has come; what has arrived, where that is known.
    fn sleep(&self, bell: Option<&Bell>, until: Instant) -> Option<Arrived> {
        let descriptors = self.descriptors.as_ref()?;
        let mut left = until.saturating_duration_since(Instant::now());
        if bell.is_none() {
            left = left.min(Duration::from_millis(10));
        }
        // An interrupted wait is over early, and the caller looks and waits again.
        let (arrived, rung) = descriptors.wait(bell.map(|bell| bell.clapper.as_fd()), left)?;
        if let (Some(bell), true) = (bell, rung) {
            let _ = (&bell.clapper).read(&mut [0; 64]);
        }
        Some(arrived)
    }
}

/// A connection to an Inferential server.
///
/// A handle: clones, and the models made from it, share one connection, which lives until the last of them is dropped or
/// [`close`](Connection::close) is called. Constructing never blocks and needs no server; the link comes up, and comes back
/// after it was lost, by itself.
///
/// # Thread safety
/// `Send` and `Sync`. Any thread may use it at any time; calls that wait do so without holding anything that others need. There is no
/// background thread: what arrives is noticed when some call uses the connection. In the child of a fork it is closed: each process
/// makes its own.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

impl Connection {
    /// Connects, in the background. Cannot fail: where the address is wrong, [`link_state`](Connection::link_state) is
    /// [`Closed`](LinkState::Closed) and every send tells why.
    ///
    /// `server` is `tcp://HOST:PORT` (`tcp://` may be left out); `client_id` names this client to the server; `client_type` says what it is.
    pub fn new(server: &str, client_id: &str, client_type: &str) -> Connection {
        Connection::open(ConnectionOptions::new(server, client_id, client_type))
    }

    /// As [`new`](Connection::new), but tells at once.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`], [`Error::InvalidOption`] for an empty or too long id; [`Error::Io`] where the system has no descriptors left.
    pub fn try_new(server: &str, client_id: &str, client_type: &str) -> Result<Connection, Error> {
        Connection::with_options(ConnectionOptions::new(server, client_id, client_type))
    }

    /// Connects with other settings.
    ///
    /// # Errors
    /// As [`try_new`](Connection::try_new), and [`Error::InvalidOption`] for a setting out of its range.
    pub fn with_options(options: ConnectionOptions) -> Result<Connection, Error> {
        let connection = Connection::open(options);
        match connection.shared.endpoint.failure() {
            Some(error) => Err(error.clone()),
            None => Ok(connection),
        }
    }

    fn open(options: ConnectionOptions) -> Connection {
        let (endpoint, descriptors) = Endpoint::open(options, Bells::default());
        Connection { shared: Arc::new(Shared { endpoint, descriptors }) }
    }

    /// A handle for one model. `latency_budget_ms` is the deadline of each observation, counted from its arrival at the
    /// server; 0 leaves it to the server. `priority` 0 is the highest.
    pub fn model(&self, id: &str, latency_budget_ms: f32, priority: u32) -> Model {
        self.model_with(ModelOptions::new(id).latency_budget_ms(latency_budget_ms).priority(priority))
    }

    /// A handle for one model with other settings. Handles of the same id share replies and outstanding requests.
    pub fn model_with(&self, options: ModelOptions) -> Model {
        Model {
            key: self.shared.endpoint.model(&options.id),
            watchdog: Watchdog::new(options.fallback.clone()),
            options,
            shared: Arc::clone(&self.shared),
        }
    }

    /// State of the link, now.
    pub fn link_state(&self) -> LinkState {
        self.shared.endpoint.link_state()
    }

    /// Calls `callback` with each new state of the link, from whichever call notices it, one at a time and in order. Takes the place of
    /// an earlier callback.
    pub fn on_link_change(&self, callback: impl Fn(LinkState) + Send + Sync + 'static) {
        self.shared.endpoint.on_link_change(callback);
    }

    /// Waits until the link is up; false where it is not after `timeout_ms`, or closed.
    pub fn wait_until_up(&self, timeout_ms: u64) -> bool {
        let look = |session: &mut Session| match session.link_state() {
            LinkState::Up => Some(true),
            LinkState::Closed => Some(false),
            _ => None,
        };
        self.shared.wait(after(timeout_ms), |_| None, look, |_| false)
    }

    /// Asks whether the server is there and which models it has. None where no answer came within `timeout_ms`, the link is
    /// not up, or the server speaks protocol 1, which has no ping.
    ///
    /// # Errors
    /// [`Error::Closed`], or why the connection never could be opened.
    pub fn ping(&self, timeout_ms: u64) -> Result<Option<Pong>, Error> {
        let deadline = after(timeout_ms);
        let endpoint = &self.shared.endpoint;
        if let Some(until) = endpoint.handshake_deadline() {
            self.shared.wait_for_link(deadline.min(until));
            endpoint.handshake_waited();
        }
        let Some(request_id) = endpoint.ping()? else { return Ok(None) };
        let look = |session: &mut Session| session.take_pong(request_id).into_finished();
        let pong = self.shared.wait(deadline, |_| None, look, |_| Ok(None));
        endpoint.peek(|inner| inner.session.forget_ping(request_id));
        pong
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.shared.endpoint.counters()
    }

    /// Ends everything outstanding LINK_LOST and closes the socket, for all handles. Takes at most `linger_ms`.
    pub fn close(&self) {
        drop(self.shared.endpoint.close());
    }
}

impl Shared {
    fn wait_for_link(&self, deadline: Instant) {
        let look = |session: &mut Session| (session.link_state() != LinkState::Connecting).then_some(());
        self.wait(deadline, |_| None, look, |_| ());
    }
}

/// One model of a server.
///
/// # Thread safety
/// `Send` and `Sync`. Any thread may send; one at a time may wait for replies of a model, a second is told
/// [`Error::Busy`].
pub struct Model {
    shared: Arc<Shared>,
    key: ModelKey,
    options: ModelOptions,
    watchdog: Watchdog,
}

impl Model {
    /// The model's id.
    pub fn id(&self) -> &str {
        &self.options.id
    }

    /// A new observation, to be filled and sent.
    pub fn observe(&self) -> Observation<'_, Model> {
        Observation { model: self, fields: Fields::of(&self.options) }
    }

    /// For control loops: the first OK reply that is newer than the last one given for its slot. None where the newest
    /// request ended otherwise ([`last_status`](Model::last_status) says how), where nothing is outstanding, and after `timeout_ms`, in
    /// which case everything outstanding of this model is abandoned. 0 only looks and abandons nothing.
    ///
    /// Also none where another thread waits for this model or the connection is closed; [`try_get_result`](Model::try_get_result) tells these apart.
    pub fn get_result(&self, timeout_ms: u64) -> Option<Reply> {
        self.try_get_result(timeout_ms).unwrap_or_else(|error| {
            tracing::warn!("get_result of model {:?}: {error}", self.options.id);
            None
        })
    }

    /// As [`get_result`](Model::get_result).
    ///
    /// # Errors
    /// [`Error::Busy`] where another thread waits for this model; [`Error::Closed`], or why the connection never could be opened.
    pub fn try_get_result(&self, timeout_ms: u64) -> Result<Option<Reply>, Error> {
        self.await_result(timeout_ms).map(Result::ok)
    }

    fn await_result(&self, timeout_ms: u64) -> Result<Outcome, Error> {
        let deadline = after(timeout_ms);
        let _waiting = self.begin_wait()?;
        let key = self.key;
        let look = |session: &mut Session| {
            let finished = session.take_result(key).into_finished()?;
            Some(finished.map(|reply| outcome(reply, session.last(key))))
        };
        let expire = |session: &mut Session| {
            if timeout_ms == 0 {
                return Ok(Err(Missed::NotYet));
            }
            session.abandon(key);
            Ok(outcome(None, session.last(key)))
        };
        let result = self.shared.wait(deadline, |session| session.next_timer(key), look, expire);
        result.map_err(|error| self.shared.endpoint.explain(error))
    }

    /// For pipelines: every terminal reply of this model, whatever its status, in order of arrival. None where nothing came within
    /// `timeout_ms`, and at once where nothing is outstanding. Abandons nothing.
    ///
    /// Also none where another thread waits for this model or the connection is closed; [`try_next_reply`](Model::try_next_reply) tells these apart.
    pub fn next_reply(&self, timeout_ms: u64) -> Option<Reply> {
        self.try_next_reply(timeout_ms).unwrap_or_else(|error| {
            tracing::warn!("next_reply of model {:?}: {error}", self.options.id);
            None
        })
    }

    /// As [`next_reply`](Model::next_reply).
    ///
    /// # Errors
    /// As [`try_get_result`](Model::try_get_result). What had arrived or ended when the connection was closed is given out first.
    pub fn try_next_reply(&self, timeout_ms: u64) -> Result<Option<Reply>, Error> {
        let deadline = after(timeout_ms);
        let _waiting = self.begin_wait()?;
        let key = self.key;
        let look = |session: &mut Session| session.take_next(key).into_finished();
        let reply = self.shared.wait(deadline, |session| session.next_timer(key), look, |_| Ok(None));
        reply.map_err(|error| self.shared.endpoint.explain(error))
    }

    /// [`get_result`](Model::get_result) with the fallback declared in [`ModelOptions`]: always an action, within
    /// `timeout_ms`. With the link down, or a reply that is not OK, it falls back at once.
    pub fn act(&self, timeout_ms: u64) -> Action {
        self.watchdog.decide(self.await_result(timeout_ms), Instant::now())
    }

    /// Asks the server to end a request CANCELLED. False where it was not asked: the request is not outstanding, or the server
    /// is not known to speak protocol 2.
    pub fn cancel(&self, request_id: u64) -> bool {
        self.shared.endpoint.cancel(self.key, request_id)
    }

    /// Number of requests without an outcome.
    pub fn outstanding(&self) -> usize {
        let key = self.key;
        self.shared.endpoint.with(|inner, _, _| inner.session.outstanding(key))
    }

    /// How the last [`get_result`](Model::get_result) ended; none where nothing was outstanding, or a timeout of
    /// 0 found nothing yet.
    pub fn last_status(&self) -> Option<Status> {
        self.last().map(|(status, _)| status)
    }

    /// The error text that belongs to [`last_status`](Model::last_status); empty with OK.
    pub fn last_error(&self) -> String {
        self.last().map(|(_, error)| error).unwrap_or_default()
    }

    /// The server's last phase shift hint that was not taken yet, in ms; 0 without one. For [`Rate::delay_ms`](crate::Rate::delay_ms).
    pub fn take_phase_shift_ms(&self) -> f64 {
        self.shared.endpoint.peek(|inner| inner.session.take_phase_shift_ms(self.key))
    }

    fn last(&self) -> Option<(Status, String)> {
        self.shared.endpoint.peek(|inner| inner.session.last(self.key))
    }

    fn begin_wait(&self) -> Result<Waiting<'_>, Error> {
        let endpoint = &self.shared.endpoint;
        endpoint.peek(|inner| inner.session.begin_wait(self.key)).map_err(|error| endpoint.explain(error))?;
        Ok(Waiting(self))
    }
}

/// The one call that looks for replies of a model.
struct Waiting<'a>(&'a Model);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.shared.endpoint.peek(|inner| inner.session.end_wait(self.0.key));
    }
}

impl Observation<'_, Model> {
    /// Sends it. Never waits, but for the first send on a connection that has never been up, which waits up to `connect_timeout_ms` for
    /// the server, and what other threads send meanwhile. The result may be ignored: `get_result` then returns none at once.
    pub fn send(self) -> Sent {
        let shared = &self.model.shared;
        let key = self.model.key;
        loop {
            match shared.endpoint.send(key, &self.fields) {
                Ok(Attempt::Sent(request_id)) => return Sent(Ok(request_id)),
                Ok(Attempt::WaitUntil(until)) => shared.wait_for_link(until),
                Err(error) => return Sent(Err(error)),
            }
        }
    }
}
