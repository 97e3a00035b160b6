// Round trips of the SDK and of plain libzmq against one echo server, interleaved in one run, with the number of heap
// allocations each costs in the client's process (ZMQ's threads included).
//
//     round_trip [--rounds N] [--json]
//
// The server is a process of its own. A single frame it returns as it came: libzmq's own floor, of which the protocol's
// frames and the server's work are no part. An observation it answers as an inference server does: it parses the
// envelope, echoes the request id and returns the tensors. Plain libzmq does both; what the SDK takes longer than
// libzmq with the same frames is the SDK's own.
//
// Clients and server share one CPU. Left to the scheduler, each connection's threads settle on CPUs of their own luck,
// which makes one connection's round trip up to 1.5 times another's, plain libzmq's among them. On one CPU nothing is
// hidden by running beside something else, so what a client costs shows in full.

#include <sched.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpp/src/frame.hpp"
#include "inferential/client.hpp"
#include "inferential/v1/inferential.pb.h"

// ---- counting: every way to the heap leads through these (operator new calls malloc)

namespace {
std::atomic<std::uint64_t> allocations{0};
}

extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* block, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

void* malloc(std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_calloc(count, size);
}
void* realloc(void* block, std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_realloc(block, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_memalign(alignment, size);
}
}

namespace {

using inferential::Frame;
namespace v1 = inferential::v1;

void require(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(std::string(what) + ": " + zmq_strerror(zmq_errno()));
}

// ---- the server

[[noreturn]] void serve(int port_pipe) {
  void* context = zmq_ctx_new();
  void* socket = zmq_socket(context, ZMQ_ROUTER);
  require(zmq_bind(socket, "tcp://127.0.0.1:*") == 0, "bind");
  char endpoint[256];
  std::size_t size = sizeof endpoint;
  zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, endpoint, &size);
  require(write(port_pipe, endpoint, size) == static_cast<ssize_t>(size), "write");

  v1::Observation observation;
  v1::ModelResponse response;
  std::vector<Frame> frames;
  for (;;) {
    frames.clear();
    do {
      frames.emplace_back();
      require(zmq_msg_recv(frames.back().handle(), socket, 0) >= 0, "receive");
    } while (frames.back().more());

    if (frames.size() >= 4) {  // routing id, delimiter, envelope, payload...
      require(observation.ParseFromArray(frames[2].data(), static_cast<int>(frames[2].size())), "parse");
      response.set_request_id(observation.request_id());
      response.set_protocol_version(2);
      response.mutable_model_id()->swap(*observation.mutable_model_id());
      response.mutable_tensors()->Swap(observation.mutable_tensors());
      frames[2] = Frame(response.ByteSizeLong());
      response.SerializeWithCachedSizesToArray(reinterpret_cast<std::uint8_t*>(frames[2].data()));
    }
    for (std::size_t i = 0; i < frames.size(); ++i) {
      require(zmq_msg_send(frames[i].handle(), socket, i + 1 < frames.size() ? ZMQ_SNDMORE : 0) >= 0, "send");
    }
  }
}

// ---- the clients

/// Sends the same frames each time and reads as many, nothing more.
class Plain {
 public:
  Plain(const std::string& endpoint, std::vector<std::string> frames)
      : frames_(std::move(frames)), context_(zmq_ctx_new()), socket_(zmq_socket(context_, ZMQ_DEALER)) {
    require(zmq_connect(socket_, endpoint.c_str()) == 0, "connect");
  }
  ~Plain() {
    zmq_close(socket_);
    zmq_ctx_term(context_);
  }
  void round_trip() {
    for (std::size_t i = 0; i < frames_.size(); ++i) {
      const int flags = i + 1 < frames_.size() ? ZMQ_SNDMORE : 0;
      require(zmq_send(socket_, frames_[i].data(), frames_[i].size(), flags) >= 0, "send");
    }
    for (std::size_t i = 0; i < frames_.size(); ++i) {
      zmq_msg_t message;
      zmq_msg_init(&message);
      require(zmq_msg_recv(&message, socket_, 0) >= 0, "receive");
      const bool whole = i + 1 < frames_.size() || zmq_msg_size(&message) == frames_.back().size();
      zmq_msg_close(&message);
      require(whole, "the payload came back with another size");
    }
  }

 private:
  std::vector<std::string> frames_;
  void* context_;
  void* socket_;
};

constexpr const char* client_id = "bench";
constexpr const char* model_id = "echo";
constexpr float budget_ms = 1000.0f;

/// As the SDK below sends them.
std::vector<std::string> observation_frames(std::size_t bytes) {
  v1::Observation fields;
  fields.mutable_client()->set_id(client_id);
  fields.set_model_id(model_id);
  fields.set_timestamp_ns(static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count()));
  fields.set_request_id(1);
  fields.set_latency_budget_ms(budget_ms);
  fields.set_priority(1);
  auto* tensor = fields.add_tensors();
  tensor->set_key("state");
  tensor->set_dtype(v1::DTYPE_FLOAT32);
  tensor->add_shape(static_cast<std::int64_t>(bytes / sizeof(float)));
  tensor->set_byte_length(bytes);
  tensor->set_encoding(v1::ENCODING_RAW);
  return {"", fields.SerializeAsString(), std::string(bytes, 'x')};
}

