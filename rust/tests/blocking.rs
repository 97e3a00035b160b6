//! The blocking client against live sockets.

mod common;

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{connect, every_dtype, send, Proxy, Server, PATIENCE, PATIENCE_MS};
use inferential::wire::LARGE_TENSOR_BYTES;
use inferential::zmq::{Context, IntOption, SocketKind};
use inferential::{
    Connection, ConnectionOptions, DType, Encoding, Error, Fallback, LinkState, ModelOptions, NotSentReason, Reason,
    Source, Status, Tensor,
};

/// Waits until the connection is in this state.
fn wait_for(connection: &Connection, state: LinkState) {
    let start = Instant::now();
    while connection.link_state() != state {
        assert!(start.elapsed() < PATIENCE, "never {state}");
        thread::yield_now();
    }
}

#[test]
fn one_round_trip() {
    let server = Server::echo();
    let (connection, model) = connect(&server);
    let state = [0.1f32, 0.2, 0.3];
    let request_id = model.observe().urgency(0.8).tensor_f32("actions", &state, &[3]).send().request_id();
    assert_eq!(request_id, Some(1));
    let result = model.get_result(PATIENCE_MS).expect("an answer");
    assert_eq!(result["actions"].as_f32().unwrap(), state);
    assert_eq!((result.request_id, result.status, result.local), (1, Status::Ok, false));
    assert!(result.age_ms() >= result.round_trip_ms());
    assert_eq!(result.timing.as_ref().unwrap().server_ms, 4.0);
    assert!(matches!(result.tensor("nothing"), Err(Error::MissingTensor { .. })));
    assert!(matches!(result["actions"].as_slice::<i32>(), Err(Error::WrongDType { .. })));
    assert_eq!(connection.link_state(), LinkState::Up);
    let counters = connection.counters();
    assert_eq!((counters.sent, counters.ok, counters.not_ok), (1, 1, 0));
}

