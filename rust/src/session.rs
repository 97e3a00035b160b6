//! The client's state machine: which requests are outstanding, what became of them, who gets which reply.
//!
//! No I/O and no clock: it is told of calls, messages, link events and the time. `docs/protocol.md`, section 6, is what it does;
//! the section of each rule is named where the rule is kept.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{Error, NotSentReason};
use crate::observation::Fields;
use crate::reply::{milliseconds, Counters, LinkState, Pong, Reason, Reply, Status};
use crate::tensor::Tensors;
use crate::wire::{self, Encoded, Encoder, Incoming, Kind};

/// Replies a model's inbox holds before the oldest is dropped.
pub const INBOX_CAPACITY: usize = 65_536;
/// Slots of a model that are remembered before those that are not in use are forgotten.
const SLOTS: usize = 256;
/// A hold-off of a day is as good as any longer one.
const MAX_HOLD_OFF_MS: f64 = 24.0 * 3600.0 * 1000.0;

/// What a session needs to know.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Names the client to the server.
    pub client_id: String,
    /// What kind of client it is.
    pub client_type: String,
    /// Whether requests are answered here while the server asked not to be asked (6.5).
    pub hold_off: bool,
    /// A request without a reply ends TIMED_OUT after this.
    pub request_timeout: Duration,
    /// Larger observations are refused.
    pub max_message_bytes: u64,
}

/// Which model; an index into the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModelKey(usize);

/// What a look into the inbox gave.
#[derive(Debug)]
pub enum Taken<T> {
    /// This.
    Some(T),
    /// Nothing, and nothing to wait for.
    Nothing,
    /// Nothing, and never again: the connection is closed.
    Closed,
    /// Nothing yet.
    Wait,
}

impl<T> Taken<T> {
    /// None while there is something to wait for.
    pub(crate) fn into_finished(self) -> Option<Result<Option<T>, Error>> {
        match self {
            Taken::Some(value) => Some(Ok(Some(value))),
            Taken::Nothing => Some(Ok(None)),
            Taken::Closed => Some(Err(Error::Closed)),
            Taken::Wait => None,
        }
    }
}

/// An observation that passed all checks.
#[derive(Debug)]
pub enum Step<'p> {
    /// Answered here; the reply is in the inbox.
    Answered(u64),
    /// To be sent now; [`Session::not_sent`] takes it back where that fails.
    Send(u64, Encoded<'p>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Unknown,
    V1,
    V2,
}

#[derive(Debug)]
struct Outstanding {
    request_id: u64,
    slot: String,
    sent: Instant,
    observation_timestamp_ns: u64,
    step_ms: f32,
}

#[derive(Debug)]
struct HoldOff {
    until: Instant,
    status: Status,
    reason: Reason,
    error: String,
}

#[derive(Debug)]
struct Model {
    id: String,
    /// In order of request id, which is the order of sending.
    outstanding: VecDeque<Outstanding>,
    inbox: VecDeque<Reply>,
    /// Greatest request id given out by get_result, per slot.
    delivered: HashMap<String, u64>,
    most_slots: usize,
    hold_off: Option<HoldOff>,
    last: Option<(Status, String)>,
    /// The last hint that nobody has taken yet.
    phase_shift_ms: f32,
    waiting: bool,
}

#[derive(Debug)]
struct Ping {
    request_id: u64,
    sent: Instant,
    /// `Some(None)` once it is known that no answer will come.
    outcome: Option<Option<Pong>>,
}

/// The state machine of one connection.
#[derive(Debug)]
pub struct Session {
    options: SessionOptions,
    encoder: Encoder,
    link: LinkState,
    link_changes: Vec<LinkState>,
    /// Until when sends wait for the handshake, since the first one.
    first_send_until: Option<Instant>,
    server: Server,
    v1_logged: bool,
    last_request_id: u64,
    models: Vec<Model>,
    pings: Vec<Ping>,
    counters: Counters,
}

