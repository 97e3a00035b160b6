//! The tokio client: waits on descriptors registered with the runtime.

use std::future::{poll_fn, Future};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Instant;

use ::tokio::io::unix::AsyncFd;
use ::tokio::io::Interest;
use ::tokio::runtime::{Handle, Id};
use ::tokio::sync::Notify;
use ::tokio::task::consume_budget;

use crate::endpoint::{after, Arrived, Attempt, Descriptors, Endpoint, Look, Wake};
use crate::error::Error;
use crate::observation::{Fields, Observation, Sent};
use crate::options::{ConnectionOptions, ModelOptions};
use crate::reply::{Counters, LinkState, Pong, Reply, Status};
use crate::session::{ModelKey, Session};
use crate::watchdog::{outcome, Action, Missed, Outcome, Watchdog};
use crate::zmq::Process;

/// Wakes all tasks that wait, when one task has read what another waits for.
struct News(Arc<Notify>);

impl Wake for News {
    fn wake(&mut self) {
        self.0.notify_waiters();
    }
}

/// The descriptors as a runtime knows them.
struct Registered {
    runtime: Id,
    socket: AsyncFd<OwnedFd>,
    monitor: AsyncFd<OwnedFd>,
}

struct Shared {
    endpoint: Endpoint<News>,
    news: Arc<Notify>,
    descriptors: Option<Arc<Descriptors>>,
    /// Made by the first call that waits, because only that runs in a runtime for certain; and anew by the first one in another
    /// runtime. A wait keeps those that it began with.
    registered: Mutex<Option<Arc<Registered>>>,
    /// That made it.
    process: Process,
}

/// What one look at the session gave.
enum Seen<T> {
    Done(T),
    Again,
    Wait(Instant),
}

impl Shared {
    /// Waits until `look` gives something, or gives what `expire` gives at the deadline. May be dropped at any time: what
    /// has arrived by then stays in the session.
    async fn wait<T>(
        &self,
        deadline: Instant,
        timer: impl Fn(&Session) -> Option<Instant>,
        mut look: impl FnMut(&mut Session) -> Option<T>,
        expire: impl Fn(&mut Session) -> T,
    ) -> Result<T, Error> {
        // A loop over futures that need not wait must let other tasks run, its own timeout among them.
        consume_budget().await;
        let mut how = Look::Lately(Some(deadline));
        loop {
            // Enabled before the look, so that nothing another task reads in between is missed.
            let mut news = pin!(self.news.notified());
            news.as_mut().enable();
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
                Seen::Wait(inner.wait_until(deadline, timer(&inner.session)))
            });
            let until = match found {
                Seen::Done(found) => return Ok(found),
                Seen::Again => {
                    how = Look::Now;
                    ::tokio::task::yield_now().await;
                    continue;
                }
                Seen::Wait(until) => until,
            };