#[test]
fn every_field_arrives_as_sent() {
    let server = Server::echo();
    let (_connection, model) = connect(&server);
    let name = String::from("computed");
    model
        .observe()
        .urgency(0.25)
        .priority(3)
        .latency_budget_ms(12.5)
        .step_ms(20.0)
        .steps_remaining(4)
        .latest_only(true)
        .slot("left")
        .metadata("task", "掴む")
        .metadata("task", "fold")
        .tensor_slice(name, &[1i16, 2], &[2])
        .measured_at_ns(55)
        .send();
    let observation = server.request().observation;
    assert_eq!((observation.urgency, observation.priority, observation.latency_budget_ms), (0.25, 3, 12.5));
    assert_eq!((observation.step_ms, observation.steps_remaining, observation.latest_only), (20.0, Some(4), true));
    assert_eq!((observation.slot.as_str(), observation.metadata["task"].as_str()), ("left", "fold"));
    assert_eq!((observation.tensors[0].key.as_str(), observation.tensors[0].timestamp_ns), ("computed", 55));
    assert_eq!(observation.client.unwrap().r#type, "franka");
    assert_eq!(model.get_result(PATIENCE_MS).unwrap().slot, "left");

    // The handle's own settings, where nothing else is said.
    model.observe().send();
    let observation = server.request().observation;
    assert_eq!((observation.priority, observation.latency_budget_ms, observation.step_ms), (1, 30.0, 0.0));
}

#[test]
fn every_dtype_there_and_back() {
    let server = Server::echo();
    let (_connection, model) = connect(&server);
    let tensors = every_dtype();
    let mut observation = model.observe();
    for (key, tensor) in tensors.iter() {
        observation = observation.tensor(key, tensor.clone());
    }
    observation.send();
    assert_eq!(server.request().tensors(), tensors);
    assert_eq!(model.get_result(PATIENCE_MS).unwrap().tensors, tensors);
}

#[cfg(feature = "ndarray")]
#[test]
fn arrays_in_any_memory_order() {
    let server = Server::echo();
    let (_connection, model) = connect(&server);
    let array = ndarray::arr2(&[[1.0f64, 2.0], [3.0, 4.0], [5.0, 6.0]]);
    model.observe().array("c", array.view()).array("transposed", array.t()).send();
    let result = model.get_result(PATIENCE_MS).unwrap();
    assert_eq!(result["c"].as_array::<f64>().unwrap(), array.clone().into_dyn());
    assert_eq!(result["transposed"].as_array::<f64>().unwrap(), array.t().into_dyn());
}

#[cfg(feature = "half")]
#[test]
fn half_types_are_elements() {
    let values = [half::f16::from_f32(1.5), half::f16::MAX];
    let tensor = Tensor::from_slice(&values, &[2]).unwrap();
    assert_eq!(tensor.dtype(), DType::Float16);
    assert_eq!(tensor.as_slice::<half::f16>().unwrap(), values);
    assert!(tensor.as_slice::<half::bf16>().is_err());
}

#[test]
fn images_travel_as_their_files() {
    let server = Server::echo();
    let (_connection, model) = connect(&server);
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x40\0\0\0\x30\x08\x02".to_vec();
    png.extend([0; 100]);
    model.observe().image("camera", Encoding::Png, &png, [48, 64, 3]).send();
    let result = model.get_result(PATIENCE_MS).unwrap();
    let image = result.tensor("camera").unwrap();
    assert_eq!((image.encoding(), image.shape(), image.bytes().as_ref()), (Encoding::Png, &[48, 64, 3][..], &png[..]));
    assert!(image.as_slice::<u8>().is_err(), "a file is not its pixels");
    for wrong in [
        model.observe().image("camera", Encoding::Png, &png, [64, 48, 3]),
        model.observe().image("camera", Encoding::Jpeg, &png, [48, 64, 3]),
        model.observe().image("camera", Encoding::Raw, &png, [48, 64, 3]),
    ] {
        assert!(matches!(wrong.send().error(), Some(Error::InvalidObservation { .. })));
    }
}

#[test]
fn mistakes_are_told_by_send() {
    let server = Server::echo();
    let (connection, model) = connect(&server);
    let sent = model.observe().tensor_f32("state", &[1.0, 2.0], &[3]).send();
    let text = sent.error().expect("an error").to_string();
    assert!(text.contains("policy") && text.contains("state") && text.contains("[3]"), "{text}");
    assert!(!sent.is_sent());
    assert!(model.observe().measured_at_ns(1).send().error().is_some());
    assert!(connection.model("", 1.0, 1).observe().send().error().is_some());
    assert_eq!(connection.counters().not_sent, 0);
    assert_eq!(send(&model), 1);
}

#[test]
fn models_get_their_own_replies() {
    let server = Server::start();
    let (connection, policy) = connect(&server);
    let other = connection.model("other", 30.0, 1);
    let (first, second) = (send(&policy), send(&other));
    let requests = [server.request(), server.request()];
    server.answer(requests[1].echo());
    server.answer(requests[0].echo());
    assert_eq!(policy.get_result(PATIENCE_MS).unwrap().request_id, first);
    assert_eq!(other.get_result(PATIENCE_MS).unwrap().request_id, second);
}

#[test]
fn next_reply_gives_every_outcome_in_order() {
    let server = Server::start();
    let (_connection, model) = connect(&server);
    let ids = [send(&model), send(&model), send(&model)];
    let requests = [server.request(), server.request(), server.request()];
    let mut expired = requests[2].answer(4);
    expired.envelope.error = "too late".to_owned();
    server.answer(expired);
    server.answer(requests[0].echo());
    server.answer(requests[1].answer(6));
    let seen: Vec<_> =
        (0..3).map(|_| model.next_reply(PATIENCE_MS).unwrap()).map(|reply| (reply.request_id, reply.status)).collect();
    assert_eq!(seen, [(ids[2], Status::Expired), (ids[0], Status::Ok), (ids[1], Status::ModelError)]);
    assert!(model.next_reply(PATIENCE_MS).is_none(), "at once: nothing is outstanding");
}

#[test]
fn what_nobody_awaits_any_more_is_read_by_a_later_look() {
    let server = Server::start();
    let (connection, model) = connect(&server);
    let id = send(&model);
    let request = server.request();
    (0..3).for_each(|_| server.answer(request.echo()));
    assert_eq!(model.get_result(PATIENCE_MS).unwrap().request_id, id);
    let began = Instant::now();
    while connection.counters().late_replies < 2 {
        assert!(began.elapsed() < Duration::from_millis(PATIENCE_MS), "{:?}", connection.counters());
        std::thread::yield_now();
    }
    let next = send(&model);
    server.answer(server.request().echo());
    assert_eq!(model.get_result(PATIENCE_MS).unwrap().request_id, next);
}

#[test]
fn a_late_reply_is_never_taken_for_a_newer_one() {
    let server = Server::start();
    let (connection, model) = connect(&server);
    send(&model);
    let late = server.request();
    assert!(model.get_result(0).is_none());
    assert_eq!(model.outstanding(), 1, "0 abandons nothing");
    assert!(model.get_result(20).is_none());
    assert_eq!((model.outstanding(), model.last_status()), (0, Some(Status::TimedOut)));
    let second = send(&model);
    server.answer(late.echo());
    server.answer(server.request().echo());
    assert_eq!(model.get_result(PATIENCE_MS).unwrap().request_id, second);
    let counters = connection.counters();
    assert_eq!((counters.timed_out, counters.late_replies, counters.ok), (1, 1, 1));
}

#[test]
fn rejection_is_told_with_reason_and_held_off() {
    let server = Server::start();
    let (connection, model) = connect(&server);
    send(&model);
    let mut rejected = server.request().answer(3);
    rejected.envelope.reason = 3;
    rejected.envelope.retry_after_ms = 1e6;
    server.answer(rejected);
    let reply = model.next_reply(PATIENCE_MS).unwrap();
    assert_eq!((reply.status, reply.reason, reply.local), (Status::Rejected, Reason::OverShare, false));
    send(&model);
    let reply = model.next_reply(PATIENCE_MS).unwrap();
    assert_eq!((reply.status, reply.reason, reply.local), (Status::Rejected, Reason::OverShare, true));
    assert!(server.try_request().is_none());
    assert_eq!(connection.counters().held_off, 1);
}

#[test]
fn a_bad_address_shows_in_the_first_send_and_the_link_state() {
    let connection = Connection::new("localhost", "agent-01", "franka");
    assert_eq!(connection.link_state(), LinkState::Closed);
    let model = connection.model("policy", 30.0, 1);
    assert!(matches!(model.observe().send().error(), Some(Error::InvalidAddress { .. })));
    assert!(matches!(model.try_get_result(PATIENCE_MS), Err(Error::InvalidAddress { .. })));
    assert!(model.get_result(PATIENCE_MS).is_none());
    assert!(!connection.wait_until_up(PATIENCE_MS));
    assert!(matches!(connection.ping(PATIENCE_MS), Err(Error::InvalidAddress { .. })));
    let too_long = format!("ipc:///{}", "x".repeat(200)); // for the system, as libzmq says
    for address in ["localhost", &too_long] {
        assert!(matches!(Connection::try_new(address, "a", ""), Err(Error::InvalidAddress { .. })));
    }
    assert!(matches!(Connection::try_new("localhost:1", "", ""), Err(Error::InvalidOption { .. })));
}

#[test]
fn without_a_server_the_first_send_waits_and_no_other() {
    let options = ConnectionOptions::new("127.0.0.1:1", "agent-01", "").connect_timeout_ms(50);
    let connection = Connection::with_options(options).unwrap();
    let model = connection.model("policy", 30.0, 1);
    let start = Instant::now();
    for id in 1..=1000 {
        let reason = NotSentReason::NeverUp;
        assert_eq!(model.observe().send().error(), Some(&Error::NotSent { request_id: id, reason }));
    }
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(20), "1000 sends that each waited would take 50 s");
    assert_eq!(connection.link_state(), LinkState::Connecting);
    assert_eq!(connection.ping(PATIENCE_MS), Ok(None));
    assert!(!connection.wait_until_up(1));
    connection.close();
    assert_eq!(model.observe().send().error(), Some(&Error::Closed));
}

