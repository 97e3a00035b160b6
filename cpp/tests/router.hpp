#pragma once

// A server's socket in the hands of a test. ZMQ's own threads do handshakes and queueing, so a test sends and
// answers in one thread: it observes, receives here, replies, and then asks the client.

#include <gtest/gtest.h>
#include <zmq.h>

#include <string>
#include <vector>

#include "messages.hpp"

namespace inferential::test {

inline constexpr int patience_ms = 20000;  // for what takes milliseconds on an idle machine

class Router {
 public:
  struct Request {
    std::string routing_id;
    v1::Observation fields;
    std::vector<std::string> payload;
  };

  explicit Router(const std::string& endpoint = "tcp://127.0.0.1:*")
      : context_(zmq_ctx_new()), socket_(zmq_socket(context_, ZMQ_ROUTER)) {
    const int linger_ms = 0;
    const int mandatory = 1;
    zmq_setsockopt(socket_, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_setsockopt(socket_, ZMQ_ROUTER_MANDATORY, &mandatory, sizeof mandatory);
    zmq_setsockopt(socket_, ZMQ_RCVTIMEO, &patience_ms, sizeof patience_ms);
    zmq_setsockopt(socket_, ZMQ_SNDTIMEO, &patience_ms, sizeof patience_ms);
    // After a restart the port may take a moment to be free again.
    for (int tries = 0; zmq_bind(socket_, endpoint.c_str()) != 0; ++tries) {
      if (tries == 200) throw std::runtime_error("cannot bind " + endpoint + ": " + zmq_strerror(zmq_errno()));
      zmq_poll(nullptr, 0, 50);
    }
    char bound[256];
    std::size_t size = sizeof bound;
    zmq_getsockopt(socket_, ZMQ_LAST_ENDPOINT, bound, &size);
    endpoint_ = bound;
  }

  ~Router() { stop(); }
  Router(const Router&) = delete;
  Router& operator=(const Router&) = delete;

  const std::string& endpoint() const { return endpoint_; }

  void stop() {
    if (socket_ == nullptr) return;
    zmq_close(socket_);
    zmq_ctx_term(context_);
    socket_ = context_ = nullptr;
  }

  bool has_message(int timeout_ms) const {
    zmq_pollitem_t item{socket_, 0, ZMQ_POLLIN, 0};
    return zmq_poll(&item, 1, timeout_ms) > 0;
  }

  std::vector<std::string> receive_frames() {
    std::vector<std::string> frames;
    bool more = true;
    while (more) {
      Frame frame;
      if (zmq_msg_recv(frame.handle(), socket_, 0) < 0) {
        ADD_FAILURE() << "nothing received";
        return {};
      }
      frames.emplace_back(reinterpret_cast<const char*>(frame.data()), frame.size());
      more = frame.more();
    }
    return frames;
  }

  Request receive() {
    auto frames = receive_frames();
    if (frames.size() < 4) {
      ADD_FAILURE() << frames.size() << " frames";
      return {};
    }
    EXPECT_EQ(frames[1], "");
    Request request{frames[0], {}, {frames.begin() + 3, frames.end()}};
    EXPECT_TRUE(request.fields.ParseFromString(frames[2]));
    return request;
  }

  void send_frames(const std::vector<std::string>& frames) {
    for (std::size_t i = 0; i < frames.size(); ++i) {
      EXPECT_GE(zmq_send(socket_, frames[i].data(), frames[i].size(), i + 1 < frames.size() ? ZMQ_SNDMORE : 0), 0)
          << zmq_strerror(zmq_errno());
    }
  }

  void reply(const Request& to, const v1::ModelResponse& fields, const std::vector<std::string>& payload = {""}) {
    std::vector<std::string> frames = {to.routing_id, "", fields.SerializeAsString()};
    frames.insert(frames.end(), payload.begin(), payload.end());
    send_frames(frames);
  }

  /// An OK reply with FLOAT32 `actions`.
  void answer(const Request& to, const std::vector<float>& actions = {1, 2, 3}) {
    reply(to, response(to.fields.request_id(), to.fields.model_id(), Status::Ok, actions), {bytes_of(actions)});
  }

  void answer(const Request& to, Status status) {
    reply(to, response(to.fields.request_id(), to.fields.model_id(), status));
  }

 private:
  void* context_;
  void* socket_;
  std::string endpoint_;
};

}  // namespace inferential::test
