//! A connection in the child of a fork. In a program of its own: a child holds the descriptors of all tests that run beside it.

mod common;

use common::{connect, send, Server, PATIENCE_MS};
use inferential::{Error, LinkState, Status};

#[test]
fn in_the_child_of_a_fork_a_connection_is_closed() {
    let server = Server::start();
    let (connection, model) = connect(&server);
    let id = send(&model);
    let request = server.request();
    let child = common::in_a_fork(|| {
        let checks = [
            model.try_next_reply(PATIENCE_MS).is_ok_and(|reply| reply.unwrap().status == Status::LinkLost),
            model.try_next_reply(PATIENCE_MS).is_err_and(|error| error == Error::Closed),
            connection.link_state() == LinkState::Closed,
            !connection.wait_until_up(PATIENCE_MS),
            connection.ping(PATIENCE_MS) == Err(Error::Closed),
            model.observe().send().error() == Some(&Error::Closed),
        ];
        connection.close();
        checks.iter().position(|check| !check).map_or(0, |index| index as u8 + 1)
    });
    assert_eq!(child, Ok(0));
    // The parent's goes on.
    server.answer(request.echo());
    assert_eq!(model.get_result(PATIENCE_MS).unwrap().request_id, id);

    let server = Server::echo();
    let (connection, model) = connect(&server);
    send(&model);
    let mut handles = Some((connection, model));
    // Safe to drop in the child without a call before, too: the parent has its own.
    let child = common::in_a_fork(|| {
        drop(handles.take());
        0
    });
    assert_eq!(child, Ok(0));
    let (connection, model) = handles.unwrap();
    assert!(model.get_result(PATIENCE_MS).is_some());
    assert_eq!(connection.link_state(), LinkState::Up);
}

#[cfg(feature = "tokio")]
#[test]
fn an_async_connection_too_and_the_parent_keeps_its_own() {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::time::Instant;

    use common::PATIENCE;
    use inferential::{AsyncConnection, AsyncModel};

    let server = Server::start();
    let connection = AsyncConnection::with_options(common::patient(&server.address)).unwrap();
    let model = connection.model("policy", 30.0, 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let start = Instant::now();
    let wait_and_answer = |model: &AsyncModel| {
        runtime.block_on(async {
            model.observe().send().await.into_result().expect("sent");
            // Answered once it waits for certain.
            let (reply, ()) = tokio::join!(model.next_reply(PATIENCE_MS), async {
                server.answer(server.request().echo());
            });
            assert!(reply.is_some());
        });
    };
    wait_and_answer(&model);
    let mut handles = Some((connection, model));
    let child = common::in_a_fork(|| {
        let (connection, model) = handles.take().unwrap();
        let mut sending = pin!(model.observe().send());
        let sent = match sending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(sent) => sent.error() == Some(&Error::Closed),
            Poll::Pending => false,
        };
        u8::from(!(sent && connection.link_state() == LinkState::Closed))
    });
    assert_eq!(child, Ok(0));
    // The parent's epoll still has it, though the child has dropped its handles.
    let (_connection, model) = handles.unwrap();
    wait_and_answer(&model);
    assert!(start.elapsed() < PATIENCE, "woken by its deadline alone");
}