#[test]
fn a_restarted_server_is_found_and_gets_nothing_stale() {
    let server = Server::start();
    let (connection, model) = connect(&server);
    let states = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&states);
    connection.on_link_change(move |state| seen.lock().unwrap().push(state));
    let lost = send(&model);
    server.request();
    let address = server.address.clone();
    server.stop();
    let reply = model.next_reply(PATIENCE_MS).expect("the link's end");
    assert_eq!((reply.request_id, reply.status, reply.local), (lost, Status::LinkLost, true));
    assert_eq!(connection.link_state(), LinkState::Down);
    let error = model.observe().send().into_result().unwrap_err();
    assert!(matches!(error, Error::NotSent { reason: NotSentReason::LinkDown, .. }), "{error}");

    let server = Server::start_at(&address, |request| vec![request.echo()]);
    assert!(connection.wait_until_up(PATIENCE_MS));
    let id = send(&model);
    assert_eq!(model.get_result(PATIENCE_MS).unwrap().request_id, id);
    assert_eq!(server.request().observation.request_id, id, "nothing that was not sent came later");
    assert_eq!(*states.lock().unwrap(), [LinkState::Up, LinkState::Down, LinkState::Up]);
    let counters = connection.counters();
    assert_eq!((counters.link_lost, counters.not_sent, counters.reconnects), (1, 1, 1));
}

