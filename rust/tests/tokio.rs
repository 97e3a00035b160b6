//! The tokio client against live sockets. What the session decides is tested with the blocking client; here it is about
//! waiting, waking and being dropped.

#![cfg(feature = "tokio")]

mod common;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use common::{every_dtype, Proxy, Server, PATIENCE, PATIENCE_MS};
use inferential::{
    AsyncConnection, AsyncModel, ConnectionOptions, Error, Fallback, LinkState, ModelOptions, NotSentReason, Rate,
    Source, Status,
};
use tokio::time::timeout;

fn connect(server: &Server) -> (AsyncConnection, AsyncModel) {
    let connection = AsyncConnection::with_options(common::patient(&server.address)).unwrap();
    let model = connection.model("policy", 30.0, 1);
    (connection, model)
}

async fn send(model: &AsyncModel) -> u64 {
    model.observe().send().await.into_result().expect("sent")
}

#[tokio::test]
async fn one_round_trip() {
    let server = Server::echo();
    let (connection, model) = connect(&server);
    let state = [0.1f32, 0.2, 0.3];
    let sent = model.observe().urgency(0.8).tensor_f32("actions", &state, &[3]).send().await;
    assert_eq!(sent.request_id(), Some(1));
    let result = model.get_result(PATIENCE_MS).await.expect("an answer");
    assert_eq!(result["actions"].as_f32().unwrap(), state);
    assert_eq!((result.status, connection.link_state()), (Status::Ok, LinkState::Up));
    assert_eq!(connection.counters().ok, 1);
    connection.close().await;
    assert_eq!(connection.link_state(), LinkState::Closed);
    assert_eq!(model.observe().send().await.error(), Some(&Error::Closed));
    assert_eq!(model.try_get_result(PATIENCE_MS).await.unwrap_err(), Error::Closed);
}

#[tokio::test]
async fn every_dtype_there_and_back() {
    let server = Server::echo();
    let (_connection, model) = connect(&server);
    let tensors = every_dtype();
    let observation = tensors.iter().fold(model.observe(), |made, (key, tensor)| made.tensor(key, tensor.clone()));
    observation.send().await;
    assert_eq!(model.next_reply(PATIENCE_MS).await.unwrap().tensors, tensors);
}

#[tokio::test]
async fn a_dropped_wait_loses_nothing() {
    let server = Server::start();
    let (_connection, model) = connect(&server);
    let id = send(&model).await;
    let request = server.request();
    for _ in 0..20 {
        assert!(timeout(Duration::from_millis(1), model.get_result(PATIENCE_MS)).await.is_err());
        assert!(timeout(Duration::from_millis(1), model.next_reply(PATIENCE_MS)).await.is_err());
    }
    assert_eq!(model.outstanding(), 1);
    server.answer(request.echo());
    assert_eq!(model.get_result(PATIENCE_MS).await.unwrap().request_id, id);
}

