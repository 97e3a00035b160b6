use inferential::Connection;

let conn = Connection::new("tcp://localhost:5555", "agent-01", "franka");
let model = conn.model("policy-v2", 30.0, 1);

let state: Vec<f32> = vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7];
model.observe()
    .urgency(0.8)
    .tensor_f32("state", &state, &[7])
    .send();

if let Some(result) = model.get_result(50) {
    let actions = result["actions"].as_f32();
}
