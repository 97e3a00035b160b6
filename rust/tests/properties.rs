//! What holds for any input: the decoder never panics and never gives a tensor that does not fit its bytes; every request ends
//! in exactly one outcome.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use inferential::observation::{Fields, Part};
use inferential::session::{ModelKey, Session, SessionOptions, Step, Taken};
use inferential::zmq::Message;
use inferential::{proto, wire, DType, Encoding, Error, Reply, Status, Tensor};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;

/// Numbers at which lengths and offsets go wrong.
fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..40u64,
        Just(1 << 31),
        Just(1 << 32),
        Just(1 << 62),
        Just(1 << 63),
        Just(u64::MAX),
        (0..40u64).prop_map(|small| u64::MAX - small),
        any::<u64>(),
    ]
}

prop_compose! {
    fn any_tensor()(
        key in "[ab]?",
        dtype in prop_oneof![0..9i32, 100..109i32, any::<i32>()],
        encoding in prop_oneof![0..5i32, any::<i32>()],
        shape in vec(prop_oneof![0..5i64, edge().prop_map(|number| number as i64)], 0..5),
        byte_offset in edge(),
        byte_length in edge(),
        frame in prop_oneof![0..3u32, any::<u32>()],
        timestamp_ns in any::<u64>(),
    ) -> proto::Tensor {
        proto::Tensor { key, dtype, shape, byte_offset, byte_length, timestamp_ns, encoding, frame }
    }
}

fn payloads() -> impl Strategy<Value = Vec<Bytes>> {
    vec(vec(any::<u8>(), 0..40).prop_map(Bytes::from), 0..3)
}

/// A valid tensor of any type.
fn valid_tensor() -> impl Strategy<Value = Tensor> {
    (0..DType::ALL.len(), vec(0..4usize, 0..4)).prop_flat_map(|(index, shape)| {
        let dtype = DType::ALL[index];
        let length = shape.iter().product::<usize>() * dtype.size();
        (vec(any::<u8>(), length), any::<u64>()).prop_map(move |(bytes, timestamp_ns)| {
            Tensor::from_bytes(dtype, &shape, bytes).unwrap().with_timestamp_ns(timestamp_ns)
        })
    })
}

fn check(tensor: &Tensor) {
    if tensor.encoding() == Encoding::Raw {
        assert_eq!(tensor.len() * tensor.dtype().size(), tensor.bytes().len());
    }
    if tensor.dtype() == DType::Float64 && tensor.encoding() == Encoding::Raw {
        assert_eq!(tensor.as_slice::<f64>().unwrap().len(), tensor.len()); // aligned, wherever it lay
    }
    assert!(tensor.dtype() == DType::Float32 || tensor.as_f32().is_err()); // never another type
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_read_or_refused(frames in vec(vec(any::<u8>(), 0..200).prop_map(Bytes::from), 0..5)) {
        let _ = wire::decode_reply(&frames);
    }

    #[test]
    fn any_tensors_fit_or_are_refused(tensors in vec(any_tensor(), 0..3), payloads in payloads()) {
        match wire::decode_tensors(tensors.clone(), &payloads) {
            Ok(decoded) => {
                prop_assert_eq!(decoded.len(), tensors.len());
                decoded.iter().for_each(|(_, tensor)| check(tensor));
            }
            Err(error) => prop_assert!(error.starts_with("tensor ")),
        }
    }

    #[test]
    fn a_damaged_reply_is_read_or_refused(
        tensor in any_tensor(),
        payload in vec(any::<u8>(), 0..40),
        (at, byte) in (any::<prop::sample::Index>(), any::<u8>()),
        cut in any::<prop::sample::Index>(),
    ) {
        let message = proto::ModelResponse { request_id: 7, tensors: vec![tensor], ..Default::default() };
        let mut envelope = message.encode_to_vec();
        let at = at.index(envelope.len());
        envelope[at] = byte;
        let whole = Bytes::from(envelope);
        for envelope in [whole.clone(), whole.slice(..cut.index(whole.len()))] {
            if let Ok(reply) = wire::decode_reply(&[Bytes::new(), envelope, payload.clone().into()]) {
                if let Ok(tensors) = reply.tensors {
                    tensors.iter().for_each(|(_, tensor)| check(tensor));
                }
            }
        }
    }

    #[test]
    fn what_is_sent_is_read_again(tensors in vec(valid_tensor(), 0..6), several in any::<bool>()) {
        let fields = Fields {
            tensors: tensors.iter().enumerate().map(|(index, tensor)| Part::of(format!("t{index}"), tensor)).collect(),
            ..Fields::default()
        };
        let (message, payloads) = encode(&fields, several);
        prop_assert!(several || payloads.len() == 1);
        prop_assert!(message.tensors.iter().all(|tensor| tensor.byte_offset % 8 == 0));
        let decoded = wire::decode_tensors(message.tensors, &payloads).unwrap();
        let decoded: Vec<&Tensor> = decoded.iter().map(|(_, tensor)| tensor).collect();
        prop_assert_eq!(decoded, tensors.iter().collect::<Vec<_>>());
    }
}