            let registered = self.registered()?;
            let mut socket = pin!(registered.socket.readable());
            let mut monitor = pin!(registered.monitor.readable());
            let mut time = pin!(::tokio::time::sleep_until(until.into()));
            how = Look::Now;
            let usable = poll_fn(|context| {
                let mut usable = None;
                // Cleared before the next look reads everything there is, as an edge-triggered descriptor asks.
                if let Poll::Ready(readable) = socket.as_mut().poll(context) {
                    usable = Some(readable.map(|mut guard| guard.clear_ready()).is_ok());
                    how = Look::Found(Arrived { messages: true, link_events: false, looked_at: None });
                }
                if let Poll::Ready(readable) = monitor.as_mut().poll(context) {
                    // The messages that came before it may have done so since the socket was asked.
                    how = Look::Found(Arrived { messages: true, link_events: true, looked_at: None });
                    let readable = readable.map(|mut guard| guard.clear_ready()).is_ok();
                    usable = Some(readable && usable.unwrap_or(true));
                }
                if news.as_mut().poll(context).is_ready() || time.as_mut().poll(context).is_ready() {
                    usable = Some(usable.unwrap_or(true));
                }
                usable.map_or(Poll::Pending, Poll::Ready)
            })
            .await;
            if !usable {
                // The runtime is ending, as registering anew then says.
                let mut current = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
                current.take_if(|current| Arc::ptr_eq(current, &registered));
            }
        }
    }

    fn registered(&self) -> Result<Arc<Registered>, Error> {
        let error = |reason: String| Error::Io { operation: "waiting for the server", reason };
        let runtime = Handle::try_current().map_err(|reason| error(reason.to_string()))?.id();
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        // Another runtime may have ended, or be one that nobody drives now.
        if let Some(registered) = registered.as_ref().filter(|registered| registered.runtime == runtime) {
            return Ok(Arc::clone(registered));
        }
        let descriptors = self.descriptors.as_ref().ok_or(Error::Closed)?;
        let register = |descriptor: &OwnedFd| {
            // Deprecated for types that may change their descriptor, which an `OwnedFd` never does; its successor is
            // unsafe and too new for the oldest tokio this crate works with.
            #[allow(deprecated)]
            let registered =
                descriptor.try_clone().and_then(|descriptor| AsyncFd::with_interest(descriptor, Interest::READABLE));
            registered.map_err(|reason| error(reason.to_string()))
        };
        let (socket, monitor) = (register(&descriptors.socket)?, register(&descriptors.monitor)?);
        let new = Arc::new(Registered { runtime, socket, monitor });
        self.discard(registered.replace(Arc::clone(&new)));
        Ok(new)
    }

    /// Drops what was registered; but in the child of a fork, which shares the runtime's epoll with its parent, dropping it would take
    /// it from the parent.
    fn discard(&self, registered: Option<Arc<Registered>>) {
        if !self.process.is_current() {
            std::mem::forget(registered);
        }
    }

    async fn wait_for_link(&self, deadline: Instant) -> Result<(), Error> {
        let look = |session: &mut Session| (session.link_state() != LinkState::Connecting).then_some(());
        self.wait(deadline, |_| None, look, |_| ()).await
    }
}

impl Drop for Shared {
    /// Closing may take as long as `linger_ms`, which must not hold up the runtime.
    fn drop(&mut self) {
        let transport = self.endpoint.take_transport();
        if !self.process.is_current() {
            let registered = self.registered.get_mut().unwrap_or_else(PoisonError::into_inner).take();
            self.discard(registered);
            return; // nothing is closed there
        }
        // Without a thread it is dropped here.
        let _ = std::thread::Builder::new().spawn(move || drop(transport));
    }
}

/// [`Connection`](crate::Connection) for tokio.
///
/// A handle: clones, and the models made from it, share one connection, which lives until the last of them is dropped or
/// [`close`](AsyncConnection::close) is called. Constructing never blocks and needs neither a server nor a runtime.
///
/// All futures may be dropped at any time: nothing that arrived is lost by it. They need a runtime with I/O and time enabled, as
/// `#[tokio::main]` has it. What does not wait is no `async fn`.
///
/// # Thread safety
/// `Send` and `Sync`. Any task may use it at any time, in any runtime. Dropping the last handle closes in the background: a program that
/// ends must await [`close`](AsyncConnection::close), or what was sent last may be lost. In the child of a fork it is closed: each process
/// makes its own.
#[derive(Clone)]
pub struct AsyncConnection {
    shared: Arc<Shared>,
}

impl AsyncConnection {
    /// Connects, in the background. Cannot fail: where the address is wrong, [`link_state`](AsyncConnection::link_state) is
    /// [`Closed`](LinkState::Closed) and every send tells why.
    ///
    /// `server` is `tcp://HOST:PORT` (`tcp://` may be left out); `client_id` names this client to the server; `client_type` says what it is.
    pub fn new(server: &str, client_id: &str, client_type: &str) -> AsyncConnection {
        AsyncConnection::open(ConnectionOptions::new(server, client_id, client_type))
    }

    /// As [`new`](AsyncConnection::new), but tells at once.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`], [`Error::InvalidOption`] for an empty or too long id; [`Error::Io`] where the system has no descriptors left.
    pub fn try_new(server: &str, client_id: &str, client_type: &str) -> Result<AsyncConnection, Error> {
        AsyncConnection::with_options(ConnectionOptions::new(server, client_id, client_type))
    }

