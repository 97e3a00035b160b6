// What cannot be brought about with real sockets at will. Linked with --wrap=zmq_msg_send: the library's sends come
// here.

#include "cpp/src/transport.hpp"

#include <gtest/gtest.h>
#include <zmq.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

struct Attempt {
  std::size_t size;
  bool more;
};

std::vector<Attempt> attempts;
std::size_t fails_at;
std::size_t failures;  // from there on
int fails_with;

}  // namespace

extern "C" int __wrap_zmq_msg_send(zmq_msg_t* message, void*, int flags) {
  const auto size = zmq_msg_size(message);
  attempts.push_back({size, (flags & ZMQ_SNDMORE) != 0});
  if (attempts.size() - 1 - fails_at < failures) {
    errno = fails_with;
    return -1;
  }
  zmq_msg_close(message);
  zmq_msg_init(message);
  return static_cast<int>(size);
}

namespace inferential {
namespace {

/// Sends a message of an empty frame, 5, 1 and 2 bytes, of whose attempts one fails, or several.
bool send(std::size_t attempt, int error, std::size_t times = 1) {
  Transport transport("localhost:1", ConnectionOptions());
  EXPECT_EQ(transport.error(), "");
  attempts.clear();
  fails_at = attempt;
  failures = times;
  fails_with = error;
  Frame envelope(5);
  std::vector<Frame> payload;
  payload.emplace_back(1);
  payload.emplace_back(2);
  return transport.send(envelope, payload);
}

std::string normalized(std::string_view address) {
  std::string error;
  const auto endpoint = normalize_address(address, error);
  EXPECT_EQ(endpoint.empty(), !error.empty()) << address;
  return endpoint + error;
}

TEST(Address, IsMadeWhatZmqWants) {
  const std::pair<const char*, const char*> cases[] = {
      {"tcp://localhost:5555", "tcp://localhost:5555"},
      {" 10.0.0.1:65535 ", "tcp://10.0.0.1:65535"},
      {"\t tcp://my-robot_2.local:0005555\r\n", "tcp://my-robot_2.local:5555"},
      {"[::1]:5555", "tcp://[::1]:5555"},
      {"tcp://[fe80::1%eth0]:05555", "tcp://[fe80::1%eth0]:5555"},
      {"[::ffff:10.0.0.2]:5555", "tcp://[::ffff:10.0.0.2]:5555"},
      {" ipc:///run/inferential ", "ipc:///run/inferential"},
      {"ipc://@abstract", "ipc://@abstract"},
  };
  for (const auto& [given, means] : cases) EXPECT_EQ(normalized(given), means) << given;
}

// As in the tests of the other SDKs.
TEST(Address, ThatCanNeverConnectIsRefused) {
  using namespace std::string_view_literals;
  for (const auto address : {""sv,
                             " "sv,
                             "localhost"sv,
                             "tcp://localhost"sv,
                             "localhost:"sv,
                             "localhost:0"sv,
                             "localhost:00"sv,
                             "localhost:65536"sv,
                             "host:99999999999"sv,
                             "host:5555x"sv,
                             "host:5555/x"sv,
                             "host:-1"sv,
                             "host:+5"sv,
                             "host: 5555"sv,
                             "host:\u0665"sv,
                             "host:5555:6"sv,
                             "10.0.0.2:5555:6"sv,
                             ":5555"sv,
                             "tcp://:5555"sv,
                             "*:5555"sv,
                             "tcp://*:5555"sv,
                             "a b:5555"sv,
                             "\u00fc:5555"sv,
                             "_a:5555"sv,
                             "host/x:5555"sv,
                             "host\0:5555"sv,
                             "::1:5555"sv,
                             "[::1]"sv,
                             "[::1:5555"sv,
                             "::1]:5555"sv,
                             "[::1]x:5555"sv,
                             "[]:5555"sv,
                             "[[::1]]:5555"sv,
                             "[1:2]:5555"sv,
                             "[127.0.0.1]:5555"sv,
                             "[::1%]:5555"sv,
                             "[::1%e h]:5555"sv,
                             "[%eth0]:5555"sv,
                             "[::1\0]:5555"sv,
                             "lo:0;host:5555"sv,
                             "a;b:5555"sv,

                             "ipc://"sv,
                             "ipc://a\0b"sv,
                             "TCP://host:5555"sv,
                             "udp://host:5555"sv,
                             "inproc://x"sv,
                             "http://host:80/x"sv,
                             "://host:5555"sv,
                             "tcp:host:5555"sv}) {
    EXPECT_EQ(normalized(address), "address '" + std::string(address) +
                                       "' must be tcp://HOST:PORT, with a port of 1 to 65535 and an IPv6 address in "
                                       "brackets, or ipc://PATH");
  }
}

TEST(Transport, AFullQueueTakesNothing) {
  EXPECT_FALSE(send(0, EAGAIN, 2));
  EXPECT_EQ(attempts.size(), 2u);
}

TEST(Transport, RoomThatZmqHadNotHeardOfYetIsFound) {
  EXPECT_TRUE(send(0, EAGAIN));
  ASSERT_EQ(attempts.size(), 5u);
  EXPECT_EQ(attempts[1].size, 0u);
  EXPECT_EQ(attempts[4].size, 2u);
}

// ZMQ drops frames up to a last one: were it not this message's, it would be the next one's.
TEST(Transport, AMessageInWhoseMidstTheLinkBreaksIsFinishedAllTheSame) {
  for (const std::size_t breaks_at : {1, 2, 3}) {
    EXPECT_FALSE(send(breaks_at, EAGAIN)) << breaks_at;
    ASSERT_EQ(attempts.size(), 4u) << breaks_at;
    for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(attempts[i].more, i < 3) << breaks_at;
  }
}

TEST(Transport, ASignalCostsNoFrame) {
  for (const std::size_t interrupted : {0, 1, 2, 3}) {
    EXPECT_TRUE(send(interrupted, EINTR)) << interrupted;
    ASSERT_EQ(attempts.size(), 5u) << interrupted;
    attempts.erase(attempts.begin() + static_cast<std::ptrdiff_t>(interrupted));
    const std::size_t sizes[] = {0, 5, 1, 2};
    for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(attempts[i].size, sizes[i]) << interrupted;
  }
}

}  // namespace
}  // namespace inferential
