// A 50 Hz control loop that never waits longer than its cycle and always has an action: a fresh one, or the
// last one for at most 100 ms, or zeros.
//
//     control_loop tcp://localhost:5555 policy 250

#include <cstdio>
#include <cstdlib>
#include <string>

#include "inferential/client.hpp"

int main(int argc, char** argv) {
  const char* address = argc > 1 ? argv[1] : "tcp://localhost:5555";
  const char* model_id = argc > 2 ? argv[2] : "policy";
  const int cycles = argc > 3 ? std::atoi(argv[3]) : 250;

  auto connection = inferential::Connection::open(address, "agent-01", "franka");
  if (!connection) {
    std::fprintf(stderr, "%s\n", connection.error().message.c_str());
    return 2;
  }

  inferential::ModelOptions options;
  options.latency_budget_ms = 15.0f;
  options.step_ms = 20.0f;  // one action lasts one cycle
  options.fallback = inferential::Fallback::hold(
      100.0, *inferential::TensorsBuilder().add_zeros("actions", inferential::DType::Float32, {7}).build());
  auto model = connection->model(model_id, options);

  std::vector<float> joints(7, 0.0f);
  int fresh = 0;
  auto rate = inferential::Rate(50.0);
  for (int cycle = 0; cycle < cycles; ++cycle) {
    const auto sent = model.observe().tensor("state", joints).urgency(0.5f).send();
    if (!sent && sent.error().code == inferential::ErrorCode::InvalidArgument) {
      std::fprintf(stderr, "%s\n", sent.error().message.c_str());
      return 2;
    }

    const auto action = model.act(15.0);
    if (action.error) {
      std::fprintf(stderr, "%s, %.1f ms old: %s\n", std::string(to_string(action.source)).c_str(), action.age_ms,
                   action.error->message.c_str());
    } else {
      ++fresh;
    }
    const auto command = action["actions"].as<float>();
    for (std::size_t i = 0; i < command.size() && i < joints.size(); ++i) joints[i] += 0.02f * command[i];

    if (const auto missed = rate.sleep(); missed > 0) {
      std::fprintf(stderr, "cycle %d: %llu cycles missed\n", cycle, static_cast<unsigned long long>(missed));
    }
  }
  std::printf("%d of %d actions were fresh\n", fresh, cycles);
}