impl Session {
    /// A session whose link was never up.
    pub fn new(options: SessionOptions) -> Session {
        Session {
            encoder: Encoder::new(&options.client_id, &options.client_type),
            options,
            link: LinkState::Connecting,
            link_changes: Vec::new(),
            first_send_until: None,
            server: Server::Unknown,
            v1_logged: false,
            last_request_id: 0,
            models: Vec::new(),
            pings: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The key of this model; handles of one id share inbox and state.
    pub fn model(&mut self, id: &str) -> ModelKey {
        if let Some(index) = self.models.iter().position(|model| model.id == id) {
            return ModelKey(index);
        }
        self.models.push(Model {
            id: id.to_owned(),
            outstanding: VecDeque::new(),
            inbox: VecDeque::new(),
            delivered: HashMap::new(),
            most_slots: SLOTS,
            hold_off: None,
            last: None,
            phase_shift_ms: 0.0,
            waiting: false,
        });
        ModelKey(self.models.len() - 1)
    }

    /// State of the link.
    pub fn link_state(&self) -> LinkState {
        self.link
    }

    /// The states the link went through since the last call.
    pub fn take_link_changes(&mut self) -> Vec<LinkState> {
        std::mem::take(&mut self.link_changes)
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How the last `get_result` of this model ended, and the error text with it; none where nothing was outstanding or it only looked.
    pub fn last(&self, key: ModelKey) -> Option<(Status, String)> {
        self.models.get(key.0).and_then(|model| model.last.clone())
    }

    /// The server's last phase shift hint that was not taken yet; 0 without one.
    pub fn take_phase_shift_ms(&mut self, key: ModelKey) -> f64 {
        self.models.get_mut(key.0).map_or(0.0, |model| f64::from(std::mem::take(&mut model.phase_shift_ms)))
    }

    /// Number of requests of this model without an outcome.
    pub fn outstanding(&self, key: ModelKey) -> usize {
        self.models.get(key.0).map_or(0, |model| model.outstanding.len())
    }

    // ---- the link (6.1)

    /// The handshake succeeded.
    pub fn link_up(&mut self) {
        if matches!(self.link, LinkState::Connecting | LinkState::Down) {
            if self.link == LinkState::Down {
                self.counters.reconnects += 1;
            }
            self.set_link(LinkState::Up);
        }
    }

    /// The link went down; before it was ever up this says nothing new.
    pub fn link_down(&mut self, now: Instant) {
        if self.link == LinkState::Up {
            self.set_link(LinkState::Down);
            self.lose_everything(now, "the link to the server went down while the request was outstanding");
        }
    }

    /// The program closed the connection.
    pub fn close(&mut self, now: Instant) {
        if self.link != LinkState::Closed {
            self.set_link(LinkState::Closed);
            self.lose_everything(now, "the connection was closed while the request was outstanding");
        }
    }

    fn set_link(&mut self, state: LinkState) {
        self.link = state;
        self.link_changes.push(state);
    }

    fn lose_everything(&mut self, now: Instant, error: &str) {
        self.server = Server::Unknown;
        for model in &mut self.models {
            model.hold_off = None;
            while let Some(request) = model.outstanding.pop_front() {
                self.counters.link_lost += 1;
                let reply = local_reply(&model.id, request, now, Status::LinkLost, Reason::None, error.to_owned());
                put(&mut model.inbox, reply, &mut self.counters);
            }
        }
        for ping in &mut self.pings {
            ping.outcome.get_or_insert(None);
        }
    }

    /// Until when a send should first wait for the handshake; none where it should not. The first send's time is that of all that are
    /// sent meanwhile, and what is left of it where the first one was given up.
    pub fn handshake_deadline(&mut self, now: Instant, connect_timeout: Duration) -> Option<Instant> {
        if self.link != LinkState::Connecting {
            return None;
        }
        let until = *self.first_send_until.get_or_insert_with(|| now + connect_timeout);
        (now < until).then_some(until)
    }

    /// A wait for the handshake has run out: no send waits from here on.
    pub fn handshake_waited(&mut self, now: Instant) {
        self.first_send_until = Some(now);
    }

    // ---- sending (6.2)

    /// Checks what a server would refuse; uses no request id.
    ///
    /// # Errors
    /// [`Error::InvalidObservation`], [`Error::Closed`].
    pub fn check(&self, key: ModelKey, fields: &Fields<'_>) -> Result<(), Error> {
        if self.link == LinkState::Closed {
            return Err(Error::Closed);
        }
        let model = self.models.get(key.0).ok_or(Error::Closed)?;
        let most = self.options.max_message_bytes;
        fields.check(&model.id, most)?;
        let (request_id, several_frames) = (self.last_request_id + 1, self.tells_ids());
        match self.encoder.measure_above(most, request_id, &model.id, fields, several_frames) {
            None => Ok(()),
            // A server would drop the connection.
            Some(size) => Err(Error::InvalidObservation {
                model: model.id.clone(),
                field: "metadata".to_owned(),
                reason: format!(
                    "the metadata and all else but the tensors has {size} bytes; max_message_bytes is {most}"
                ),
            }),
        }
    }

    /// Takes a request id for an observation, and says whether it is to be sent.
    ///
    /// # Errors
    /// As [`check`](Session::check); [`Error::NotSent`] where the link is not up.
    pub fn observe<'p>(
        &mut self,
        now: Instant,
        wall_clock_ns: u64,
        key: ModelKey,
        fields: &'p Fields<'p>,
    ) -> Result<Step<'p>, Error> {
        self.check(key, fields)?;
        self.last_request_id += 1;
        let request_id = self.last_request_id;
        let reason = match self.link {
            LinkState::Up => None,
            LinkState::Connecting => Some(NotSentReason::NeverUp),
            LinkState::Down => Some(NotSentReason::LinkDown),
            LinkState::Closed => Some(NotSentReason::Closed),
        };
        if let Some(reason) = reason {
            self.counters.not_sent += 1;
            return Err(Error::NotSent { request_id, reason });
        }
        let model = self.models.get_mut(key.0).ok_or(Error::Closed)?;
        let request = Outstanding {
            request_id,
            slot: fields.slot.to_string(),
            sent: now,
            observation_timestamp_ns: wall_clock_ns,
            step_ms: fields.step_ms,
        };

        // 6.5: the server asked not to be asked.
        model.hold_off.take_if(|hold_off| hold_off.until <= now);
        if let Some(hold_off) = &model.hold_off {
            let remaining_ms = milliseconds(hold_off.until.saturating_duration_since(now)) as f32;
            let error = hold_off.error.clone();
            let mut reply = local_reply(&model.id, request, now, hold_off.status, hold_off.reason, error);
            reply.retry_after_ms = remaining_ms;
            self.counters.held_off += 1;
            put(&mut model.inbox, reply, &mut self.counters);
            return Ok(Step::Answered(request_id));
        }

        model.outstanding.push_back(request);
        self.counters.sent += 1;
        // 6.6: several frames only to a server that is known to read them.
        let several_frames = self.server == Server::V2;
        let encoded = self.encoder.observe(request_id, wall_clock_ns, &model.id, fields, several_frames);
        Ok(Step::Send(request_id, encoded))
    }

    /// The socket did not take the message of this request, which is thereby ended.
    pub fn not_sent(&mut self, key: ModelKey, request_id: u64) {
        if let Some(model) = self.models.get_mut(key.0) {
            if model.take(request_id).is_some() {
                self.counters.sent -= 1;
                self.counters.not_sent += 1;
            }
        }
    }

    /// The message that cancels a request; none where it is not outstanding or the server is not known to be v2.
    pub fn cancel(&mut self, key: ModelKey, request_id: u64, wall_clock_ns: u64) -> Option<Encoded<'static>> {
        let outstanding = self.models.get(key.0)?.find(request_id).is_some();
        (outstanding && self.server == Server::V2 && self.link == LinkState::Up)
            .then(|| self.encoder.control(Kind::Cancel, request_id, wall_clock_ns))
    }

