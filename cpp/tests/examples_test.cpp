// The example programs do what the documentation says of them, and are what it prints. Run from the repository's root.
//
//     examples_test CONTROL_LOOP

#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>

#include "router.hpp"

namespace {

using inferential::test::Router;

std::string control_loop;  // the program

std::string contents_of(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Exit status and output.
std::pair<int, std::string> run(const std::string& command) {
  std::FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  std::string output;
  for (int character; (character = std::fgetc(pipe)) != EOF;) output += static_cast<char>(character);
  return {pclose(pipe), output};
}

/// N of the last line, "N of M actions were fresh".
int fresh_of(const std::string& output) {
  const auto end = output.rfind(" of ");
  const auto start = output.rfind('\n', end);
  return end == std::string::npos ? -1 : std::stoi(output.substr(start == std::string::npos ? 0 : start + 1));
}

TEST(ControlLoop, ActsOnFreshAnswers) {
  Router server;
  std::atomic<bool> done{false};
  std::atomic<int> answered{0};
  std::thread serving([&] {
    while (!done) {
      if (!server.has_message(20)) continue;
      const auto request = server.receive();
      EXPECT_EQ(request.fields.model_id(), "policy");
      EXPECT_EQ(request.fields.step_ms(), 20);
      EXPECT_EQ(request.payload[0].size(), 28u);
      server.answer(request, {1, 2, 3, 4, 5, 6, 7});
      ++answered;
    }
  });
  const auto [status, output] = run("'" + control_loop + "' " + server.endpoint() + " policy 50");
  done = true;
  serving.join();
  EXPECT_EQ(status, 0) << output;
  EXPECT_GT(answered, 0);
  EXPECT_GT(fresh_of(output), 0) << output;  // how many depends on how busy the machine is
  EXPECT_LE(fresh_of(output), answered) << output;
}

TEST(ControlLoop, FallsBackWithoutAServer) {
  std::string endpoint;
  {
    Router gone;
    endpoint = gone.endpoint();
  }
  const auto [status, output] = run("'" + control_loop + "' " + endpoint + " policy 5");
  EXPECT_EQ(status, 0) << output;
  EXPECT_EQ(fresh_of(output), 0) << output;
  EXPECT_NE(output.find("ZERO, 0.0 ms old: nothing of this model is outstanding"), std::string::npos) << output;
}

TEST(ControlLoop, SaysWhatIsWrongWithItsArguments) {
  const auto [status, output] = run("'" + control_loop + "' localhost");
  EXPECT_NE(status, 0);
  EXPECT_NE(output.find("must be tcp://HOST:PORT"), std::string::npos) << output;
}

TEST(Documentation, PrintsTheseExamples) {
  const auto page = contents_of("docs/sdk-cpp.md");
  for (const auto* example : {"cpp/examples/control_loop.cpp", "cpp/examples/quickstart.cpp"}) {
    const auto program = contents_of(example);
    ASSERT_FALSE(program.empty());
    EXPECT_NE(page.find("```cpp\n" + program + "```\n"), std::string::npos)
        << "docs/sdk-cpp.md does not print " << example;
  }
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s CONTROL_LOOP\n", argv[0]);
    return 2;
  }
  control_loop = argv[1];
  return RUN_ALL_TESTS();
}