fn encode(fields: &Fields<'_>, several: bool) -> (proto::Observation, Vec<Bytes>) {
    let mut encoder = wire::Encoder::new("agent", "");
    let encoded = encoder.observe(1, 0, "policy", fields, several);
    let payloads = encoded.frames.iter().map(|frame| {
        let bytes = Bytes::from(Message::gather(frame.length, frame.pieces()).unwrap());
        assert!(frame.shared().is_none_or(|shared| *shared == bytes));
        bytes
    });
    (proto::Observation::decode(encoded.envelope.as_slice()).unwrap(), payloads.collect())
}

#[test]
fn large_tensors_travel_in_frames_of_their_own() {
    let large = |byte: u8| Tensor::from_vec(vec![byte; wire::LARGE_TENSOR_BYTES], &[wire::LARGE_TENSOR_BYTES]).unwrap();
    let small = Tensor::from_vec(vec![1u8, 2, 3], &[3]).unwrap();
    let tensors = [large(1), small.clone(), large(2), small.clone()];
    let fields = Fields {
        tensors: tensors.iter().zip(["a", "b", "c", "d"]).map(|(tensor, key)| Part::of(key, tensor)).collect(),
        ..Fields::default()
    };
    let (message, payloads) = encode(&fields, true);
    assert_eq!(payloads.iter().map(Bytes::len).collect::<Vec<_>>(), [65536, 11, 65536]);
    assert_eq!(message.tensors.iter().map(|tensor| tensor.frame).collect::<Vec<_>>(), [0, 1, 2, 1]);
    let (message, payloads) = encode(&fields, false);
    assert_eq!((payloads.len(), message.tensors[3].byte_offset), (1, 65536 + 8 + 65536));
}

// ---- the session

#[derive(Debug, Clone)]
enum Act {
    Observe {
        model: usize,
        slot: bool,
    },
    /// The socket refuses the next send.
    Refuse {
        model: usize,
    },
    /// A reply to the request that many before the last, with this status and hint.
    Reply {
        back: u64,
        status: i32,
        retry_after_ms: f32,
    },
    V1Reply {
        model: usize,
    },
    Damaged {
        back: u64,
    },
    Garbage,
    LinkUp,
    LinkDown,
    Pass {
        ms: u64,
    },
    GetResult {
        model: usize,
        expires: bool,
    },
    NextReply {
        model: usize,
    },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..2usize, any::<bool>()).prop_map(|(model, slot)| Act::Observe { model, slot }),
        1 => (0..2usize).prop_map(|model| Act::Refuse { model }),
        4 => (0..6u64, prop_oneof![3 => Just(0), 1 => 0..12i32], prop_oneof![Just(0.0f32), Just(50.0), Just(f32::NAN)])
            .prop_map(|(back, status, retry_after_ms)| Act::Reply { back, status, retry_after_ms }),
        1 => (0..2usize).prop_map(|model| Act::V1Reply { model }),
        1 => (0..6u64).prop_map(|back| Act::Damaged { back }),
        1 => Just(Act::Garbage),
        2 => Just(Act::LinkUp),
        1 => Just(Act::LinkDown),
        2 => (0..400u64).prop_map(|ms| Act::Pass { ms }),
        2 => (0..2usize, any::<bool>()).prop_map(|(model, expires)| Act::GetResult { model, expires }),
        2 => (0..2usize).prop_map(|model| Act::NextReply { model }),
    ]
}

/// The outcome a request has had.
#[derive(Debug, Default)]
struct Ledger {
    taken: HashSet<u64>,
    given_out: HashSet<u64>,
    not_sent: u64,
    delivered: HashMap<(usize, String), u64>,
}