#[test]
fn a_silent_network_is_noticed() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let options = common::patient(&proxy.address).heartbeat_ms(300);
    let connection = Connection::with_options(options).unwrap();
    let model = connection.model("policy", 30.0, 1);
    let id = send(&model);
    server.request();
    proxy.freeze();
    let reply = model.next_reply(PATIENCE_MS).expect("the link's end");
    assert_eq!((reply.request_id, reply.status), (id, Status::LinkLost));
}

#[test]
fn ping_and_cancel() {
    let server = Server::start_at("tcp://127.0.0.1:*", |request| match request.observation.kind {
        1 => vec![request.pong()],
        2 => vec![request.answer(10)],
        _ => vec![],
    });
    let (connection, model) = connect(&server);
    let pong = connection.ping(PATIENCE_MS).unwrap().expect("an answer");
    assert_eq!((pong.models["policy"], pong.models["slow"]), (true, false));
    assert_eq!((pong.server.as_str(), pong.protocol), ("2.0.0", 2));
    assert!(model.next_reply(0).is_none());
    let id = send(&model);
    assert!(!model.cancel(id + 1));
    assert!(model.cancel(id));
    let reply = model.next_reply(PATIENCE_MS).unwrap();
    assert_eq!((reply.request_id, reply.status), (id, Status::Cancelled));
    assert!(!model.cancel(id));
}

#[test]
fn a_v1_server_is_understood() {
    let server = Server::start_at("tcp://127.0.0.1:*", |request| vec![request.v1_echo()]);
    let (connection, model) = connect(&server);
    let large = Tensor::from_vec(vec![1u8; LARGE_TENSOR_BYTES], &[LARGE_TENSOR_BYTES]).unwrap();
    for _ in 0..2 {
        let id = model.observe().tensor("a", large.clone()).tensor("b", large.clone()).send().request_id().unwrap();
        assert_eq!(server.request().payloads.len(), 1);
        let result = model.get_result(PATIENCE_MS).unwrap();
        assert_eq!((result.request_id, &result["b"]), (id, &large));
        assert_eq!(result.timing.as_ref().map(|timing| (timing.inference_ms, timing.queue_ms)), Some((2.0, 0.0)));
    }
    assert_eq!(connection.ping(PATIENCE_MS), Ok(None));
    let id = send(&model);
    assert!(!model.cancel(id));
}

#[test]
fn large_tensors_in_their_own_frames_once_the_server_is_known() {
    let server = Server::echo();
    let (_connection, model) = connect(&server);
    let values: Vec<f32> = (0..1_000_000).map(|index| index as f32).collect();
    let owned = Tensor::from_slice(&values, &[1000, 1000]).unwrap();
    for frames in [1, 3] {
        let observation = model.observe().tensor_f32("small", &values[..7], &[7]);
        observation.tensor("owned", owned.clone()).tensor_f32("borrowed", &values, &[1_000_000]).send();
        assert_eq!(server.request().payloads.len(), frames);
        let result = model.get_result(PATIENCE_MS).unwrap();
        assert_eq!(result["owned"], owned);
        assert_eq!(result["borrowed"].as_f32().unwrap(), values);
        assert_eq!(result["small"].as_f32().unwrap(), &values[..7]);
    }
}

#[test]
fn thousands_in_flight_each_end_once() {
    let server = Server::echo();
    let (connection, model) = connect(&server);
    // Fewer than half the send queue: libzmq learns in steps of half a queue what has been taken.
    let (count, window) = (5000u64, 400);
    let mut answered = vec![0; count as usize];
    for index in 0..count + window {
        if index < count {
            model.observe().tensor_slice("n", &[index], &[]).send().into_result().unwrap();
        }
        if index >= window {
            let reply = model.next_reply(PATIENCE_MS).expect("a reply");
            assert_eq!(reply["n"].as_slice::<u64>().unwrap()[0] + 1, reply.request_id);
            answered[reply.request_id as usize - 1] += 1;
        }
    }
    assert!(answered.iter().all(|&times| times == 1));
    assert_eq!(connection.counters().ok, count);
}