#[tokio::test]
async fn a_timeout_abandons_and_a_late_reply_is_dropped() {
    let server = Server::start();
    let (connection, model) = connect(&server);
    send(&model).await;
    let late = server.request();
    assert!(model.get_result(0).await.is_none());
    assert_eq!(model.outstanding(), 1);
    assert!(model.get_result(10).await.is_none());
    assert_eq!((model.outstanding(), model.last_status()), (0, Some(Status::TimedOut)));
    assert!(!model.last_error().is_empty());
    let id = send(&model).await;
    server.answer(late.echo());
    server.answer(server.request().echo());
    assert_eq!(model.get_result(PATIENCE_MS).await.unwrap().request_id, id);
    assert_eq!(connection.counters().late_replies, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_on_one_connection() {
    let server = Server::echo();
    let connection = AsyncConnection::with_options(common::patient(&server.address)).unwrap();
    assert!(connection.wait_until_up(PATIENCE_MS).await);
    let tasks: Vec<_> = (0..16u64)
        .map(|task| {
            let model = connection.model(&format!("model-{task}"), 30.0, 1);
            tokio::spawn(async move {
                for index in 0..100 {
                    let values = [task, index];
                    model.observe().tensor_slice("n", &values, &[2]).send().await.into_result().unwrap();
                    let reply = model.next_reply(PATIENCE_MS).await.expect("a reply");
                    assert_eq!(reply["n"].as_slice::<u64>().unwrap(), values);
                }
            })
        })
        .collect();
    for task in tasks {
        timeout(PATIENCE, task).await.expect("a task was not woken").unwrap();
    }
    assert_eq!(connection.counters().ok, 1600);
}

#[tokio::test]
async fn thousands_in_flight_each_end_once() {
    let server = Server::echo();
    let (connection, model) = connect(&server);
    let receive = async {
        let mut answered = vec![0; 3000];
        while answered.contains(&0) {
            match model.next_reply(PATIENCE_MS).await {
                Some(reply) => answered[reply.request_id as usize - 1] += 1,
                None => tokio::task::yield_now().await, // nothing sent yet
            }
        }
        answered
    };
    let send = async {
        for _ in 0..3000 {
            // Fewer than half the send queue: libzmq learns in steps of half a queue what has been taken.
            while model.outstanding() > 400 {
                tokio::task::yield_now().await;
            }
            send(&model).await;
        }
    };
    let (answered, ()) = timeout(PATIENCE, async { tokio::join!(receive, send) }).await.expect("in time");
    assert!(answered.iter().all(|&times| times == 1));
    assert_eq!(connection.counters().ok, 3000);
}

#[tokio::test]
async fn one_waiter_per_model() {
    let server = Server::start();
    let (_connection, model) = connect(&server);
    let id = send(&model).await;
    let request = server.request();
    let both = async {
        tokio::join!(model.try_get_result(PATIENCE_MS), async {
            let busy = model.try_next_reply(PATIENCE_MS).await.unwrap_err();
            server.answer(request.echo());
            busy
        })
    };
    let (result, busy) = timeout(PATIENCE, both).await.unwrap();
    assert_eq!((result.unwrap().unwrap().request_id, busy), (id, Error::Busy { model: "policy".to_owned() }));
}

#[tokio::test]
async fn closing_wakes_whoever_waits() {
    let server = Server::start();
    let (connection, model) = connect(&server);
    let id = send(&model).await;
    let (reply, ()) = tokio::join!(model.next_reply(PATIENCE_MS), connection.close());
    let reply = reply.unwrap();
    assert_eq!((reply.request_id, reply.status), (id, Status::LinkLost));
}

#[tokio::test]
async fn ping_and_cancel() {
    let server = Server::start_at("tcp://127.0.0.1:*", |request| match request.observation.kind {
        1 => vec![request.pong()],
        2 => vec![request.answer(10)],
        _ => vec![],
    });
    let (connection, model) = connect(&server);
    assert!(connection.ping(PATIENCE_MS).await.unwrap().unwrap().models["policy"]);
    let id = send(&model).await;
    assert!(model.cancel(id));
    assert_eq!(model.next_reply(PATIENCE_MS).await.unwrap().status, Status::Cancelled);
}

#[tokio::test]
async fn a_restarted_server_is_found() {
    let server = Server::start();
    let (connection, model) = connect(&server);
    let id = send(&model).await;
    let address = server.address.clone();
    let stop = async { tokio::task::spawn_blocking(move || server.stop()).await.unwrap() };
    let (reply, ()) = tokio::join!(model.next_reply(PATIENCE_MS), stop);
    let reply = reply.expect("the link's end");
    assert_eq!((reply.request_id, reply.status), (id, Status::LinkLost));
    assert!(matches!(
        model.observe().send().await.error(),
        Some(Error::NotSent { reason: NotSentReason::LinkDown, .. })
    ));
    let _server = Server::start_at(&address, |request| vec![request.echo()]);
    assert!(connection.wait_until_up(PATIENCE_MS).await);
    send(&model).await;
    assert!(model.get_result(PATIENCE_MS).await.is_some());
}

#[tokio::test]
async fn a_silent_network_is_noticed() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let options = common::patient(&proxy.address).heartbeat_ms(300);
    let connection = AsyncConnection::with_options(options).unwrap();
    let model = connection.model("policy", 30.0, 1);
    send(&model).await;
    proxy.freeze();
    assert_eq!(model.next_reply(PATIENCE_MS).await.unwrap().status, Status::LinkLost);
}

#[tokio::test]
async fn after_a_wrong_peer_the_right_server_is_found() {
    let (address, wrong) = common::wrong_peer();
    let connection = AsyncConnection::with_options(common::patient(&address)).unwrap();
    wrong.join().unwrap();
    assert!(!connection.wait_until_up(0).await);
    let _server = Server::start_at(&address, |request| vec![request.echo()]);
    assert!(connection.wait_until_up(PATIENCE_MS).await);
}

#[tokio::test]
async fn without_a_server_nothing_hangs() {
    let options = ConnectionOptions::new("127.0.0.1:1", "agent-01", "").connect_timeout_ms(20);
    let connection = AsyncConnection::with_options(options).unwrap();
    let model = connection.model("policy", 30.0, 1);
    for _ in 0..100 {
        let sent = model.observe().send().await;
        assert!(matches!(sent.error(), Some(Error::NotSent { reason: NotSentReason::NeverUp, .. })));
    }
    assert_eq!(connection.ping(PATIENCE_MS).await, Ok(None));
    assert!(matches!(
        AsyncConnection::new("nonsense", "a", "").model("policy", 1.0, 1).observe().send().await.error(),
        Some(Error::InvalidAddress { .. })
    ));
}

#[tokio::test]
async fn act_always_gives_something_to_do() {
    let server = Server::start();
    let connection = AsyncConnection::with_options(common::patient(&server.address)).unwrap();
    let model = connection.model_with(ModelOptions::new("policy").fallback(Fallback::hold(1e9)));
    assert_eq!(model.act(PATIENCE_MS).await.source, Source::None);
    model.observe().tensor_f32("actions", &[1.0], &[1]).send().await;
    server.answer(server.request().echo());
    assert_eq!(model.act(PATIENCE_MS).await.source, Source::Fresh);
    send(&model).await;
    let action = model.act(5).await;
    assert_eq!((action.source, action.tensors["actions"].as_f32().unwrap()), (Source::Hold, &[1.0][..]));
}

#[tokio::test]
async fn rate_ticks() {
    let mut rate = Rate::new(1000.0).unwrap();
    for _ in 0..3 {
        rate.sleep_async().await;
    }
}

#[test]
fn a_connection_outlives_its_runtime() {
    let server = Server::echo();
    let (_connection, model) = connect(&server);
    for _ in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            send(&model).await;
            assert!(model.get_result(PATIENCE_MS).await.is_some());
        });
    }
}

