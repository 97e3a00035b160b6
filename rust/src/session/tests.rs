//! Each rule of docs/protocol.md, section 6, on a clock that only these tests move.

use prost::Message as _;

use super::*;
use crate::observation::Part;
use crate::proto;
use crate::tensor::Tensor;

/// A session with its link up, and its clock.
struct Bench {
    session: Session,
    now: Instant,
    model: ModelKey,
}

fn options() -> SessionOptions {
    SessionOptions {
        client_id: "agent-01".to_owned(),
        client_type: "franka".to_owned(),
        hold_off: true,
        request_timeout: Duration::from_secs(30),
        max_message_bytes: 1 << 20,
    }
}

impl Bench {
    fn new() -> Bench {
        let mut bench = Bench::down(options());
        bench.session.link_up();
        bench
    }

    fn down(options: SessionOptions) -> Bench {
        let mut session = Session::new(options);
        let model = session.model("policy");
        Bench { session, now: Instant::now(), model }
    }

    fn pass_ms(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.session.on_timer(self.now);
    }

    fn try_observe(&mut self, model: ModelKey, fields: &Fields<'_>) -> Result<(u64, bool), Error> {
        self.session.observe(self.now, 1000, model, fields).map(|step| match step {
            Step::Answered(id) => (id, false),
            Step::Send(id, _) => (id, true),
        })
    }

    /// Sends an observation; its id.
    fn observe(&mut self) -> u64 {
        self.observe_slot("")
    }

    fn observe_slot(&mut self, slot: &str) -> u64 {
        let fields = Fields { slot: slot.into(), ..Fields::default() };
        self.try_observe(self.model, &fields).expect("sent").0
    }

    fn receive(&mut self, response: proto::ModelResponse) {
        let frames = [Bytes::new(), response.encode_to_vec().into(), Bytes::new()];
        self.session.on_message(self.now, &frames);
    }

    fn receive_without_payload(&mut self, response: proto::ModelResponse) {
        self.session.on_message(self.now, &[Bytes::new(), response.encode_to_vec().into()]);
    }

    fn answer(&mut self, request_id: u64, status: Status) {
        self.receive(response(request_id, status));
    }

    fn result(&mut self) -> Option<u64> {
        match self.session.take_result(self.model) {
            Taken::Some(reply) => Some(reply.request_id),
            _ => None,
        }
    }

    fn next(&mut self) -> Option<(u64, Status)> {
        match self.session.take_next(self.model) {
            Taken::Some(reply) => Some((reply.request_id, reply.status)),
            _ => None,
        }
    }

    fn waits(&mut self) -> bool {
        matches!(self.session.take_result(self.model), Taken::Wait)
    }

    fn last(&self) -> Option<Status> {
        self.session.last(self.model).map(|(status, _)| status)
    }

    fn counters(&self) -> Counters {
        self.session.counters()
    }
}

fn response(request_id: u64, status: Status) -> proto::ModelResponse {
    proto::ModelResponse { model_id: "policy".to_owned(), request_id, status: status.code(), ..Default::default() }
}

fn rejected(request_id: u64, retry_after_ms: f32) -> proto::ModelResponse {
    let reason = Reason::QueueFull.code();
    proto::ModelResponse { retry_after_ms, reason, ..response(request_id, Status::Rejected) }
}

// ---- 6.1 link

#[test]
fn the_link_goes_from_connecting_to_up_to_down_and_up_again() {
    let mut bench = Bench::down(options());
    assert_eq!(bench.session.link_state(), LinkState::Connecting);
    bench.session.link_down(bench.now); // a failed handshake: still never up
    assert_eq!(bench.session.link_state(), LinkState::Connecting);
    bench.session.link_up();
    bench.session.link_down(bench.now);
    bench.session.link_up();
    assert_eq!(bench.session.take_link_changes(), [LinkState::Up, LinkState::Down, LinkState::Up]);
    assert_eq!(bench.counters().reconnects, 1);
    bench.session.close(bench.now);
    bench.session.link_up();
    bench.session.link_down(bench.now);
    assert_eq!(bench.session.take_link_changes(), [LinkState::Closed]);
}

#[test]
fn only_the_first_send_on_a_link_never_up_waits_and_what_is_sent_meanwhile() {
    let timeout = Duration::from_secs(1);
    let mut bench = Bench::down(options());
    let until = Some(bench.now + timeout);
    assert_eq!(bench.session.handshake_deadline(bench.now, timeout), until);
    bench.pass_ms(999);
    assert_eq!(bench.session.handshake_deadline(bench.now, timeout), until, "the first one's time");
    bench.pass_ms(1);
    assert_eq!(bench.session.handshake_deadline(bench.now, timeout), None);

    let mut bench = Bench::down(options());
    assert!(bench.session.handshake_deadline(bench.now, timeout).is_some());
    bench.session.handshake_waited(bench.now); // a ping with a shorter time
    assert_eq!(bench.session.handshake_deadline(bench.now, timeout), None);

    let mut bench = Bench::new();
    assert_eq!(bench.session.handshake_deadline(bench.now, timeout), None);
    bench.session.link_down(bench.now);
    assert_eq!(bench.session.handshake_deadline(bench.now, timeout), None);
}