#[test]
fn a_full_queue_is_told_at_once() {
    let context = Context::new().unwrap();
    let socket = context.socket(SocketKind::Router).unwrap();
    socket.set(IntOption::ReceiveHwm, 1).unwrap();
    socket.set(IntOption::Linger, 0).unwrap();
    let address = socket.bind("tcp://127.0.0.1:*").unwrap(); // and nobody reads it
    let options = ConnectionOptions::new(address, "agent-01", "").send_queue(1).linger_ms(0);
    let connection = Connection::with_options(options).unwrap();
    let model = connection.model("policy", 30.0, 1);
    let megabyte = Tensor::from_vec(vec![0u8; 1 << 20], &[1 << 20]).unwrap();
    assert!(connection.wait_until_up(PATIENCE_MS));
    let refused = (0..1000).find_map(|_| model.observe().tensor("x", megabyte.clone()).send().into_result().err());
    assert!(matches!(refused, Some(Error::NotSent { reason: NotSentReason::QueueFull, .. })), "{refused:?}");
    assert_eq!(connection.counters().not_sent, 1);
}

#[test]
fn one_waiter_per_model_and_several_models_at_once() {
    let server = Server::start();
    let (connection, policy) = connect(&server);
    let other = connection.model("other", 30.0, 1);
    send(&policy);
    send(&other);
    let requests = [server.request(), server.request()];
    thread::scope(|scope| {
        let first = scope.spawn(|| loop {
            match policy.try_get_result(PATIENCE_MS) {
                Err(Error::Busy { .. }) => thread::yield_now(), // the look below came first
                result => break result,
            }
        });
        let second = scope.spawn(|| other.try_get_result(PATIENCE_MS));
        let again = connection.model("policy", 1.0, 1);
        // Until the first thread waits, this looks itself and finds nothing.
        let start = Instant::now();
        let busy = loop {
            match again.try_get_result(0) {
                Err(error) => break error,
                Ok(found) => assert!(found.is_none() && start.elapsed() < PATIENCE),
            }
            thread::yield_now();
        };
        assert_eq!(busy, Error::Busy { model: "policy".to_owned() });
        assert!(again.get_result(0).is_none());
        // Sending goes on meanwhile, and reads what is for the others.
        server.answer(requests[1].echo());
        server.answer(requests[0].echo());
        let start = Instant::now();
        while !(first.is_finished() && second.is_finished()) {
            connection.counters();
            assert!(start.elapsed() < PATIENCE, "a waiting thread was not woken");
        }
        assert_eq!(first.join().unwrap().unwrap().unwrap().model_id, "policy");
        assert_eq!(second.join().unwrap().unwrap().unwrap().model_id, "other");
    });
}

#[test]
fn closing_wakes_whoever_waits() {
    let server = Server::start();
    let (connection, model) = connect(&server);
    let id = send(&model);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| model.try_next_reply(PATIENCE_MS));
        server.request();
        connection.close();
        match waiting.join().unwrap() {
            Ok(Some(reply)) => assert_eq!((reply.request_id, reply.status), (id, Status::LinkLost)),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(model.try_next_reply(PATIENCE_MS).unwrap_err(), Error::Closed);
    assert_eq!(connection.link_state(), LinkState::Closed);
}

#[test]
fn a_model_outlives_its_connection() {
    let server = Server::echo();
    let model = Connection::with_options(common::patient(&server.address)).unwrap().model("policy", 30.0, 1);
    send(&model);
    assert!(model.get_result(PATIENCE_MS).is_some());
}