class Sdk {
 public:
  Sdk(const std::string& endpoint, std::size_t bytes)
      : values_(bytes / sizeof(float), 1.0f),
        connection_(endpoint, client_id, ""),
        model_(connection_.model(model_id, budget_ms, 1)) {}
  void round_trip() {
    const auto count = static_cast<std::int64_t>(values_.size());
    model_.observe().tensor("state", values_.data(), values_.size(), {count}).send();
    const auto result = model_.get_result(10000);
    require(result && (*result)["state"].as<float>().size() == values_.size(), "get_result");
  }

 private:
  std::vector<float> values_;
  inferential::Connection connection_;
  inferential::Model model_;
};

struct Measured {
  std::vector<double> us;
  double allocations = 0;

  double percentile(double part) const {
    return us[static_cast<std::size_t>(part * static_cast<double>(us.size() - 1))];
  }
};

template <class Client>
void measure(Client& client, int rounds, Measured& into) {
  const auto before = allocations.load();
  for (int i = 0; i < rounds; ++i) {
    const auto start = std::chrono::steady_clock::now();
    client.round_trip();
    into.us.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  into.allocations += static_cast<double>(allocations.load() - before);
}

template <class Client>
struct Competitor {
  const char* name;
  Client client;
  Measured measured;
};

void compare(const std::string& endpoint, std::size_t bytes, int rounds, bool json) {
  Competitor<Plain> bare{"bare", Plain(endpoint, {std::string(bytes, 'x')}), {}};
  Competitor<Plain> frames{"frames", Plain(endpoint, observation_frames(bytes)), {}};
  Competitor<Sdk> sdk{"sdk", Sdk(endpoint, bytes), {}};
  const auto each = [&](auto&& step) {
    step(bare);
    step(frames);
    step(sdk);
  };

  constexpr int block = 100;
  each([&](auto& competitor) {
    Measured warm_up;
    measure(competitor.client, 5 * block, warm_up);
    competitor.measured.us.reserve(static_cast<std::size_t>(rounds) + block);
  });
  for (int done = 0; done < rounds; done += block) {  // by turns, so that a noisy moment meets all
    each([&](auto& competitor) { measure(competitor.client, block, competitor.measured); });
  }

  std::printf(json ? "{\"bytes\": %zu" : "| %7zu |", bytes);
  each([&](auto& competitor) {
    auto& measured = competitor.measured;
    measured.allocations /= static_cast<double>(measured.us.size());
    std::sort(measured.us.begin(), measured.us.end());
    const double p50 = measured.percentile(0.5);
    const double p99 = measured.percentile(0.99);
    if (json) {
      std::printf(", \"%s\": {\"p50_us\": %.1f, \"p99_us\": %.1f, \"allocations\": %.2f}", competitor.name, p50, p99,
                  measured.allocations);
    } else {
      std::printf(" %6.1f / %6.1f / %5.2f |", p50, p99, measured.allocations);
    }
  });
  std::printf(json ? "}\n" : "\n");
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 20000;
  bool json = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0) {
      json = true;
    } else if (std::strcmp(argv[i], "--rounds") == 0 && i + 1 < argc) {
      rounds = std::atoi(argv[++i]);
    } else {
      std::fprintf(stderr, "usage: %s [--rounds N] [--json]\n", argv[0]);
      return 2;
    }
  }

  // The server and libzmq's threads inherit it.
  cpu_set_t this_cpu;
  CPU_ZERO(&this_cpu);
  CPU_SET(sched_getcpu(), &this_cpu);
  require(sched_setaffinity(0, sizeof this_cpu, &this_cpu) == 0, "sched_setaffinity");

  int port_pipe[2];
  require(pipe(port_pipe) == 0, "pipe");
  const pid_t server = fork();
  require(server >= 0, "fork");
  if (server == 0) serve(port_pipe[1]);
  char endpoint[256] = {};
  require(read(port_pipe[0], endpoint, sizeof endpoint - 1) > 0, "read");

  int exit_code = 0;
  try {
    if (!json) {
      std::printf("p50 us / p99 us / heap allocations of a round trip\n");
      std::printf("|   bytes | libzmq, one frame       | libzmq, the same frames | SDK                     |\n");
      std::printf("|---------|-------------------------|-------------------------|-------------------------|\n");
    }
    compare(endpoint, 28, rounds, json);
    compare(endpoint, 150528, rounds / 4, json);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    exit_code = 1;
  }
  kill(server, SIGTERM);
  waitpid(server, nullptr, 0);
  return exit_code;
}
