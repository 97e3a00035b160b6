#include "inferential/client.hpp"

auto conn = inferential::Connection("tcp://localhost:5555", "agent-01", "franka");
auto model = conn.model("policy-v2", 30.0f, 1);

std::vector<float> state = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f, 0.7f};
model.observe()
    .urgency(0.8f)
    .tensor_f32("state", state.data(), state.size(), {7})
    .send();

auto result = model.get_result(50);
if (result) {
    auto [ptr, count] = (*result)["actions"].as<float>();
}