#[test]
fn act_always_gives_something_to_do() {
    let server = Server::start();
    let connection = Connection::with_options(common::patient(&server.address)).unwrap();
    let mut template = inferential::Tensors::new();
    template.insert("actions", Tensor::from_slice(&[9.0f32; 2], &[2]).unwrap());
    let options = ModelOptions::new("policy").step_ms(1.0).fallback(Fallback::hold(1e9).template(template));
    let model = connection.model_with(options);

    let action = model.act(PATIENCE_MS); // at once: nothing is outstanding
    assert_eq!((action.source, action.tensors["actions"].as_f32().unwrap()), (Source::Zero, &[0.0, 0.0][..]));
    model.observe().tensor_f32("actions", &[1.0, 2.0], &[2]).send();
    server.answer(server.request().echo());
    let action = model.act(PATIENCE_MS);
    assert_eq!((action.source, action.tensors["actions"].as_f32().unwrap()), (Source::Fresh, &[1.0, 2.0][..]));
    assert_eq!(action.steps_late, action.age_ms.floor() as u64);

    send(&model);
    server.request();
    let action = model.act(5);
    assert_eq!((action.source, action.status), (Source::Hold, Some(Status::TimedOut)));
    assert_eq!(action.tensors["actions"].as_f32().unwrap(), [1.0, 2.0]);

    send(&model);
    server.request();
    server.stop();
    let action = model.act(PATIENCE_MS); // at once: the link is lost
    assert_eq!((action.source, action.status), (Source::Hold, Some(Status::LinkLost)));
    wait_for(&connection, LinkState::Down);
    connection.close();
    assert_eq!(model.act(PATIENCE_MS).source, Source::Hold);
}

#[test]
fn requests_time_out_without_being_waited_for() {
    let server = Server::start();
    let options = common::patient(&server.address).request_timeout_ms(30);
    let connection = Connection::with_options(options).unwrap();
    let model = connection.model("policy", 30.0, 1);
    let id = send(&model);
    let reply = model.next_reply(PATIENCE_MS).unwrap();
    assert_eq!((reply.request_id, reply.status, reply.local), (id, Status::TimedOut, true));
    assert_eq!(connection.counters().timed_out, 1);
}

#[test]
fn thousands_of_replies_may_lie_unread_for_longer_than_their_requests_wait() {
    const REQUESTS: usize = 1900; // more than one look reads, and than libzmq keeps unless told
    const WAIT_MS: u64 = 3000;
    let server = Server::start();
    let options = common::patient(&server.address).send_queue(10_000).heartbeat_ms(300).request_timeout_ms(WAIT_MS);
    let connection = Connection::with_options(options).unwrap();
    let model = connection.model("policy", 30.0, 1);
    for _ in 0..REQUESTS {
        send(&model);
    }
    for _ in 0..REQUESTS {
        server.answer(server.request().answer(0));
    }
    thread::sleep(Duration::from_millis(WAIT_MS)); // the program does something else
    for _ in 0..REQUESTS {
        assert_eq!(model.next_reply(0).unwrap().status, Status::Ok);
    }
    assert_eq!(connection.counters().timed_out, 0);
}

#[test]
fn a_message_above_the_limit_costs_the_link() {
    let server = Server::start_at("tcp://127.0.0.1:*", |request| {
        let mut answer = request.echo();
        answer.payloads = vec![bytes::Bytes::from(vec![0u8; 10_000])];
        vec![answer]
    });
    let options = common::patient(&server.address).max_message_bytes(5_000);
    let connection = Connection::with_options(options).unwrap();
    let model = connection.model("policy", 30.0, 1);
    let bytes = vec![0u8; 5_001];
    let error = model.observe().tensor_slice("x", &bytes, &[5_001]).send().into_result().unwrap_err();
    assert!(error.to_string().contains("max_message_bytes"), "{error}");
    send(&model);
    assert_eq!(model.next_reply(PATIENCE_MS).unwrap().status, Status::LinkLost);
    assert!(connection.wait_until_up(PATIENCE_MS), "but not for good");
}

#[test]
fn after_a_wrong_peer_the_right_server_is_found() {
    let (address, wrong) = common::wrong_peer();
    let connection = Connection::with_options(common::patient(&address)).unwrap();
    wrong.join().unwrap();
    assert!(!connection.wait_until_up(0));
    let _server = Server::start_at(&address, |request| vec![request.echo()]);
    assert!(connection.wait_until_up(PATIENCE_MS));
}

#[test]
fn an_ipv6_address_is_reached() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return; // this machine has none
    }
    let server = Server::start_at("tcp://[::1]:*", |request| vec![request.echo()]);
    let (_connection, model) = connect(&server);
    send(&model);
    assert_eq!(model.next_reply(PATIENCE_MS).unwrap().status, Status::Ok);
}

