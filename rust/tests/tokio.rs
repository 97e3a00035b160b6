//! The tokio client against a live socket.

#![cfg(feature = "tokio")]

mod common;

use common::{Server, PATIENCE_MS};
use inferential::{AsyncConnection, LinkState, Status};

#[tokio::test]
async fn one_round_trip() {
    let server = Server::echo();
    let connection = AsyncConnection::new(&server.address, "agent-01", "franka");
    let model = connection.model("policy", 30.0, 1);
    let state = [0.1f32, 0.2, 0.3];
    let sent = model.observe().urgency(0.8).tensor_f32("actions", &state, &[3]).send().await;
    assert_eq!(sent.request_id(), Some(1));
    let result = model.get_result(PATIENCE_MS).await.expect("an answer");
    assert_eq!(result["actions"].as_f32().unwrap(), state);
    assert_eq!(result.status, Status::Ok);
    assert_eq!(connection.link_state(), LinkState::Up);
    connection.close().await;
    assert_eq!(connection.link_state(), LinkState::Closed);
}