    /// The message that asks whether the server is there; none where the link is not up or the server is v1.
    pub fn ping(&mut self, now: Instant, wall_clock_ns: u64) -> Option<(u64, Encoded<'static>)> {
        if self.link != LinkState::Up || self.server == Server::V1 {
            return None;
        }
        self.last_request_id += 1;
        let request_id = self.last_request_id;
        self.pings.push(Ping { request_id, sent: now, outcome: None });
        Some((request_id, self.encoder.control(Kind::Ping, request_id, wall_clock_ns)))
    }

    /// The answer to a ping.
    pub fn take_pong(&mut self, request_id: u64) -> Taken<Pong> {
        match self.pings.iter().position(|ping| ping.request_id == request_id) {
            None => Taken::Nothing,
            Some(index) if self.pings.get(index).is_some_and(|ping| ping.outcome.is_none()) => Taken::Wait,
            Some(index) => match self.pings.swap_remove(index).outcome.flatten() {
                Some(pong) => Taken::Some(pong),
                None => Taken::Nothing,
            },
        }
    }

    /// Nobody waits for the answer to this ping any more.
    pub fn forget_ping(&mut self, request_id: u64) {
        self.pings.retain(|ping| ping.request_id != request_id);
    }

    // ---- matching (6.3)

    /// A message arrived: `["", envelope, payload 0, ...]`.
    pub fn on_message(&mut self, now: Instant, frames: &[Bytes]) {
        let incoming = match wire::decode_reply(frames) {
            Ok(incoming) => incoming,
            Err(reason) => {
                self.count_bad(&reason);
                return;
            }
        };
        if incoming.request_id == 0 {
            self.on_v1_reply(now, incoming);
            return;
        }
        let request_id = incoming.request_id;
        if request_id <= self.last_request_id {
            self.server = Server::V2;
        }
        if let Some(ping) = self.pings.iter_mut().find(|ping| ping.request_id == request_id) {
            let round_trip = now.saturating_duration_since(ping.sent);
            match &incoming.tensors {
                Ok(_) if ping.outcome.is_some() => self.counters.late_replies += 1,
                Ok(_) => ping.outcome = Some(pong(&incoming, round_trip)),
                Err(reason) => {
                    ping.outcome.get_or_insert(None);
                    self.count_bad(reason);
                }
            }
            return;
        }
        // Most often the reply's own model has it; the id alone decides.
        let found = self
            .models
            .iter()
            .position(|model| model.id == incoming.model_id && model.find(request_id).is_some())
            .or_else(|| self.models.iter().position(|model| model.find(request_id).is_some()));
        let model = found.and_then(|index| self.models.get_mut(index));
        match model.and_then(|model| model.take(request_id).map(|request| (model, request))) {
            Some((model, request)) => finish(model, request, now, incoming, &self.options, &mut self.counters),
            None => match incoming.tensors {
                Ok(_) => self.counters.late_replies += 1,
                Err(reason) => self.count_bad(&reason),
            },
        }
    }