#[test]
fn outside_a_runtime_waiting_is_an_error() {
    let connection = AsyncConnection::new("127.0.0.1:1", "agent-01", ""); // nobody there, so that it has to wait
    let model = connection.model("policy", 30.0, 1);
    let mut sending = pin!(model.observe().send());
    match sending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(sent) => assert!(matches!(sent.error(), Some(Error::Io { .. })), "{sent:?}"),
        Poll::Pending => panic!("nobody would ever wake it"),
    }
}

#[tokio::test]
async fn tasks_that_send_first_all_wait() {
    let server = Server::echo();
    let connection = AsyncConnection::with_options(common::patient(&server.address)).unwrap();
    let (first, second) = (connection.model("first", 30.0, 1), connection.model("second", 30.0, 1));
    let (first, second) = tokio::join!(first.observe().send(), second.observe().send());
    assert!(first.is_sent() && second.is_sent(), "{first:?} {second:?}");
}

#[tokio::test]
async fn a_first_send_that_is_dropped_leaves_its_wait_to_the_next() {
    let server = Server::echo();
    let (_connection, model) = connect(&server);
    {
        let mut dropped = pin!(model.observe().send());
        let _ = dropped.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
    send(&model).await;
}

#[test]
fn a_runtime_that_nobody_drives_now_holds_nothing_up() {
    let server = Server::start();
    let (_connection, model) = connect(&server);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let start = Instant::now();
    for runtime in [&first, &second, &second, &first] {
        runtime.block_on(async {
            send(&model).await;
            // Answered once it waits for certain.
            let (reply, ()) = tokio::join!(model.next_reply(PATIENCE_MS), async {
                server.answer(server.request().echo());
            });
            assert!(reply.is_some());
        });
        assert!(start.elapsed() < PATIENCE, "woken by its deadline alone");
    }
}

#[test]
fn runtimes_that_wait_at_the_same_time_are_both_woken() {
    let server = Server::start();
    let (connection, model) = connect(&server);
    let other = connection.model("other", 30.0, 1);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (id, start) = (runtime().block_on(send(&model)), Instant::now());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| runtime().block_on(model.next_reply(PATIENCE_MS)));
        let second = runtime();
        for _ in 0..100 {
            let reply = second.block_on(async {
                send(&other).await;
                let request = loop {
                    let request = server.request();
                    if request.observation.request_id != id {
                        break request;
                    }
                };
                let answer = async { server.answer(request.echo()) };
                tokio::join!(other.next_reply(PATIENCE_MS), answer).0
            });
            assert!(reply.is_some());
        }
        assert_eq!(model.outstanding(), 1);
        assert!(model.cancel(id));
        let cancel = server.request();
        server.answer(cancel.answer(10));
        assert_eq!(waits.join().unwrap().unwrap().status, Status::Cancelled);
    });
    assert!(start.elapsed() < PATIENCE, "woken by its deadline alone");
}

#[tokio::test]
async fn a_loop_that_never_has_to_wait_lets_others_run() {
    let server = Server::start();
    let (_connection, model) = connect(&server);
    send(&model).await;
    let start = Instant::now();
    let looks = async {
        while start.elapsed() < PATIENCE {
            assert!(model.get_result(0).await.is_none());
        }
    };
    assert!(timeout(Duration::from_millis(20), looks).await.is_err(), "its timeout was never asked");
    server.stop();
    let sends = async {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            model.observe().send().await;
        }
    };
    assert!(timeout(Duration::from_millis(20), sends).await.is_err(), "its timeout was never asked");
}