impl Ledger {
    fn give_out(&mut self, reply: &Reply) {
        assert!(self.taken.contains(&reply.request_id), "{} was never sent", reply.request_id);
        assert!(self.given_out.insert(reply.request_id), "{} was given out twice", reply.request_id);
    }
}

const NAMES: [&str; 2] = ["policy", "other"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_request_ends_once(acts in vec(act(), 0..80)) {
        let mut now = Instant::now();
        let mut session = Session::new(SessionOptions {
            client_id: "agent".to_owned(),
            client_type: String::new(),
            hold_off: true,
            request_timeout: Duration::from_millis(1000),
            max_message_bytes: 1 << 20,
        });
        let models: [ModelKey; 2] = NAMES.map(|name| session.model(name));
        session.link_up();
        let mut ledger = Ledger::default();
        let mut last_id = 0;
        for act in acts {
            match act {
                Act::Observe { model, slot } => {
                    let fields = Fields { slot: if slot { "left".into() } else { "".into() }, ..Fields::default() };
                    last_id += 1;
                    match session.observe(now, 0, models[model], &fields) {
                        Ok(Step::Answered(id) | Step::Send(id, _)) => {
                            assert_eq!(id, last_id);
                            ledger.taken.insert(id);
                        }
                        Err(Error::NotSent { request_id, .. }) => {
                            assert_eq!(request_id, last_id);
                            ledger.not_sent += 1;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                Act::Refuse { model } => {
                    last_id += 1;
                    match session.observe(now, 0, models[model], &Fields::default()) {
                        Ok(Step::Send(id, _)) => {
                            session.not_sent(models[model], id);
                            ledger.not_sent += 1;
                        }
                        Ok(Step::Answered(id)) => drop(ledger.taken.insert(id)),
                        Err(_) => ledger.not_sent += 1,
                    }
                }
                Act::Reply { back, status, retry_after_ms } => {
                    let request_id = u64::max(1, last_id.saturating_sub(back));
                    receive(&mut session, now, proto::ModelResponse { request_id, status, retry_after_ms, ..Default::default() });
                }
                Act::V1Reply { model } => {
                    receive(&mut session, now, proto::ModelResponse { model_id: NAMES[model].to_owned(), ..Default::default() });
                }
                Act::Damaged { back } => {
                    let request_id = u64::max(1, last_id.saturating_sub(back));
                    let tensors = vec![proto::Tensor::default()];
                    receive(&mut session, now, proto::ModelResponse { request_id, tensors, ..Default::default() });
                }
                Act::Garbage => session.on_message(now, &[Bytes::new(), Bytes::from("garbage"), Bytes::new()]),
                Act::LinkUp => session.link_up(),
                Act::LinkDown => session.link_down(now),
                Act::Pass { ms } => {
                    now += Duration::from_millis(ms);
                    session.on_timer(now);
                }
                Act::GetResult { model, expires } => match session.take_result(models[model]) {
                    Taken::Some(reply) => {
                        prop_assert!(reply.status.is_ok());
                        let delivered = ledger.delivered.entry((model, reply.slot.clone())).or_default();
                        prop_assert!(reply.request_id > *delivered, "older than what was delivered");
                        *delivered = reply.request_id;
                        ledger.give_out(&reply);
                    }
                    Taken::Wait if expires => {
                        session.abandon(models[model]);
                        prop_assert_eq!(session.outstanding(models[model]), 0);
                    }
                    _ => {}
                },
                Act::NextReply { model } => {
                    if let Taken::Some(reply) = session.take_next(models[model]) {
                        prop_assert!(reply.status != Status::NotSent);
                        ledger.give_out(&reply);
                    }
                }
            }
        }
        // The end: everything that is left ends with the link, once.
        session.close(now);
        for model in models {
            prop_assert_eq!(session.outstanding(model), 0);
            while let Taken::Some(reply) = session.take_next(model) {
                ledger.give_out(&reply);
            }
        }
        // Each request is counted under exactly one outcome.
        let counters = session.counters();
        prop_assert_eq!(counters.not_sent, ledger.not_sent);
        prop_assert_eq!(counters.sent + counters.held_off, ledger.taken.len() as u64);
        let outcomes = counters.ok + counters.not_ok + counters.timed_out + counters.link_lost;
        prop_assert_eq!(counters.sent, outcomes, "{:?}", counters);
    }
}

fn receive(session: &mut Session, now: Instant, response: proto::ModelResponse) {
    session.on_message(now, &[Bytes::new(), response.encode_to_vec().into(), Bytes::new()]);
}