    fn count_bad(&mut self, reason: &str) {
        self.counters.bad_replies += 1;
        tracing::warn!("a reply could not be read: {reason}");
    }

    /// A v1 server names no request: its replies come in the order of a model's requests.
    fn on_v1_reply(&mut self, now: Instant, mut incoming: Incoming) {
        if let Err(reason) = &incoming.tensors {
            self.count_bad(reason);
            return;
        }
        if self.server == Server::Unknown {
            self.server = Server::V1;
        }
        if !std::mem::replace(&mut self.v1_logged, true) {
            tracing::warn!(
                "the server speaks protocol 1: replies are matched by model in order of arrival, cancel and ping do nothing"
            );
        }
        if incoming.inference_latency_ms != 0.0 {
            incoming.timing.get_or_insert_default().inference_ms = incoming.inference_latency_ms;
        }
        let model = self.models.iter_mut().find(|model| model.id == incoming.model_id);
        match model.and_then(|model| model.outstanding.pop_front().map(|request| (model, request))) {
            Some((model, request)) => finish(model, request, now, incoming, &self.options, &mut self.counters),
            None => self.counters.late_replies += 1,
        }
    }

    /// Whether the server is known to say which request a reply answers.
    pub fn tells_ids(&self) -> bool {
        self.server == Server::V2
    }

    /// Whether a message may come that ends something.
    pub fn awaits_anything(&self) -> bool {
        self.models.iter().any(|model| !model.outstanding.is_empty())
            || self.pings.iter().any(|ping| ping.outcome.is_none())
    }

