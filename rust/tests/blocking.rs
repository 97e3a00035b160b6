//! The blocking client against a live socket.

mod common;

use common::{Server, PATIENCE_MS};
use inferential::{Connection, LinkState, Status};

#[test]
fn one_round_trip() {
    let server = Server::echo();
    let connection = Connection::new(&server.address, "agent-01", "franka");
    let model = connection.model("policy", 30.0, 1);
    let state = [0.1f32, 0.2, 0.3];
    let request_id = model.observe().urgency(0.8).tensor_f32("actions", &state, &[3]).send().request_id();
    assert_eq!(request_id, Some(1));
    let result = model.get_result(PATIENCE_MS).expect("an answer");
    assert_eq!(result["actions"].as_f32().unwrap(), state);
    assert_eq!(result.request_id, 1);
    assert_eq!(result.status, Status::Ok);
    assert_eq!(connection.link_state(), LinkState::Up);
}