#[test]
fn a_link_that_is_not_up_sends_nothing() {
    let mut bench = Bench::down(options());
    let reason = |result| match result {
        Err(Error::NotSent { request_id, reason }) => (request_id, reason),
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(bench.try_observe(bench.model, &Fields::default())), (1, NotSentReason::NeverUp));
    bench.session.link_up();
    bench.session.link_down(bench.now);
    assert_eq!(reason(bench.try_observe(bench.model, &Fields::default())), (2, NotSentReason::LinkDown));
    assert_eq!(bench.counters().not_sent, 2);
    assert_eq!(bench.next(), None); // told by the send and nowhere else
    bench.session.link_up();
    assert_eq!(bench.observe(), 3); // ids go on
}

#[test]
fn a_lost_link_ends_everything_at_once_and_forgets_the_server() {
    let mut bench = Bench::new();
    let (first, second) = (bench.observe(), bench.observe());
    bench.session.link_down(bench.now);
    assert_eq!(bench.next(), Some((first, Status::LinkLost)));
    assert_eq!(bench.next(), Some((second, Status::LinkLost)));
    assert_eq!(bench.counters().link_lost, 2);

    bench.session.link_up();
    let held = bench.observe();
    bench.receive(rejected(held, 1e6));
    let (_, sent) = bench.try_observe(bench.model, &Fields::default()).unwrap();
    assert!(!sent);
    bench.session.link_down(bench.now);
    bench.session.link_up();
    assert!(bench.try_observe(bench.model, &Fields::default()).unwrap().1, "the hold-off is forgotten");
    assert!(bench.session.cancel(bench.model, held + 2, 0).is_none(), "that it was v2 is forgotten");
}

#[test]
fn closing_ends_everything_link_lost_and_refuses_more() {
    let mut bench = Bench::new();
    let id = bench.observe();
    bench.session.close(bench.now);
    assert_eq!(bench.next(), Some((id, Status::LinkLost)));
    assert!(matches!(bench.session.take_next(bench.model), Taken::Closed));
    assert!(matches!(bench.session.take_result(bench.model), Taken::Closed));
    assert_eq!(bench.try_observe(bench.model, &Fields::default()), Err(Error::Closed));
}

// ---- 6.2 sending

#[test]
fn ids_count_from_one_over_all_models() {
    let mut bench = Bench::new();
    let other = bench.session.model("other");
    assert_eq!(bench.observe(), 1);
    assert_eq!(bench.try_observe(other, &Fields::default()).unwrap().0, 2);
    assert_eq!(bench.observe(), 3);
}

