// round_trip ADDRESS MODEL VERSION: a program outside this repository that uses the installed SDK. It succeeds where
// the SDK is of that version and the model answers OK. Without an address it checks the version alone.

#include <cstdio>
#include <cstring>

#include "inferential/client.hpp"

int main(int argc, char** argv) {
  const char* wanted = argv[argc - 1];
  if (std::strcmp(inferential::version(), wanted) != 0) {
    std::fprintf(stderr, "the installed SDK is %s, not %s\n", inferential::version(), wanted);
    return 1;
  }
  std::printf("inferential %s\n", inferential::version());
  if (argc < 4) return 0;

  inferential::ConnectionOptions options;
  options.connect_timeout_ms = 20000;
  inferential::Connection connection(argv[1], "package-test", "", options);
  auto model = connection.model(argv[2], 10000.0f, 1);
  const std::vector<float> state = {1, 2, 3, 4, 5, 6, 7};
  if (const auto sent = model.observe().tensor("state", state).send(); !sent) {
    std::fprintf(stderr, "%s\n", sent.error().message.c_str());
    return 1;
  }
  const auto result = model.get_result(20000);
  if (!result) {
    std::fprintf(stderr, "%s\n", result.error().message.c_str());
    return 1;
  }
  for (const auto& tensor : result->tensors()) {
    const auto key = tensor.key();
    std::printf("%.*s: %zu elements\n", static_cast<int>(key.size()), key.data(), tensor.element_count());
  }
  return 0;
}