#[test]
fn gaps_between_tensors_count_towards_the_limit() {
    let context = Context::new().unwrap();
    let socket = context.socket(SocketKind::Router).unwrap();
    socket.set_max_message_bytes(1024).unwrap();
    socket.set(IntOption::Linger, 0).unwrap();
    let address = socket.bind("tcp://127.0.0.1:*").unwrap();
    let connection = Connection::with_options(common::patient(&address).max_message_bytes(1024)).unwrap();
    let model = connection.model("policy", 30.0, 1);
    let bytes = [0u8; 1023];
    let observe =
        |rest| model.observe().tensor_slice("x", &bytes[..1], &[1]).tensor_slice("y", &bytes[..rest], &[rest]);
    let error = observe(1023).send().into_result().unwrap_err(); // 1024 bytes and 7 between them
    assert!(matches!(error, Error::InvalidObservation { .. }) && error.to_string().contains("1031"), "{error}");
    let text = "x".repeat(1024);
    let error = model.observe().metadata("task", text).send().into_result().unwrap_err();
    assert!(matches!(error, Error::InvalidObservation { .. }), "{error}");
    assert_eq!(observe(1016).send().into_result(), Ok(1));
    // It arrives, and the link is not lost for it.
    let start = Instant::now();
    let mut frames = Vec::new();
    while frames.len() < 4 {
        assert!(start.elapsed() < PATIENCE, "{:?}", connection.link_state());
        match socket.receive().unwrap() {
            Some(frame) => frames.push(frame.as_ref().len()),
            None => thread::yield_now(),
        }
    }
    assert_eq!((frames[3], connection.link_state()), (1024, LinkState::Up));
}

#[test]
fn threads_that_send_first_all_wait() {
    let server = Server::echo();
    let connection = Connection::with_options(common::patient(&server.address)).unwrap();
    let start = std::sync::Barrier::new(4);
    thread::scope(|scope| {
        let sends = [0, 1, 2, 3].map(|index| {
            let (connection, start) = (&connection, &start);
            scope.spawn(move || {
                let model = connection.model(&format!("model-{index}"), 30.0, 1);
                start.wait();
                model.observe().send().into_result()
            })
        });
        for sent in sends {
            let sent = sent.join().unwrap();
            assert!(sent.is_ok(), "{sent:?}");
        }
    });
}

#[test]
fn states_are_told_in_order_whoever_notices_them() {
    let server = Server::start();
    let connection = Connection::with_options(common::patient(&server.address)).unwrap();
    let states = Arc::new(Mutex::new(Vec::new()));
    let (entered, is_in) = channel();
    let (release, released) = channel();
    let (seen, inside, released) = (Arc::clone(&states), connection.clone(), Mutex::new(released));
    connection.on_link_change(move |state| {
        if state == LinkState::Up {
            entered.send(()).unwrap();
            released.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            assert_eq!(inside.link_state(), LinkState::Down); // it may use the connection
        }
        seen.lock().unwrap().push(state);
    });
    thread::scope(|scope| {
        let waits = scope.spawn(|| connection.wait_until_up(PATIENCE_MS));
        is_in.recv_timeout(PATIENCE).unwrap();
        server.stop();
        wait_for(&connection, LinkState::Down); // and tells nothing: the other thread has not finished
        assert_eq!(*states.lock().unwrap(), []);
        release.send(()).unwrap();
        waits.join().unwrap();
    });
    assert_eq!(*states.lock().unwrap(), [LinkState::Up, LinkState::Down]);
    connection.close();
    assert_eq!(*states.lock().unwrap(), [LinkState::Up, LinkState::Down, LinkState::Closed]);
    connection.on_link_change(|_| {}); // which held the connection
}

#[test]
fn a_callback_that_panics_is_called_again() {
    let server = Server::start();
    let connection = Connection::with_options(common::patient(&server.address)).unwrap();
    let states = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&states);
    connection.on_link_change(move |state| {
        seen.lock().unwrap().push(state);
        assert_ne!(state, LinkState::Up, "on purpose");
    });
    let other = connection.clone();
    assert!(thread::spawn(move || other.wait_until_up(PATIENCE_MS)).join().is_err());
    server.stop();
    wait_for(&connection, LinkState::Down);
    assert_eq!(*states.lock().unwrap(), [LinkState::Up, LinkState::Down]);
}