    /// Connects with other settings.
    ///
    /// # Errors
    /// As [`try_new`](AsyncConnection::try_new), and [`Error::InvalidOption`] for a setting out of its range.
    pub fn with_options(options: ConnectionOptions) -> Result<AsyncConnection, Error> {
        let connection = AsyncConnection::open(options);
        match connection.shared.endpoint.failure() {
            Some(error) => Err(error.clone()),
            None => Ok(connection),
        }
    }

    fn open(options: ConnectionOptions) -> AsyncConnection {
        let news = Arc::new(Notify::new());
        let (endpoint, descriptors) = Endpoint::open(options, News(Arc::clone(&news)));
        AsyncConnection {
            shared: Arc::new(Shared {
                endpoint,
                news,
                descriptors,
                registered: Mutex::new(None),
                process: Process::current(),
            }),
        }
    }

    /// A handle for one model. `latency_budget_ms` is the deadline of each observation, counted from its arrival at the
    /// server; 0 leaves it to the server. `priority` 0 is the highest.
    pub fn model(&self, id: &str, latency_budget_ms: f32, priority: u32) -> AsyncModel {
        self.model_with(ModelOptions::new(id).latency_budget_ms(latency_budget_ms).priority(priority))
    }

    /// A handle for one model with other settings. Handles of the same id share replies and outstanding requests.
    pub fn model_with(&self, options: ModelOptions) -> AsyncModel {
        AsyncModel {
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
    pub async fn wait_until_up(&self, timeout_ms: u64) -> bool {
        let look = |session: &mut Session| match session.link_state() {
            LinkState::Up => Some(true),
            LinkState::Closed => Some(false),
            _ => None,
        };
        self.shared.wait(after(timeout_ms), |_| None, look, |_| false).await.unwrap_or(false)
    }

    /// Asks whether the server is there and which models it has. None where no answer came within `timeout_ms`, the link is
    /// not up, or the server speaks protocol 1, which has no ping.
    ///
    /// # Errors
    /// [`Error::Closed`], or why the connection never could be opened.
    pub async fn ping(&self, timeout_ms: u64) -> Result<Option<Pong>, Error> {
        let deadline = after(timeout_ms);
        consume_budget().await;
        let endpoint = &self.shared.endpoint;
        if let Some(until) = endpoint.handshake_deadline() {
            self.shared.wait_for_link(deadline.min(until)).await?;
            endpoint.handshake_waited();
        }
        let Some(request_id) = endpoint.ping()? else { return Ok(None) };
        let _waiting = WaitingPing { shared: &self.shared, request_id };
        let look = |session: &mut Session| session.take_pong(request_id).into_finished();
        self.shared.wait(deadline, |_| None, look, |_| Ok(None)).await?
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.shared.endpoint.counters()
    }

    /// Ends everything outstanding LINK_LOST and closes the socket, for all handles. Takes at most `linger_ms`; when the future is
    /// dropped, closing goes on in the background.
    pub async fn close(&self) {
        let transport = self.shared.endpoint.close();
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(transport)).await),
            Err(_) => drop(transport),
        }
    }
}

/// A ping somebody waits for.
struct WaitingPing<'a> {
    shared: &'a Shared,
    request_id: u64,
}

impl Drop for WaitingPing<'_> {
    fn drop(&mut self) {
        self.shared.endpoint.peek(|inner| inner.session.forget_ping(self.request_id));
    }
}

/// [`Model`](crate::Model) for tokio.
///
/// # Thread safety
/// `Send` and `Sync`. Any task may send; one at a time may wait for replies of a model, a second is told
/// [`Error::Busy`].
pub struct AsyncModel {
    shared: Arc<Shared>,
    key: ModelKey,
    options: ModelOptions,
    watchdog: Watchdog,
}

impl AsyncModel {
    /// The model's id.
    pub fn id(&self) -> &str {
        &self.options.id
    }

