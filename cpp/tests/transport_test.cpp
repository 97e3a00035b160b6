// What cannot be brought about with real sockets at will. Linked with --wrap=zmq_msg_send: the library's sends come
// here.

#include "cpp/src/transport.hpp"

#include <gtest/gtest.h>
#include <zmq.h>

#include <cerrno>
#include <string>
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