#[test]
fn a_mistake_of_the_program_uses_no_id() {
    let mut bench = Bench::new();
    let part = |key: &'static str, shape: &[usize], bytes: usize| Part {
        shape: shape.to_vec(),
        ..Part::of(key, &Tensor::from_vec(vec![0u8; bytes], &[bytes]).unwrap())
    };
    let with = |change: &dyn Fn(&mut Fields<'static>)| {
        let mut fields = Fields::default();
        change(&mut fields);
        fields
    };
    let wrong: Vec<(&str, Fields<'static>)> = vec![
        ("urgency", with(&|fields| fields.urgency = 1.1)),
        ("urgency", with(&|fields| fields.urgency = f32::NAN)),
        ("urgency", with(&|fields| fields.urgency = -0.1)),
        ("priority", with(&|fields| fields.priority = 1001)),
        ("latency_budget_ms", with(&|fields| fields.latency_budget_ms = -1.0)),
        ("latency_budget_ms", with(&|fields| fields.latency_budget_ms = f32::INFINITY)),
        ("step_ms", with(&|fields| fields.step_ms = f32::NAN)),
        ("slot", with(&|fields| fields.slot = "x".repeat(257).into())),
        ("tensors", with(&|fields| fields.tensors = (0..257).map(|_| part("x", &[1], 1)).collect())),
        ("tensors", with(&|fields| fields.tensors = vec![part("x", &[2 << 20], 2 << 20)])),
        // The second begins at 8.
        (
            "tensors",
            with(&|fields| {
                let rest = (1 << 20) - 7;
                fields.tensors = vec![part("x", &[1], 1), part("y", &[rest], rest)];
            }),
        ),
        (
            "metadata",
            with(&|fields| fields.metadata = (0..4097).map(|key| (key.to_string().into(), "".into())).collect()),
        ),
        ("metadata", with(&|fields| fields.metadata = vec![("task".into(), "x".repeat(1 << 20).into())])),
        (
            "metadata",
            with(&|fields| fields.tensors = vec![Part { key: "x".repeat(1 << 20).into(), ..part("", &[1], 1) }]),
        ),
        ("\"x\"", with(&|fields| fields.tensors = vec![part("x", &[2], 1)])),
        ("\"x\"", with(&|fields| fields.tensors = vec![part("x", &[1], 1), part("x", &[1], 1)])),
        ("\"\"", with(&|fields| fields.tensors = vec![part("", &[1], 1)])),
        (
            "\"x\"",
            with(&|fields| {
                fields.tensors = vec![part("x", &[1], 1)];
                fields.metadata = vec![("x".into(), "text".into())];
            }),
        ),
        ("given", with(&|fields| fields.problem = Some(("given".to_owned(), "by the builder".to_owned())))),
    ];
    for (expected, fields) in wrong {
        match bench.try_observe(bench.model, &fields) {
            Err(Error::InvalidObservation { field, .. }) => assert!(field.contains(expected), "{field} {expected}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
    for id in [String::new(), "x".repeat(257)] {
        let model = bench.session.model(&id);
        match bench.try_observe(model, &Fields::default()) {
            Err(Error::InvalidObservation { field, .. }) => assert_eq!(field, "model_id"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bench.observe(), 1);
    assert_eq!(bench.counters(), Counters { sent: 1, ..Counters::default() });
}

#[test]
fn a_message_may_be_as_large_as_the_limit() {
    let mut bench = Bench::down(SessionOptions { max_message_bytes: 2000, ..options() });
    bench.session.link_up();
    let zeros = |bytes| Tensor::from_vec(vec![0u8; bytes], &[bytes]).unwrap();
    let (small, rest) = (zeros(1), zeros(2000 - 8));
    let fields = Fields { tensors: vec![Part::of("x", &small), Part::of("y", &rest)], ..Fields::default() };
    bench.try_observe(bench.model, &fields).expect("all of the frame");

    let with = |length: usize| Fields { metadata: vec![("m".into(), "x".repeat(length).into())], ..Fields::default() };
    let size = |length: usize| {
        let fields = with(length);
        let mut encoder = Encoder::new("agent-01", "franka");
        encoder.observe(2, 1 << 60, "policy", &fields, false).envelope.len()
    };
    let fits = 1900 + 2000 - size(1900);
    assert_eq!(size(fits), 2000);
    let error = bench.try_observe(bench.model, &with(fits + 1)).unwrap_err().to_string();
    assert!(error.contains("2001 bytes") && error.contains("max_message_bytes is 2000"), "{error}");
    assert_eq!(bench.try_observe(bench.model, &with(fits)), Ok((2, true)));
}

#[test]
fn what_the_socket_refuses_is_not_sent_and_told_once() {
    let mut bench = Bench::new();
    let id = bench.observe();
    bench.session.not_sent(bench.model, id);
    assert_eq!(bench.counters(), Counters { not_sent: 1, ..Counters::default() });
    assert!(matches!(bench.session.take_next(bench.model), Taken::Nothing));
    bench.answer(id, Status::Ok);
    assert_eq!(bench.counters().late_replies, 1);
}

#[test]
fn no_reply_within_the_request_timeout_is_timed_out() {
    let mut bench = Bench::new();
    let first = bench.observe();
    bench.pass_ms(10_000);
    let second = bench.observe();
    assert_eq!(bench.session.next_timer(bench.model), Some(bench.now + Duration::from_secs(20)));
    bench.pass_ms(19_999);
    assert!(matches!(bench.session.take_next(bench.model), Taken::Wait));
    bench.pass_ms(1);
    assert_eq!(bench.next(), Some((first, Status::TimedOut)));
    assert!(matches!(bench.session.take_next(bench.model), Taken::Wait));
    bench.pass_ms(10_000);
    assert_eq!(bench.next(), Some((second, Status::TimedOut)));
    assert_eq!(bench.counters().timed_out, 2);
}

#[test]
fn every_field_reaches_the_wire() {
    let mut bench = Bench::new();
    let tensor = Tensor::from_vec(vec![1.0f32, 2.0], &[2, 1]).unwrap().with_timestamp_ns(77);
    let fields = Fields {
        urgency: 0.5,
        priority: 3,
        latency_budget_ms: 30.0,
        step_ms: 20.0,
        steps_remaining: Some(0),
        latest_only: true,
        slot: "left".into(),
        metadata: vec![("task".into(), "fold".into())],
        tensors: vec![Part::of("state", &tensor)],
        problem: None,
    };
    let step = bench.session.observe(bench.now, 123, bench.model, &fields).unwrap();
    let Step::Send(id, encoded) = step else { panic!("{step:?}") };
    let message = proto::Observation::decode(encoded.envelope.as_slice()).unwrap();
    let expected = proto::Observation {
        client: Some(proto::Client { id: "agent-01".to_owned(), r#type: "franka".to_owned() }),
        timestamp_ns: 123,
        urgency: 0.5,
        tensors: vec![proto::Tensor {
            key: "state".to_owned(),
            dtype: 2,
            shape: vec![2, 1],
            byte_offset: 0,
            byte_length: 8,
            timestamp_ns: 77,
            encoding: 1,
            frame: 0,
        }],
        model_id: "policy".to_owned(),
        steps_remaining: Some(0),
        metadata: HashMap::from([("task".to_owned(), "fold".to_owned())]),
        priority: 3,
        request_id: id,
        latency_budget_ms: 30.0,
        step_ms: 20.0,
        kind: 0,
        latest_only: true,
        slot: "left".to_owned(),
    };
    assert_eq!(message, expected);

    // Nothing of it is left over in the next one.
    let fields = Fields::default();
    let Step::Send(_, encoded) = bench.session.observe(bench.now, 124, bench.model, &fields).unwrap() else { panic!() };
    let message = proto::Observation::decode(encoded.envelope.as_slice()).unwrap();
    let rest = proto::Observation {
        client: expected.client,
        timestamp_ns: 124,
        model_id: expected.model_id,
        request_id: id + 1,
        ..Default::default()
    };
    assert_eq!(message, rest);
}

// ---- 6.3 matching

#[test]
fn replies_find_their_request_in_any_order() {
    let mut bench = Bench::new();
    let ids = [bench.observe(), bench.observe(), bench.observe()];
    for index in [2, 0, 1] {
        bench.answer(ids[index], Status::Ok);
        assert_eq!(bench.next(), Some((ids[index], Status::Ok)));
    }
    assert!(matches!(bench.session.take_next(bench.model), Taken::Nothing));
}

#[test]
fn a_reply_goes_to_the_model_that_asked() {
    let mut bench = Bench::new();
    let other = bench.session.model("other");
    let id = bench.try_observe(other, &Fields::default()).unwrap().0;
    bench.answer(id, Status::Ok); // says "policy"; the id decides
    assert_eq!(bench.next(), None);
    let Taken::Some(reply) = bench.session.take_next(other) else { panic!() };
    assert_eq!((reply.request_id, reply.model_id.as_str()), (id, "other"));
}

#[test]
fn a_second_or_unknown_reply_is_late() {
    let mut bench = Bench::new();
    let id = bench.observe();
    bench.answer(id, Status::Ok);
    bench.answer(id, Status::Ok);
    bench.answer(99, Status::Ok);
    assert_eq!(bench.counters().late_replies, 2);
    assert_eq!(bench.next(), Some((id, Status::Ok)));
    assert_eq!(bench.next(), None);
}

#[test]
fn a_v1_reply_ends_the_oldest_of_its_model() {
    let mut bench = Bench::new();
    let (first, second) = (bench.observe(), bench.observe());
    bench.answer(0, Status::Ok);
    assert_eq!(bench.next(), Some((first, Status::Ok)));
    bench.answer(0, Status::Ok);
    assert_eq!(bench.next(), Some((second, Status::Ok)));
    bench.answer(0, Status::Ok);
    bench.receive(proto::ModelResponse { model_id: "stranger".to_owned(), ..Default::default() });
    assert_eq!(bench.counters().late_replies, 2);
}

#[test]
fn a_v1_server_gets_neither_cancel_nor_ping_nor_a_second_frame() {
    let mut bench = Bench::new();
    bench.observe();
    bench.answer(0, Status::Ok);
    let id = bench.observe();
    assert!(bench.session.cancel(bench.model, id, 0).is_none());
    assert!(bench.session.ping(bench.now, 0).is_none());
    assert_eq!(large_frames(&mut bench), 1);
}

/// Number of payload frames of an observation with two large tensors.
fn large_frames(bench: &mut Bench) -> usize {
    let tensor = Tensor::from_vec(vec![0u8; wire::LARGE_TENSOR_BYTES], &[wire::LARGE_TENSOR_BYTES]).unwrap();
    let fields = Fields { tensors: vec![Part::of("a", &tensor), Part::of("b", &tensor)], ..Fields::default() };
    let step = bench.session.observe(bench.now, 0, bench.model, &fields).unwrap();
    let Step::Send(_, encoded) = step else { panic!() };
    encoded.frames.len()
}

#[test]
fn several_frames_only_once_the_server_has_echoed_an_id() {
    let mut bench = Bench::new();
    assert_eq!(large_frames(&mut bench), 1);
    bench.answer(77, Status::Ok); // an id never sent is no echo
    assert_eq!(large_frames(&mut bench), 1);
    bench.answer(1, Status::Ok);
    assert_eq!(large_frames(&mut bench), 2);
    bench.session.link_down(bench.now);
    bench.session.link_up();
    assert_eq!(large_frames(&mut bench), 1);
}

#[test]
fn a_reply_that_cannot_be_read_ends_its_request_as_model_error() {
    let mut bench = Bench::new();
    let id = bench.observe();
    let tensor = proto::Tensor { key: "actions".to_owned(), dtype: 2, shape: vec![4], ..Default::default() };
    bench.receive(proto::ModelResponse { tensors: vec![tensor], ..response(id, Status::Ok) });
    let Taken::Some(reply) = bench.session.take_next(bench.model) else { panic!() };
    assert_eq!((reply.request_id, reply.status, reply.local), (id, Status::ModelError, true));
    assert!(reply.error.contains("actions") && reply.error.contains("shape"), "{}", reply.error);
    assert_eq!((bench.counters().not_ok, bench.counters().bad_replies), (1, 0));
}

#[test]
fn a_reply_without_a_payload_frame_ends_its_request_as_model_error() {
    let mut bench = Bench::new();
    let id = bench.observe();
    bench.receive_without_payload(response(id, Status::Ok));
    let Taken::Some(reply) = bench.session.take_next(bench.model) else { panic!() };
    assert_eq!((reply.request_id, reply.status, reply.local), (id, Status::ModelError, true));
    assert!(reply.error.contains("no payload frame"), "{}", reply.error);
    assert_eq!((bench.counters().not_ok, bench.counters().ok, bench.counters().bad_replies), (1, 0, 0));
    assert_eq!(bench.session.server, Server::V2, "it names a request");
}

#[test]
fn a_field_of_another_wire_type_is_skipped() {
    let mut bench = Bench::new();
    let id = bench.observe();
    let mut envelope = response(id, Status::Ok).encode_to_vec();
    let timestamp_as_bytes = b"\x1a\x03abc"; // field 3, which is a number
    envelope.extend(timestamp_as_bytes);
    let frames = |envelope: &[u8]| [Bytes::new(), Bytes::copy_from_slice(envelope), Bytes::new()];
    bench.session.on_message(bench.now, &frames(&envelope[..envelope.len() - 1]));
    assert_eq!(bench.counters().bad_replies, 1, "cut off");
    bench.session.on_message(bench.now, &frames(&envelope));
    let Taken::Some(reply) = bench.session.take_next(bench.model) else { panic!() };
    assert_eq!((reply.request_id, reply.status, reply.local), (id, Status::Ok, false));
    assert_eq!((bench.counters().ok, bench.counters().bad_replies), (1, 1));
}

#[test]
fn a_pong_without_a_payload_frame_ends_its_ping_without_an_answer() {
    let mut bench = Bench::new();
    let (id, _) = bench.session.ping(bench.now, 0).unwrap();
    bench.receive_without_payload(response(id, Status::Ok));
    assert!(matches!(bench.session.take_pong(id), Taken::Nothing));
    assert_eq!((bench.counters().bad_replies, bench.counters().late_replies), (1, 0));
}

#[test]
fn without_a_payload_frame_what_names_no_request_is_counted() {
    let mut bench = Bench::new();
    bench.observe();
    for request_id in [0, 77] {
        bench.receive_without_payload(response(request_id, Status::Ok)); // 0: from a v1 server
    }
    assert_eq!((bench.counters().bad_replies, bench.counters().late_replies), (2, 0));
    assert_eq!(bench.session.server, Server::Unknown);
    assert!(bench.waits());
}

#[test]
fn a_pong_that_cannot_be_read_ends_its_ping_without_an_answer() {
    let mut bench = Bench::new();
    let (id, _) = bench.session.ping(bench.now, 0).unwrap();
    bench.receive(proto::ModelResponse { tensors: vec![proto::Tensor::default()], ..response(id, Status::Ok) });
    assert!(matches!(bench.session.take_pong(id), Taken::Nothing));
    assert_eq!((bench.counters().bad_replies, bench.counters().late_replies), (1, 0));
}

#[test]
fn a_phase_shift_is_taken_once_and_the_last_counts() {
    let mut bench = Bench::new();
    assert_eq!(bench.session.take_phase_shift_ms(bench.model), 0.0);
    for phase_shift_ms in [2.5, 4.5, 0.0] {
        let id = bench.observe();
        bench.receive(proto::ModelResponse { phase_shift_ms, ..response(id, Status::Ok) });
    }
    assert_eq!(bench.session.take_phase_shift_ms(bench.model), 4.5);
    assert_eq!(bench.session.take_phase_shift_ms(bench.model), 0.0);
}

#[test]
fn what_is_no_reply_is_counted_and_ends_nothing() {
    let mut bench = Bench::new();
    bench.observe();
    let whole = Bytes::from(response(1, Status::Ok).encode_to_vec());
    let truncated = whole.slice(..whole.len() - 1);
    for frames in [
        vec![],
        vec![Bytes::new()],
        vec![Bytes::from("x"), whole, Bytes::new()],
        vec![Bytes::new(), truncated, Bytes::new()],
        vec![Bytes::new(), Bytes::from("no protobuf"), Bytes::new()],
    ] {
        bench.session.on_message(bench.now, &frames);
    }
    // Nor is one with a tensor that is none, of an id that nobody waits for (0: from a v1 server).
    for request_id in [0, 77] {
        let tensors = vec![proto::Tensor::default()];
        bench.receive(proto::ModelResponse { tensors, ..response(request_id, Status::Ok) });
    }
    assert_eq!((bench.counters().bad_replies, bench.counters().late_replies), (7, 0));
    assert!(bench.waits());
}

#[test]
fn cancel_goes_to_a_v2_server_for_an_outstanding_request_only() {
    let mut bench = Bench::new();
    let first = bench.observe();
    assert!(bench.session.cancel(bench.model, first, 0).is_none(), "not known to be v2");
    bench.answer(first, Status::Ok);
    let second = bench.observe();
    assert!(bench.session.cancel(bench.model, first, 0).is_none(), "not outstanding");
    let encoded = bench.session.cancel(bench.model, second, 5).expect("a message");
    let message = proto::Observation::decode(encoded.envelope.as_slice()).unwrap();
    assert_eq!((message.kind, message.request_id, message.model_id.as_str()), (2, second, ""));
    assert_eq!(message.priority, 1, "0 is the highest");
    assert_eq!(message.client.unwrap().id, "agent-01");
    bench.answer(second, Status::Cancelled);
    bench.next();
    assert_eq!(bench.next(), Some((second, Status::Cancelled)));
}

#[test]
fn a_pong_goes_to_the_ping_alone() {
    let mut bench = Bench::new();
    let (id, _) = bench.session.ping(bench.now, 0).expect("sent");
    assert!(matches!(bench.session.take_pong(id), Taken::Wait));
    bench.pass_ms(3);
    let metadata = [("model:policy", "ready"), ("model:slow", "not ready"), ("server", "2.0.0"), ("protocol", "2")];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    bench.receive(proto::ModelResponse { metadata, model_id: String::new(), ..response(id, Status::Ok) });
    bench.answer(id, Status::Ok);
    assert_eq!(bench.counters().late_replies, 1, "the second");
    let Taken::Some(pong) = bench.session.take_pong(id) else { panic!() };
    assert_eq!(pong.models, HashMap::from([("policy".to_owned(), true), ("slow".to_owned(), false)]));
    assert_eq!((pong.server.as_str(), pong.protocol, pong.round_trip_ms), ("2.0.0", 2, 3.0));
    assert!(matches!(bench.session.take_pong(id), Taken::Nothing));
    assert_eq!(bench.next(), None);

    let (lost, _) = bench.session.ping(bench.now, 0).expect("sent");
    bench.session.link_down(bench.now);
    assert!(matches!(bench.session.take_pong(lost), Taken::Nothing));
    assert!(bench.session.ping(bench.now, 0).is_none());
}

#[test]
fn something_is_awaited_as_long_as_a_request_or_a_ping_is_out() {
    let mut bench = Bench::new();
    assert!(!bench.session.awaits_anything());
    let [first, second] = [bench.observe(), bench.observe()];
    bench.answer(first, Status::Ok);
    assert!(bench.session.awaits_anything());
    bench.answer(second, Status::Ok);
    assert!(!bench.session.awaits_anything());
    let (id, _) = bench.session.ping(bench.now, 0).expect("sent");
    assert!(bench.session.awaits_anything());
    bench.answer(id, Status::Ok);
    assert!(!bench.session.awaits_anything());
}

// ---- 6.4 receiving

#[test]
fn the_inbox_is_bounded() {
    let mut bench = Bench::new();
    for _ in 0..INBOX_CAPACITY + 2 {
        let id = bench.observe();
        bench.answer(id, Status::Ok);
    }
    assert_eq!(bench.counters().replies_dropped, 2);
    assert_eq!(bench.next(), Some((3, Status::Ok)));
}

#[test]
fn get_result_gives_the_first_newer_ok_reply() {
    let mut bench = Bench::new();
    let ids = [bench.observe(), bench.observe(), bench.observe()];
    bench.answer(ids[1], Status::Ok);
    bench.answer(ids[0], Status::Ok);
    bench.answer(ids[2], Status::Ok);
    assert_eq!(bench.result(), Some(ids[1]));
    assert_eq!(bench.result(), Some(ids[2])); // the older one is dropped
    assert_eq!(bench.counters().late_replies, 1);
    assert_eq!(bench.last(), Some(Status::Ok));
    assert!(matches!(bench.session.take_result(bench.model), Taken::Nothing));
    assert_eq!(bench.last(), None, "of that call alone");
}

#[test]
fn slots_whose_names_keep_changing_are_forgotten() {
    let mut bench = Bench::new();
    let (first, second) = (bench.observe_slot("kept"), bench.observe_slot("kept"));
    bench.answer(second, Status::Ok);
    assert_eq!(bench.result(), Some(second));
    for number in 0..5000 {
        let id = bench.observe_slot(&format!("slot {number}"));
        bench.answer(id, Status::Ok);
        assert_eq!(bench.result(), Some(id));
    }
    assert!(bench.session.models[0].delivered.len() < 1000);
    bench.answer(first, Status::Ok); // its slot was remembered, as it was outstanding
    assert_eq!(bench.result(), None);
    assert_eq!(bench.counters().late_replies, 1);
}

#[test]
fn a_phase_shift_that_is_none_is_not_given_out() {
    let mut bench = Bench::new();
    for phase_shift_ms in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0] {
        let id = bench.observe();
        bench.receive(proto::ModelResponse { phase_shift_ms, ..response(id, Status::Ok) });
        assert_eq!(bench.session.take_phase_shift_ms(bench.model), 0.0);
    }
}

#[test]
fn hints_are_finite_and_not_negative_whatever_the_server_writes() {
    let mut bench = Bench::new();
    for (said, retry_after_ms, phase_shift_ms) in [
        (f32::NAN, 0.0, 0.0),
        (f32::NEG_INFINITY, 0.0, 0.0),
        (-1.0, 0.0, 0.0),
        (f32::INFINITY, f32::MAX, 0.0), // to wait for ever is a hint
        (2.5, 2.5, 2.5),
    ] {
        let id = bench.observe();
        let ok = response(id, Status::Ok);
        bench.receive(proto::ModelResponse { retry_after_ms: said, phase_shift_ms: said, ..ok });
        let Taken::Some(reply) = bench.session.take_next(bench.model) else { panic!() };
        assert_eq!((reply.retry_after_ms, reply.phase_shift_ms), (retry_after_ms, phase_shift_ms), "{said}");
    }
}

#[test]
fn a_bad_reply_without_an_id_says_nothing_of_the_server() {
    let mut bench = Bench::new();
    bench.observe();
    let tensors = vec![proto::Tensor { key: "x".to_owned(), dtype: 2, byte_length: 99, ..Default::default() }];
    bench.receive(proto::ModelResponse { tensors, ..response(0, Status::Ok) });
    assert_eq!(bench.counters().bad_replies, 1);
    assert_eq!(bench.session.server, Server::Unknown);
}

#[test]
fn get_result_keeps_slots_apart() {
    let mut bench = Bench::new();
    let left = bench.observe_slot("left");
    let right = bench.observe_slot("right");
    bench.answer(right, Status::Ok);
    bench.answer(left, Status::Ok);
    assert_eq!(bench.result(), Some(right));
    assert_eq!(bench.result(), Some(left)); // older, but the newest of its slot
    assert_eq!(bench.counters().late_replies, 0);
}

#[test]
fn get_result_returns_none_for_the_newest_request_only() {
    let mut bench = Bench::new();
    let (first, second) = (bench.observe(), bench.observe());
    bench.answer(first, Status::Expired);
    assert!(bench.waits(), "a newer one is outstanding");
    bench.receive(proto::ModelResponse { error: "the queue".to_owned(), ..response(second, Status::ModelError) });
    assert!(matches!(bench.session.take_result(bench.model), Taken::Nothing));
    assert_eq!(bench.session.last(bench.model), Some((Status::ModelError, "the queue".to_owned())));

    let (third, fourth) = (bench.observe(), bench.observe());
    bench.answer(third, Status::Expired);
    bench.answer(fourth, Status::Ok);
    assert_eq!(bench.result(), Some(fourth), "a newer one has arrived");

    let (fifth, sixth) = (bench.observe(), bench.observe());
    bench.answer(sixth, Status::Expired);
    assert!(matches!(bench.session.take_result(bench.model), Taken::Nothing), "only an older one is outstanding");
    bench.answer(fifth, Status::Ok);
    assert_eq!(bench.result(), Some(fifth));
}

#[test]
fn with_nothing_outstanding_there_is_nothing_to_wait_for() {
    let mut bench = Bench::new();
    assert!(matches!(bench.session.take_result(bench.model), Taken::Nothing));
    assert!(matches!(bench.session.take_next(bench.model), Taken::Nothing));
    let other = bench.session.model("other");
    bench.observe();
    assert!(matches!(bench.session.take_result(other), Taken::Nothing));
    assert!(bench.waits());
}

#[test]
fn a_timeout_abandons_what_is_outstanding_of_that_model() {
    let mut bench = Bench::new();
    let other = bench.session.model("other");
    let kept = bench.try_observe(other, &Fields::default()).unwrap().0;
    let (first, second) = (bench.observe(), bench.observe());
    bench.session.abandon(bench.model);
    assert_eq!(bench.counters().timed_out, 2);
    assert_eq!(bench.last(), Some(Status::TimedOut));
    bench.answer(first, Status::Ok);
    bench.answer(second, Status::Ok);
    assert_eq!(bench.counters().late_replies, 2);
    assert!(matches!(bench.session.take_next(bench.model), Taken::Nothing), "they are not put into the inbox");
    bench.answer(kept, Status::Ok);
    assert!(matches!(bench.session.take_next(other), Taken::Some(_)));
}

#[test]
fn one_waiter_per_model() {
    let mut bench = Bench::new();
    let other = bench.session.model("other");
    bench.session.begin_wait(bench.model).unwrap();
    assert_eq!(bench.session.begin_wait(bench.model), Err(Error::Busy { model: "policy".to_owned() }));
    bench.session.begin_wait(other).unwrap();
    bench.session.end_wait(bench.model);
    bench.session.begin_wait(bench.model).unwrap();
}

#[test]
fn handles_of_one_id_are_one_model() {
    let mut bench = Bench::new();
    assert_eq!(bench.session.model("policy"), bench.model);
}

#[test]
fn an_unknown_status_is_not_ok_and_kept() {
    let mut bench = Bench::new();
    let id = bench.observe();
    bench.receive(proto::ModelResponse { reason: 55, ..response(id, Status::Other(444)) });
    assert!(matches!(bench.session.take_result(bench.model), Taken::Nothing));
    assert_eq!(bench.last().map(Status::code), Some(444));
    assert_eq!(bench.counters().not_ok, 1);
}

// ---- 6.5 hold-off

#[test]
fn a_hold_off_lasts_a_day_at_most() {
    for hint in [f32::INFINITY, f32::MAX, 1e9] {
        let mut bench = Bench::new();
        let id = bench.observe();
        bench.receive(proto::ModelResponse { error: "full".to_owned(), ..rejected(id, hint) });
        bench.next();
        bench.observe();
        let Taken::Some(held) = bench.session.take_next(bench.model) else { panic!("answered here") };
        assert!(held.local && held.error == "full" && held.retry_after_ms <= 86_400_000.0, "{held:?}");
        bench.pass_ms(86_400_000);
        assert!(bench.try_observe(bench.model, &Fields::default()).unwrap().1, "over after a day");
    }
    let mut bench = Bench::new();
    let id = bench.observe();
    bench.receive(rejected(id, f32::NAN));
    assert!(bench.try_observe(bench.model, &Fields::default()).unwrap().1, "no hint");
}

#[test]
fn while_the_server_asked_not_to_be_asked_it_is_not() {
    for status in [Status::Rejected, Status::Unavailable] {
        let mut bench = Bench::new();
        let id = bench.observe();
        bench.receive(proto::ModelResponse { status: status.code(), ..rejected(id, 100.0) });
        bench.next();
        bench.pass_ms(40);
        let (held, sent) = bench.try_observe(bench.model, &Fields::default()).unwrap();
        assert!(!sent);
        let Taken::Some(reply) = bench.session.take_next(bench.model) else { panic!() };
        assert_eq!((reply.request_id, reply.status, reply.reason), (held, status, Reason::QueueFull));
        assert!(reply.local);
        assert_eq!(reply.retry_after_ms, 60.0);
        let other = bench.session.model("other");
        assert!(bench.try_observe(other, &Fields::default()).unwrap().1, "another model is asked");
        bench.pass_ms(60);
        assert!(bench.try_observe(bench.model, &Fields::default()).unwrap().1);
        assert_eq!((bench.counters().held_off, bench.counters().sent), (1, 3));
    }
}

#[test]
fn no_hold_off_without_a_hint_or_where_it_is_turned_off() {
    let mut bench = Bench::new();
    for hint in [0.0, -5.0, f32::NAN] {
        let id = bench.observe();
        bench.receive(rejected(id, hint));
        assert!(bench.try_observe(bench.model, &Fields::default()).unwrap().1, "{hint}");
    }
    let id = bench.observe();
    bench.receive(rejected(id, f32::MAX)); // more than a clock can hold
    bench.observe();

    let mut bench = Bench::down(SessionOptions { hold_off: false, ..options() });
    bench.session.link_up();
    let id = bench.observe();
    bench.receive(rejected(id, 100.0));
    assert!(bench.try_observe(bench.model, &Fields::default()).unwrap().1);
}

#[test]
fn a_hold_off_is_told_by_get_result_at_once() {
    let mut bench = Bench::new();
    let id = bench.observe();
    bench.receive(rejected(id, 100.0));
    bench.observe();
    assert!(matches!(bench.session.take_result(bench.model), Taken::Nothing));
    assert_eq!(bench.last(), Some(Status::Rejected));
}

// ---- reply contents

#[test]
fn a_reply_tells_the_whole_story() {
    let mut bench = Bench::new();
    let fields = Fields { slot: "left".into(), step_ms: 20.0, ..Fields::default() };
    let id = bench.try_observe(bench.model, &fields).unwrap().0;
    bench.pass_ms(7);
    bench.receive(proto::ModelResponse {
        response_id: "r".to_owned(),
        timestamp_ns: 9,
        phase_shift_ms: 1.5,
        timing: Some(proto::Timing {
            queue_ms: 1.0,
            inference_ms: 2.0,
            server_ms: 4.0,
            batch_size: 3,
            replica: "a".to_owned(),
        }),
        metadata: HashMap::from([("note".to_owned(), "ok".to_owned())]),
        ..response(id, Status::Ok)
    });
    let Taken::Some(reply) = bench.session.take_next(bench.model) else { panic!() };
    assert_eq!((reply.slot.as_str(), reply.step_ms, reply.observation_timestamp_ns), ("left", 20.0, 1000));
    assert_eq!((reply.response_id.as_str(), reply.timestamp_ns, reply.phase_shift_ms), ("r", 9, 1.5));
    assert_eq!(reply.round_trip_ms(), 7.0);
    assert_eq!(reply.metadata["note"], "ok");
    let timing = reply.timing.unwrap();
    assert_eq!((timing.queue_ms, timing.inference_ms, timing.server_ms), (1.0, 2.0, 4.0));
    assert_eq!((timing.batch_size, timing.replica.as_str()), (3, "a"));
}