    /// A new observation, to be filled and sent.
    pub fn observe(&self) -> Observation<'_, AsyncModel> {
        Observation { model: self, fields: Fields::of(&self.options) }
    }

    /// For control loops: the first OK reply that is newer than the last one given for its slot. None where the newest
    /// request ended otherwise ([`last_status`](AsyncModel::last_status) says how), where nothing is outstanding, and after `timeout_ms`, in
    /// which case everything outstanding of this model is abandoned. 0 only looks and abandons nothing, and neither does a future that is dropped.
    ///
    /// Also none where another task waits for this model or the connection is closed; [`try_get_result`](AsyncModel::try_get_result) tells these apart.
    pub async fn get_result(&self, timeout_ms: u64) -> Option<Reply> {
        self.try_get_result(timeout_ms).await.unwrap_or_else(|error| {
            tracing::warn!("get_result of model {:?}: {error}", self.options.id);
            None
        })
    }

    /// As [`get_result`](AsyncModel::get_result).
    ///
    /// # Errors
    /// [`Error::Busy`] where another task waits for this model; [`Error::Closed`], or why the connection never could be opened;
    /// [`Error::Io`] outside a tokio runtime.
    pub async fn try_get_result(&self, timeout_ms: u64) -> Result<Option<Reply>, Error> {
        self.await_result(timeout_ms).await.map(Result::ok)
    }

    async fn await_result(&self, timeout_ms: u64) -> Result<Outcome, Error> {
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
        let result = self.shared.wait(deadline, |session| session.next_timer(key), look, expire).await?;
        result.map_err(|error| self.shared.endpoint.explain(error))
    }

    /// For pipelines: every terminal reply of this model, whatever its status, in order of arrival. None where nothing came within
    /// `timeout_ms`, and at once where nothing is outstanding. Abandons nothing.
    ///
    /// Also none where another task waits for this model or the connection is closed; [`try_next_reply`](AsyncModel::try_next_reply) tells these apart.
    pub async fn next_reply(&self, timeout_ms: u64) -> Option<Reply> {
        self.try_next_reply(timeout_ms).await.unwrap_or_else(|error| {
            tracing::warn!("next_reply of model {:?}: {error}", self.options.id);
            None
        })
    }

    /// As [`next_reply`](AsyncModel::next_reply).
    ///
    /// # Errors
    /// As [`try_get_result`](AsyncModel::try_get_result). What had arrived or ended when the connection was closed is given out first.
    pub async fn try_next_reply(&self, timeout_ms: u64) -> Result<Option<Reply>, Error> {
        let deadline = after(timeout_ms);
        let _waiting = self.begin_wait()?;
        let key = self.key;
        let look = |session: &mut Session| session.take_next(key).into_finished();
        let reply = self.shared.wait(deadline, |session| session.next_timer(key), look, |_| Ok(None)).await?;
        reply.map_err(|error| self.shared.endpoint.explain(error))
    }

    /// [`get_result`](AsyncModel::get_result) with the fallback declared in [`ModelOptions`]: always an action, within
    /// `timeout_ms`. With the link down, or a reply that is not OK, it falls back at once.
    pub async fn act(&self, timeout_ms: u64) -> Action {
        self.watchdog.decide(self.await_result(timeout_ms).await, Instant::now())
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

    /// How the last [`get_result`](AsyncModel::get_result) ended; none where nothing was outstanding, or a timeout of
    /// 0 found nothing yet.
    pub fn last_status(&self) -> Option<Status> {
        self.last().map(|(status, _)| status)
    }

    /// The error text that belongs to [`last_status`](AsyncModel::last_status); empty with OK.
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
struct Waiting<'a>(&'a AsyncModel);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.shared.endpoint.peek(|inner| inner.session.end_wait(self.0.key));
    }
}

impl Observation<'_, AsyncModel> {
    /// Sends it. Never waits, but for the first send on a connection that has never been up, which waits up to `connect_timeout_ms` for
    /// the server, and what other tasks send meanwhile. The result may be ignored: `get_result` then returns none at once.
    pub async fn send(self) -> Sent {
        Sent(self.try_send().await)
    }

    async fn try_send(&self) -> Result<u64, Error> {
        let shared = &self.model.shared;
        // As in `Shared::wait`.
        consume_budget().await;
        loop {
            match shared.endpoint.send(self.model.key, &self.fields)? {
                Attempt::Sent(request_id) => return Ok(request_id),
                Attempt::WaitUntil(until) => shared.wait_for_link(until).await?,
            }
        }
    }
}