    /// Ends requests that have waited for `request_timeout`.
    pub fn on_timer(&mut self, now: Instant) {
        let timeout = self.options.request_timeout;
        for model in &mut self.models {
            while model
                .outstanding
                .front()
                .is_some_and(|request| now.saturating_duration_since(request.sent) >= timeout)
            {
                if let Some(request) = model.outstanding.pop_front() {
                    self.counters.timed_out += 1;
                    let error = format!("no reply within request_timeout_ms ({:.0})", milliseconds(timeout));
                    let reply = local_reply(&model.id, request, now, Status::TimedOut, Reason::None, error);
                    put(&mut model.inbox, reply, &mut self.counters);
                }
            }
        }
    }

    /// When [`on_timer`](Session::on_timer) next has something to do for this model.
    pub fn next_timer(&self, key: ModelKey) -> Option<Instant> {
        let sent = self.models.get(key.0)?.outstanding.front()?.sent;
        sent.checked_add(self.options.request_timeout)
    }

    // ---- receiving (6.4)

    /// Registers the one call that may look for replies of this model at a time.
    ///
    /// # Errors
    /// [`Error::Busy`] where there is one already.
    pub fn begin_wait(&mut self, key: ModelKey) -> Result<(), Error> {
        let model = self.models.get_mut(key.0).ok_or(Error::Closed)?;
        if std::mem::replace(&mut model.waiting, true) {
            return Err(Error::Busy { model: model.id.clone() });
        }
        Ok(())
    }

    /// That call is over.
    pub fn end_wait(&mut self, key: ModelKey) {
        if let Some(model) = self.models.get_mut(key.0) {
            model.waiting = false;
        }
    }

    /// `next_reply`: every terminal reply, in order of arrival.
    pub fn take_next(&mut self, key: ModelKey) -> Taken<Reply> {
        let Some(model) = self.models.get_mut(key.0) else { return Taken::Nothing };
        match model.inbox.pop_front() {
            Some(reply) => Taken::Some(reply),
            None if self.link == LinkState::Closed => Taken::Closed,
            None if model.outstanding.is_empty() => Taken::Nothing,
            None => Taken::Wait,
        }
    }

    /// `get_result`: the first OK reply newer than what was delivered for its slot.
    pub fn take_result(&mut self, key: ModelKey) -> Taken<Reply> {
        let Some(model) = self.models.get_mut(key.0) else { return Taken::Nothing };
        while let Some(reply) = model.inbox.pop_front() {
            if reply.status.is_ok() {
                if !model.delivered.contains_key(&reply.slot) && model.delivered.len() >= model.most_slots {
                    model.forget_slots();
                }
                let delivered = match model.delivered.get_mut(&reply.slot) {
                    Some(delivered) => delivered,
                    None => model.delivered.entry(reply.slot.clone()).or_default(),
                };
                if reply.request_id > *delivered {
                    *delivered = reply.request_id;
                    model.last = Some((Status::Ok, String::new()));
                    return Taken::Some(reply);
                }
                self.counters.late_replies += 1;
                continue;
            }
            let newer_outstanding = model.outstanding.back().is_some_and(|last| last.request_id > reply.request_id);
            // Most often the last one is.
            let newer_arrived = model.inbox.iter().rev().any(|other| other.request_id > reply.request_id);
            if !newer_outstanding && !newer_arrived {
                model.last = Some((reply.status, reply.error));
                return Taken::Nothing;
            }
        }
        model.last = None; // so far; `abandon` says more
        match self.link {
            LinkState::Closed => Taken::Closed,
            _ if model.outstanding.is_empty() => Taken::Nothing,
            _ => Taken::Wait,
        }
    }

    /// The timeout of a `get_result` has passed: everything of this model that is outstanding ends TIMED_OUT.
    pub fn abandon(&mut self, key: ModelKey) {
        if let Some(model) = self.models.get_mut(key.0) {
            self.counters.timed_out += model.outstanding.len() as u64;
            model.outstanding.clear();
            model.last = Some((Status::TimedOut, "no reply within the timeout of get_result".to_owned()));
        }
    }
}

impl Model {
    fn find(&self, request_id: u64) -> Option<usize> {
        self.outstanding.binary_search_by_key(&request_id, |request| request.request_id).ok()
    }

    fn take(&mut self, request_id: u64) -> Option<Outstanding> {
        self.find(request_id).and_then(|index| self.outstanding.remove(index))
    }

    /// Slots of which no reply can come any more need not be remembered: their names may keep changing.
    fn forget_slots(&mut self) {
        let outstanding = self.outstanding.iter().map(|request| request.slot.as_str());
        let used: HashSet<&str> = outstanding.chain(self.inbox.iter().map(|reply| reply.slot.as_str())).collect();
        self.delivered.retain(|slot, _| used.contains(slot.as_str()));
        self.most_slots = SLOTS.max(2 * self.delivered.len());
    }
}

/// Puts a reply into an inbox that holds so many and no more.
fn put(inbox: &mut VecDeque<Reply>, reply: Reply, counters: &mut Counters) {
    if inbox.len() >= INBOX_CAPACITY {
        inbox.pop_front();
        counters.replies_dropped += 1;
    }
    inbox.push_back(reply);
}

/// Ends a request with the server's reply.
fn finish(
    model: &mut Model,
    request: Outstanding,
    now: Instant,
    incoming: Incoming,
    options: &SessionOptions,
    counters: &mut Counters,
) {
    let reply = match incoming.tensors {
        Err(reason) => {
            counters.not_ok += 1;
            let error = format!("the reply could not be read: {reason}");
            local_reply(&model.id, request, now, Status::ModelError, Reason::None, error)
        }
        Ok(tensors) => {
            if incoming.status.is_ok() {
                counters.ok += 1;
            } else {
                counters.not_ok += 1;
            }
            let holds_off = options.hold_off && matches!(incoming.status, Status::Rejected | Status::Unavailable);
            if holds_off && incoming.retry_after_ms > 0.0 {
                let wait_ms = f64::from(incoming.retry_after_ms).min(MAX_HOLD_OFF_MS);
                model.hold_off = Some(HoldOff {
                    until: now + Duration::from_secs_f64(wait_ms / 1e3),
                    status: incoming.status,
                    reason: incoming.reason,
                    error: incoming.error.clone(),
                });
            }
            if incoming.phase_shift_ms > 0.0 {
                model.phase_shift_ms = incoming.phase_shift_ms;
            }
            Reply {
                request_id: request.request_id,
                // The model asked, whatever the server wrote.
                model_id: if incoming.model_id == model.id { incoming.model_id } else { model.id.clone() },
                slot: request.slot,
                status: incoming.status,
                reason: incoming.reason,
                error: incoming.error,
                local: false,
                tensors,
                metadata: incoming.metadata,
                retry_after_ms: incoming.retry_after_ms,
                phase_shift_ms: incoming.phase_shift_ms,
                timing: incoming.timing,
                response_id: incoming.response_id,
                timestamp_ns: incoming.timestamp_ns,
                observation_timestamp_ns: request.observation_timestamp_ns,
                step_ms: request.step_ms,
                sent: request.sent,
                arrived: now,
            }
        }
    };
    put(&mut model.inbox, reply, counters);
}

/// What this side says in the server's place.
fn local_reply(
    model_id: &str,
    request: Outstanding,
    now: Instant,
    status: Status,
    reason: Reason,
    error: String,
) -> Reply {
    Reply {
        request_id: request.request_id,
        model_id: model_id.to_owned(),
        slot: request.slot,
        status,
        reason,
        error,
        local: true,
        tensors: Tensors::new(),
        metadata: HashMap::new(),
        retry_after_ms: 0.0,
        phase_shift_ms: 0.0,
        timing: None,
        response_id: String::new(),
        timestamp_ns: 0,
        observation_timestamp_ns: request.observation_timestamp_ns,
        step_ms: request.step_ms,
        sent: request.sent,
        arrived: now,
    }
}

fn pong(incoming: &Incoming, round_trip: Duration) -> Option<Pong> {
    if !incoming.status.is_ok() {
        return None;
    }
    let text = |key: &str| incoming.metadata.get(key).cloned().unwrap_or_default();
    Some(Pong {
        models: incoming
            .metadata
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("model:")?.to_owned(), value == "ready")))
            .collect(),
        server: text("server"),
        protocol: text("protocol").parse().unwrap_or_default(),
        round_trip_ms: milliseconds(round_trip),
    })
}

#[cfg(test)]
mod tests;
