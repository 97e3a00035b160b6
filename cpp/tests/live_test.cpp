// The SDK as a program uses it, against a live ROUTER socket.

#include "inferential/client.hpp"

#if defined(ZMQ_VERSION) || defined(GOOGLE_PROTOBUF_VERSION) || defined(PROTOBUF_VERSION)
#error "public headers must bring neither ZMQ nor protobuf"
#endif

#include <gtest/gtest.h>
#if defined(__unix__)
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <atomic>
#include <chrono>
#include <cmath>
#include <future>
#include <limits>
#include <mutex>
#include <thread>

#include "router.hpp"

namespace inferential {
namespace {

using test::bytes_of;
using test::patience_ms;
using test::response;
using test::Router;
using Floats = std::vector<float>;
using Clock = std::chrono::steady_clock;

double since_ms(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

ConnectionOptions patient() {
  ConnectionOptions options;
  options.connect_timeout_ms = patience_ms;
  return options;
}

class Live : public testing::Test {
 protected:
  /// One observation out and its OK reply back: the server is known to speak v2 afterwards.
  void greet(Model& model) {
    ASSERT_TRUE(model.observe().send());
    server.answer(server.receive());
    ASSERT_TRUE(model.get_result(patience_ms));
  }

  Router server;
  Connection connection{server.endpoint(), "agent-01", "franka", patient()};
};

TEST_F(Live, TheProgramOfTheQuickStart) {
  auto model = connection.model("policy-v2", 30.0f, 1);
  const Floats state = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f, 0.7f};
  model.observe().urgency(0.8f).tensor_f32("state", state.data(), state.size(), {7}).send();

  const auto request = server.receive();
  EXPECT_EQ(request.fields.client().id(), "agent-01");
  EXPECT_EQ(request.fields.client().type(), "franka");
  EXPECT_EQ(request.fields.model_id(), "policy-v2");
  EXPECT_EQ(request.fields.urgency(), 0.8f);
  EXPECT_EQ(request.fields.latency_budget_ms(), 30.0f);
  EXPECT_EQ(request.fields.priority(), 1u);
  EXPECT_EQ(request.fields.request_id(), 1u);
  EXPECT_FALSE(request.fields.has_steps_remaining());
  EXPECT_GT(request.fields.timestamp_ns(), 1'600'000'000'000'000'000u);
  ASSERT_EQ(request.fields.tensors_size(), 1);
  EXPECT_EQ(request.fields.tensors(0).key(), "state");
  EXPECT_EQ(request.payload, std::vector<std::string>{bytes_of(state)});
  server.answer(request, {3, 4});

  auto result = model.get_result(patience_ms);
  ASSERT_TRUE(result) << result.error().message;
  auto [ptr, count] = (*result)["actions"].as<float>();
  ASSERT_EQ(count, 2u);
  EXPECT_EQ(ptr[1], 4);
  EXPECT_EQ(result->request_id(), 1u);
  EXPECT_GT(result->age_ms(), 0);
  EXPECT_GE(result->age_ms(), result->round_trip_ms());
}

TEST_F(Live, EveryFieldArrivesAsSent) {
  auto model = connection.model("policy");
  const Floats state = {1};
  const auto sent = model.observe()
                        .urgency(1)
                        .steps_remaining(0)
                        .priority(7)
                        .latency_budget_ms(12.5f)
                        .step_ms(20)
                        .latest_only()
                        .slot("left arm")
                        .metadata("task", "fold the towel")
                        .metadata("\xC3\xA9tat", "")
                        .tensor("state", state, {99})
                        .send();
  ASSERT_TRUE(sent) << sent.error().message;
  const auto request = server.receive().fields;
  EXPECT_EQ(request.request_id(), *sent);
  EXPECT_EQ(request.urgency(), 1);
  EXPECT_TRUE(request.has_steps_remaining());
  EXPECT_EQ(request.steps_remaining(), 0u);
  EXPECT_EQ(request.priority(), 7u);
  EXPECT_EQ(request.latency_budget_ms(), 12.5f);
  EXPECT_EQ(request.step_ms(), 20);
  EXPECT_TRUE(request.latest_only());
  EXPECT_EQ(request.slot(), "left arm");
  EXPECT_EQ(request.metadata().size(), 2u);
  EXPECT_EQ(request.metadata().at("task"), "fold the towel");
  EXPECT_EQ(request.tensors(0).timestamp_ns(), 99u);

  // The next one starts from the handle's settings again.
  ASSERT_TRUE(model.observe().send());
  const auto next = server.receive().fields;
  EXPECT_EQ(next.urgency(), 0);
  EXPECT_FALSE(next.has_steps_remaining());
  EXPECT_EQ(next.priority(), 1u);
  EXPECT_EQ(next.latency_budget_ms(), 50);
  EXPECT_EQ(next.step_ms(), 0);
  EXPECT_FALSE(next.latest_only());
  EXPECT_EQ(next.slot(), "");
  EXPECT_TRUE(next.metadata().empty());
  EXPECT_EQ(next.tensors_size(), 0);
}

template <class T>
void expect_round_trip(Router& server, Model& model, const std::vector<T>& values) {
  ASSERT_TRUE(
      model.observe().tensor("x", values.data(), values.size(), {static_cast<std::int64_t>(values.size()), 1}).send());
  const auto request = server.receive();
  auto reply = response(request.fields.request_id(), request.fields.model_id());
  *reply.add_tensors() = request.fields.tensors(0);
  server.reply(request, reply, request.payload);
  const auto result = model.get_result(patience_ms);
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_EQ((*result)["x"].dtype(), dtype_of<T>());
  const auto read = result->get<T>("x");
  ASSERT_TRUE(read) << read.error().message;
  ASSERT_EQ(read->size(), values.size());
  EXPECT_TRUE(values.empty() || std::memcmp(read->data(), values.data(), values.size() * sizeof(T)) == 0);
}

TEST_F(Live, EveryDtypeRoundTripsBitExactly) {
  auto model = connection.model("echo");
  expect_round_trip<float>(server, model, {1.5f, -0.0f, std::nanf("1"), INFINITY});
  expect_round_trip<double>(server, model, {1e300, std::numeric_limits<double>::denorm_min()});
  expect_round_trip<float16>(server, model, {float16::from_float(1.5f), {0x7E01}, {0x0001}});
  expect_round_trip<bfloat16>(server, model, {bfloat16::from_float(-3), {0x7FC1}});
  expect_round_trip<float8_e4m3fn>(server, model, {{0x7F}, {0x01}, {0x80}});
  expect_round_trip<float8_e5m2>(server, model, {{0x7C}, {0x7F}});
  expect_round_trip<std::uint8_t>(server, model, {0, 255});
  expect_round_trip<std::uint16_t>(server, model, {0, 65535, 7});
  expect_round_trip<std::uint32_t>(server, model, {0, 4294967295u});
  expect_round_trip<std::uint64_t>(server, model, {~std::uint64_t{0}});
  expect_round_trip<std::int8_t>(server, model, {-128, 127});
  expect_round_trip<std::int16_t>(server, model, {-32768, 3, 4});
  expect_round_trip<std::int32_t>(server, model, {std::numeric_limits<std::int32_t>::min()});
  expect_round_trip<std::int64_t>(server, model, {std::numeric_limits<std::int64_t>::min()});
  expect_round_trip<float>(server, model, {});

  const bool flags[] = {true, false, true};
  ASSERT_TRUE(model.observe().tensor("x", flags, 3, {3}).send());
  EXPECT_EQ(server.receive().payload[0], std::string("\1\0\1", 3));
}

TEST_F(Live, LargeTensorsTravelAloneOnceTheServerIsKnown) {
  auto model = connection.model("policy");
  const Floats large(20000, 0.5f);
  const Floats small(3, 1.0f);
  const auto send = [&] { return model.observe().tensor("small", small).tensor("large", large).send(); };
  ASSERT_TRUE(send());
  auto request = server.receive();
  EXPECT_EQ(request.payload.size(), 1u);
  server.answer(request);
  ASSERT_TRUE(model.get_result(patience_ms));
  ASSERT_TRUE(send());
  request = server.receive();
  ASSERT_EQ(request.payload.size(), 2u);
  EXPECT_EQ(request.fields.tensors(1).frame(), 1u);
  EXPECT_EQ(request.payload[1], bytes_of(large));
}

TEST_F(Live, EncodedImagesAreCheckedAndSentAsTheyAre) {
  auto model = connection.model("vision");
  const std::string png("\x89PNG\r\n\x1A\n\0\0\0\rIHDR\0\0\0\x02\0\0\0\x03\x08\x02\0\0\0", 29);
  ASSERT_TRUE(model.observe().tensor_encoded("camera", Encoding::Png, png.data(), png.size(), {3, 2, 3}).send());
  const auto request = server.receive();
  EXPECT_EQ(request.fields.tensors(0).encoding(), v1::ENCODING_PNG);
  EXPECT_EQ(request.fields.tensors(0).dtype(), v1::DTYPE_UINT8);
  EXPECT_EQ(request.payload[0], png);

  const auto refused = [&](Encoding encoding, Shape shape) {
    return model.observe().tensor_encoded("camera", encoding, png.data(), png.size(), shape).send();
  };
  EXPECT_NE(refused(Encoding::Png, {2, 3, 3}).error().message.find("(3, 2, 3)"), std::string::npos);
  EXPECT_EQ(refused(Encoding::Jpeg, {3, 2, 3}).error().code, ErrorCode::InvalidArgument);
  EXPECT_EQ(refused(Encoding::Raw, {3, 2, 3}).error().code, ErrorCode::InvalidArgument);
}

TEST_F(Live, ProgrammingErrorsNameTheFieldAndUseNoId) {
  auto model = connection.model("policy");
  const Floats two = {1, 2};
  const auto expect_error = [&](const Result<std::uint64_t>& sent, std::string_view part) {
    ASSERT_FALSE(sent);
    EXPECT_EQ(sent.error().code, ErrorCode::InvalidArgument);
    EXPECT_NE(sent.error().message.find(part), std::string::npos) << sent.error().message;
  };
  expect_error(model.observe().urgency(1.5f).send(), "urgency");
  expect_error(model.observe().urgency(std::nanf("")).send(), "urgency");
  expect_error(model.observe().latency_budget_ms(-1).send(), "latency_budget_ms");
  expect_error(model.observe().latency_budget_ms(INFINITY).send(), "latency_budget_ms");
  expect_error(model.observe().step_ms(std::nanf("")).send(), "step_ms");
  auto talkative = model.observe();
  for (int i = 0; i < 4097; ++i) talkative.metadata(std::to_string(i), "");
  expect_error(talkative.send(), "metadata: 4097 entries, at most 4096 are allowed");
  expect_error(model.observe().priority(1001).send(), "priority is 1001");
  expect_error(model.observe().slot(std::string(257, 's')).send(), "slot");
  expect_error(model.observe().slot("\xFF").send(), "slot is not UTF-8");
  expect_error(model.observe().metadata("k", "\xFF").send(), "metadata 'k'");
  expect_error(model.observe().tensor("x", two.data(), 2, {3}).send(),
               "'x': shape (3) of FLOAT32 does not fit byte_length 8");
  expect_error(model.observe().tensor("x", two.data(), 2, {-2}).send(), "negative");
  expect_error(model.observe().tensor<float>("x", nullptr, 2, {2}).send(), "null pointer");
  expect_error(model.observe().tensor("", two).send(), "key must not be empty");
  expect_error(model.observe().tensor("x", two).tensor("x", two).send(), "used twice");
  expect_error(model.observe().tensor("x", two).metadata("x", "v").send(), "metadata key 'x'");
  expect_error(model.observe().tensor_bytes("x", static_cast<DType>(9), two.data(), 8, {2}).send(), "dtype");
  expect_error(connection.model("").observe().send(), "model_id");
  expect_error(connection.model(std::string(257, 'm')).observe().send(), "model_id");
  auto spent = model.observe();
  spent.latency_budget_ms(3.2e38f).step_ms(std::numeric_limits<float>::max());
  EXPECT_EQ(*spent.send(), 1u);
  expect_error(spent.send(), "nothing to send");
}

TEST_F(Live, MessagesOverTheLimitStayHere) {
  auto options = patient();
  options.max_message_bytes = 1000;
  Connection limited(server.endpoint(), "agent-01", "", options);
  auto model = limited.model("policy");
  const Floats values(300, 1.0f);
  const auto sent = model.observe().tensor("x", values).send();
  ASSERT_FALSE(sent);
  EXPECT_NE(sent.error().message.find("max_message_bytes"), std::string::npos);
  const std::vector<std::uint8_t> part(499);
  EXPECT_FALSE(model.observe().tensor("x", part).tensor("y", part).tensor("z", part.data(), 1, {1}).send());  // gaps
  const auto told = model.observe().metadata("words", std::string(1000, 'w')).send();
  ASSERT_FALSE(told);
  EXPECT_NE(told.error().message.find("metadata"), std::string::npos);
  EXPECT_TRUE(
      model.observe().tensor("x", std::vector<std::uint8_t>(1000)).send());  // frames are limited, not their sum
  EXPECT_EQ(limited.link_state() == LinkState::Closed, false);
}

TEST_F(Live, RepliesGoToTheirModels) {
  auto first = connection.model("a");
  auto second = connection.model("b");
  ASSERT_TRUE(first.observe().send());
  ASSERT_TRUE(second.observe().send());
  const auto to_first = server.receive();
  server.answer(server.receive(), Floats{2});
  server.answer(to_first, Floats{1});
  EXPECT_EQ((*second.get_result(patience_ms))["actions"].as<float>()[0], 2);
  EXPECT_EQ((*first.get_result(patience_ms))["actions"].as<float>()[0], 1);
}

// By then what was sent has arrived, or who waits does wait. Only reading it would tell, and that is what is tested.
void let_it_arrive() { std::this_thread::sleep_for(std::chrono::milliseconds(300)); }

TEST_F(Live, WhatCameAfterAnotherCallHadWaitedIsThereAtOnce) {
  auto first = connection.model("first");
  auto second = connection.model("second");
  ASSERT_TRUE(second.observe().send());
  const auto request = server.receive();
  ASSERT_TRUE(first.observe().send());
  auto answered = std::async(std::launch::async, [&] {
    const auto other = server.receive();
    let_it_arrive();  // so that get_result waits
    server.answer(other);
  });
  ASSERT_TRUE(first.get_result(patience_ms));
  answered.get();
  server.answer(request);
  let_it_arrive();
  EXPECT_TRUE(second.next_reply(0));
}

TEST(LiveTime, WhatCameInTimeIsNotOverdueForBeingReadLate) {
  Router server;
  auto options = patient();
  options.request_timeout_ms = 100;
  Connection connection(server.endpoint(), "agent-01", "", options);
  auto model = connection.model("policy");
  ASSERT_TRUE(model.observe().send());
  EXPECT_FALSE(model.next_reply(0));
  server.answer(server.receive());
  let_it_arrive();
  EXPECT_TRUE(model.get_result(patience_ms));
}

// With a full receive queue ZMQ would read no heartbeats. It is no smaller for a small send queue.
TEST(LiveTime, UnreadRepliesDoNotCostTheLink) {
  constexpr int requests = 1100;
  auto options = patient();
  options.heartbeat_interval_ms = 300;
  options.send_queue_messages = 100;
  Router server;
  Connection connection(server.endpoint(), "agent-01", "", options);
  auto model = connection.model("policy");
  std::vector<Router::Request> received;
  for (int i = 0; i < requests; ++i) {
    ASSERT_TRUE(model.observe().send());
    received.push_back(server.receive());
  }
  for (const auto& request : received) server.answer(request);
  std::this_thread::sleep_for(std::chrono::milliseconds(2000));  // that this time passes is what is tested
  for (int i = 0; i < requests; ++i) {
    const auto reply = model.next_reply(patience_ms);
    ASSERT_TRUE(reply) << i;
    EXPECT_TRUE(reply->ok()) << i;
  }
  EXPECT_EQ(connection.counters()->reconnects, 0u);
  EXPECT_EQ(connection.link_state(), LinkState::Up);
}

TEST_F(Live, WhatNobodyAwaitsAnyMoreIsReadByALaterLook) {
  auto model = connection.model("policy");
  ASSERT_TRUE(model.observe().send());
  const auto request = server.receive();
  for (int i = 0; i < 3; ++i) server.answer(request);
  ASSERT_TRUE(model.get_result(patience_ms));
  for (const auto start = Clock::now(); connection.counters()->late_replies < 2;) {
    ASSERT_LT(since_ms(start), patience_ms);
  }
  greet(model);
}

TEST_F(Live, LateAndOutOfOrderRepliesAreNeverTakenForNewOnes) {
  auto model = connection.model("policy");
  std::vector<Router::Request> requests;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(model.observe().send());
    requests.push_back(server.receive());
  }
  server.answer(requests[1], Floats{2});
  EXPECT_EQ((*model.get_result(patience_ms))["actions"].as<float>()[0], 2);
  server.answer(requests[0], Floats{1});
  server.answer(requests[2], Floats{3});
  EXPECT_EQ((*model.get_result(patience_ms))["actions"].as<float>()[0], 3);
  EXPECT_EQ(connection.counters()->late_replies, 1u);
}

TEST_F(Live, GetResultTimesOutAndAbandons) {
  auto model = connection.model("policy");
  ASSERT_TRUE(model.observe().send());
  const auto request = server.receive();
  EXPECT_EQ(model.get_result(0).error().code, ErrorCode::TimedOut);  // a poll abandons nothing
  const auto start = Clock::now();
  const auto result = model.get_result(30);
  EXPECT_GE(since_ms(start), 30);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().status, Status::TimedOut);
  EXPECT_EQ(model.last_status(), Status::TimedOut);
  EXPECT_EQ(model.get_result(patience_ms).error().code, ErrorCode::NothingOutstanding);  // at once
  server.answer(request);
  ASSERT_TRUE(model.observe().send());
  server.answer(server.receive(), Floats{9});
  EXPECT_EQ((*model.get_result(patience_ms))["actions"].as<float>()[0], 9);
  EXPECT_EQ(connection.counters()->late_replies, 1u);
  EXPECT_EQ(connection.counters()->timed_out, 1u);
}

TEST_F(Live, ATimeoutBelowZeroIsZeroAndNaNIsRefused) {
  auto model = connection.model("policy");
  const auto abandoned_by = [&](double timeout_ms) {
    const auto start = Clock::now();
    (void)model.get_result(timeout_ms);
    (void)model.next_reply(timeout_ms);
    (void)model.act(timeout_ms);
    EXPECT_LT(since_ms(start), patience_ms);
    return connection.counters()->timed_out;
  };
  ASSERT_TRUE(model.observe().send());
  const auto request = server.receive();
  constexpr double infinite = std::numeric_limits<double>::infinity();
  for (const double below : {-0.0, -1e-300, -5.0, -infinite}) {
    EXPECT_EQ(abandoned_by(below), 0u) << below;
    EXPECT_EQ(model.get_result(below).error().message, "no reply yet");
    EXPECT_EQ(connection.ping(below).error().code, ErrorCode::TimedOut);
    server.receive();
    EXPECT_TRUE(connection.wait_until_up(below));
  }
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(abandoned_by(nan), 0u);
  for (const auto& error : {model.get_result(nan).error(), model.next_reply(nan).error(), *model.act(nan).error,
                            connection.ping(nan).error()}) {
    EXPECT_EQ(error.code, ErrorCode::InvalidArgument);
    EXPECT_EQ(error.message, "timeout_ms is NaN, must be a number");
  }
  server.answer(request);
  EXPECT_TRUE(model.get_result(infinite));
}

TEST_F(Live, NotOkRepliesCarryStatusAndWords) {
  auto model = connection.model("policy");
  ASSERT_TRUE(model.observe().send());
  const auto request = server.receive();
  auto fields = response(1, "policy", Status::ModelError);
  fields.set_error("division by zero");
  server.reply(request, fields);
  const auto result = model.get_result(patience_ms);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::NotOk);
  EXPECT_EQ(result.error().status, Status::ModelError);
  EXPECT_EQ(result.error().message, "the request ended MODEL_ERROR: division by zero");
  EXPECT_EQ(model.last_status(), Status::ModelError);
  EXPECT_EQ(model.last_error(), "division by zero");
}

TEST_F(Live, TheWholeReplyIsThere) {
  auto model = connection.model("policy");
  ASSERT_TRUE(model.observe().slot("left").send());
  const auto request = server.receive();
  auto fields = response(1, "policy", Status::Rejected, {5});
  fields.set_reason(v1::REASON_CANNOT_MEET_DEADLINE);
  fields.set_error("too late");
  fields.set_response_id("r-1");
  fields.set_timestamp_ns(17);
  fields.set_observation_timestamp_ns(request.fields.timestamp_ns());
  fields.set_retry_after_ms(60000);
  fields.set_phase_shift_ms(2.5f);
  fields.mutable_timing()->set_queue_ms(1.5f);
  fields.mutable_timing()->set_batch_size(4);
  fields.mutable_timing()->set_replica("policy#1");
  (*fields.mutable_metadata())["b"] = "2";
  (*fields.mutable_metadata())["a"] = "1";
  server.reply(request, fields, {bytes_of(Floats{5})});
  const auto next = model.next_reply(patience_ms);
  ASSERT_TRUE(next);
  const Reply reply = *next;
  EXPECT_FALSE(reply.ok());
  EXPECT_EQ(reply.status(), Status::Rejected);
  EXPECT_EQ(reply.reason(), Reason::CannotMeetDeadline);
  EXPECT_EQ(reply.error(), "too late");
  EXPECT_FALSE(reply.is_local());
  EXPECT_EQ(reply.model_id(), "policy");
  EXPECT_EQ(reply.slot(), "left");
  EXPECT_EQ(reply.response_id(), "r-1");
  EXPECT_EQ(reply.timestamp_ns(), 17u);
  EXPECT_EQ(reply.observation_timestamp_ns(), request.fields.timestamp_ns());
  EXPECT_EQ(reply.retry_after_ms(), 60000);
  EXPECT_EQ(reply.phase_shift_ms(), 2.5f);
  EXPECT_EQ(reply.protocol_version(), 2u);
  EXPECT_EQ(reply.timing().queue_ms, 1.5f);
  EXPECT_EQ(reply.timing().batch_size, 4u);
  EXPECT_EQ(reply.timing().replica, "policy#1");
  EXPECT_EQ(reply.metadata().size(), 2u);
  EXPECT_EQ(reply.metadata()[0].key, "a");
  EXPECT_EQ(reply.metadata("b"), "2");
  EXPECT_EQ(reply.metadata("c").data(), nullptr);
  EXPECT_EQ(model.take_phase_shift_ms(), 2.5);

  // Held off from here on: answered without the server.
  ASSERT_EQ(*model.observe().send(), 2u);
  const auto held = model.next_reply(0);
  ASSERT_TRUE(held);
  EXPECT_TRUE(held->is_local());
  EXPECT_EQ(held->reason(), Reason::CannotMeetDeadline);
  EXPECT_EQ(connection.counters()->held_off, 1u);
  EXPECT_FALSE(server.has_message(0));
}

TEST_F(Live, NextReplyAbandonsNothing) {
  auto model = connection.model("policy");
  EXPECT_EQ(model.next_reply(patience_ms).error().code, ErrorCode::NothingOutstanding);
  ASSERT_TRUE(model.observe().send());
  const auto request = server.receive();
  EXPECT_EQ(model.next_reply(5).error().code, ErrorCode::TimedOut);
  server.answer(request);
  EXPECT_EQ(model.next_reply(patience_ms)->request_id(), 1u);
}

TEST_F(Live, CancelIsSentForOutstandingRequests) {
  auto model = connection.model("policy");
  greet(model);
  const auto id = *model.observe().send();
  server.receive();
  EXPECT_FALSE(model.cancel(id + 1));
  EXPECT_TRUE(model.cancel(id));
  const auto cancel = server.receive();
  EXPECT_EQ(cancel.fields.kind(), v1::KIND_CANCEL);
  EXPECT_EQ(cancel.fields.request_id(), id);
  EXPECT_EQ(cancel.fields.client().id(), "agent-01");
  EXPECT_EQ(cancel.fields.priority(), 1u);
  EXPECT_GT(cancel.fields.timestamp_ns(), 1'600'000'000'000'000'000u);
  EXPECT_EQ(cancel.payload, std::vector<std::string>{""});
  server.reply(cancel, response(id, "policy", Status::Cancelled));
  EXPECT_EQ(model.next_reply(patience_ms)->status(), Status::Cancelled);
  EXPECT_FALSE(model.cancel(id));
}

TEST_F(Live, PingTellsOfTheModels) {
  auto pinged = std::async(std::launch::async, [&] { return connection.ping(patience_ms); });
  const auto request = server.receive();
  EXPECT_EQ(request.fields.kind(), v1::KIND_PING);
  EXPECT_EQ(request.fields.model_id(), "");
  auto fields = response(request.fields.request_id(), "");
  (*fields.mutable_metadata())["model:policy"] = "ready";
  server.reply(request, fields);
  const auto reply = pinged.get();
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->metadata("model:policy"), "ready");
  EXPECT_EQ(connection.ping(5).error().code, ErrorCode::TimedOut);
}

TEST_F(Live, APingThatIsRefusedIsNoAnswer) {
  auto pinged = std::async(std::launch::async, [&] { return connection.ping(patience_ms); });
  server.answer(server.receive(), Status::ShuttingDown);
  const auto reply = pinged.get();
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, ErrorCode::NotOk);
  EXPECT_EQ(reply.error().status, Status::ShuttingDown);
}

TEST_F(Live, AgainstAV1Server) {
  std::vector<std::string> notices;
  auto options = patient();
  options.on_notice = [&](std::string_view text) { notices.emplace_back(text); };
  Connection old(server.endpoint(), "agent-01", "", options);
  auto model = old.model("policy");
  const Floats large(20000, 0.5f);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(model.observe().tensor("small", Floats{1}).tensor("large", large).send());
    const auto request = server.receive();
    EXPECT_EQ(request.payload.size(), 1u);
    server.reply(request, response(0, "policy", Status::Ok, {1.0f}), {bytes_of(Floats{1.0f})});
    EXPECT_EQ(model.get_result(patience_ms)->request_id(), static_cast<std::uint64_t>(i + 1));
  }
  EXPECT_EQ(notices.size(), 1u);
  EXPECT_EQ(old.ping(patience_ms).error().code, ErrorCode::Unsupported);
  const auto id = *model.observe().send();
  EXPECT_FALSE(model.cancel(id));
}

TEST_F(Live, MalformedMessagesAreCountedAndHarmless) {
  auto model = connection.model("policy");
  ASSERT_TRUE(model.observe().send());
  const auto request = server.receive();
  const auto& id = request.routing_id;
  const auto envelope = response(1, "policy").SerializeAsString();
  server.send_frames({id, ""});
  server.send_frames({id, "not empty", envelope, ""});
  server.send_frames({id, "", "\xFF\xFF", ""});
  server.send_frames({id, "", envelope});  // no payload: its request is known, so it ends that
  const auto reply = model.next_reply(patience_ms);
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->status(), Status::ModelError);
  EXPECT_TRUE(reply->is_local());
  EXPECT_EQ(connection.counters()->bad_replies, 3u);

  ASSERT_TRUE(model.observe().send());
  std::vector<std::string> many = {id, "", response(2, "policy").SerializeAsString()};
  many.resize(5000);  // frames that no tensor lies in
  server.send_frames(many);
  EXPECT_EQ(model.next_reply(patience_ms)->status(), Status::Ok);
}

TEST(LiveLink, NoServerIsNotSentAfterTheFirstSendHasWaited) {
  std::string endpoint;
  {
    Router gone;
    endpoint = gone.endpoint();
  }
  ConnectionOptions options;
  options.connect_timeout_ms = 60;
  auto start = Clock::now();
  Connection connection(endpoint, "agent-01", "", options);
  auto model = connection.model("policy");
  EXPECT_EQ(connection.link_state(), LinkState::Connecting);
  const auto first = model.observe().send();
  EXPECT_GE(since_ms(start), 60);
  ASSERT_FALSE(first);
  EXPECT_EQ(first.error().code, ErrorCode::NotSent);
  EXPECT_EQ(first.error().message, "not sent: the link is CONNECTING");
  EXPECT_EQ(first.error().request_id, 1u);

  options.connect_timeout_ms = 30000;
  Connection patient_one(endpoint, "agent-01", "", options);
  EXPECT_FALSE(patient_one.wait_until_up(10));
  EXPECT_EQ(connection.counters()->not_sent, 1u);
  EXPECT_EQ(model.observe().send().error().request_id, 2u);
  EXPECT_EQ(model.get_result(patience_ms).error().code, ErrorCode::NothingOutstanding);
  EXPECT_EQ(connection.counters()->not_sent, 2u);
}

TEST(LiveLink, PingWaitsForTheFirstHandshakeWithinItsOwnTimeout) {
  std::string endpoint;
  {
    Router gone;
    endpoint = gone.endpoint();
  }
  ConnectionOptions options;
  options.connect_timeout_ms = patience_ms;
  const auto start = Clock::now();
  Connection connection(endpoint, "agent-01", "", options);
  const auto pinged = connection.ping(50);
  ASSERT_FALSE(pinged);
  EXPECT_EQ(pinged.error().code, ErrorCode::NotSent);
  EXPECT_GE(since_ms(start), 50);
  EXPECT_LT(since_ms(start), patience_ms);
}

TEST(LiveLink, RestartOfTheServer) {
  std::vector<LinkState> seen;
  auto options = patient();
  options.heartbeat_interval_ms = 300;
  options.on_link_change = [&](LinkState state) { seen.push_back(state); };
  auto server = std::make_unique<Router>();
  const auto endpoint = server->endpoint();
  Connection connection(endpoint, "agent-01", "", options);
  auto model = connection.model("policy");
  ASSERT_TRUE(model.observe().send());
  server->receive();
  server.reset();

  const auto lost = model.next_reply(patience_ms);  // returns when the link does go down
  ASSERT_TRUE(lost) << lost.error().message;
  EXPECT_EQ(lost->status(), Status::LinkLost);
  EXPECT_EQ(connection.link_state(), LinkState::Down);
  const auto down = model.observe().send();  // never waits
  ASSERT_FALSE(down);
  EXPECT_EQ(down.error().code, ErrorCode::NotSent);
  EXPECT_EQ(model.act(patience_ms).source, Source::None);

  server = std::make_unique<Router>(endpoint);
  ASSERT_TRUE(connection.wait_until_up(patience_ms));
  EXPECT_FALSE(server->has_message(0));  // nothing stale
  ASSERT_TRUE(model.observe().send());
  const auto request = server->receive();
  EXPECT_EQ(request.fields.request_id(), 3u);
  server->answer(request);
  EXPECT_TRUE(model.get_result(patience_ms));
  EXPECT_EQ(connection.counters()->reconnects, 1u);
  EXPECT_EQ(connection.counters()->link_lost, 1u);
  EXPECT_EQ(seen, (std::vector<LinkState>{LinkState::Up, LinkState::Down, LinkState::Up}));
}

TEST(LiveLink, AReplyThatIsTooLargeCostsTheLinkForAMomentOnly) {
  Router server;
  auto options = patient();
  options.max_message_bytes = 10'000;
  Connection connection(server.endpoint(), "agent-01", "", options);
  auto model = connection.model("policy");
  ASSERT_TRUE(model.observe().send());
  server.answer(server.receive(), Floats(10'000, 1.0f));
  EXPECT_EQ(model.get_result(patience_ms).error().status, Status::LinkLost);
  ASSERT_TRUE(connection.wait_until_up(patience_ms));
  ASSERT_TRUE(model.observe().send());
  server.answer(server.receive());
  EXPECT_TRUE(model.get_result(patience_ms));
}

TEST(LiveLink, ThatAnotherProgramHadThePortDoesNotMatterLater) {
  void* context = zmq_ctx_new();
  void* publisher = zmq_socket(context, ZMQ_PUB);
  ASSERT_EQ(zmq_bind(publisher, "tcp://127.0.0.1:*"), 0);
  char endpoint[256];
  std::size_t size = sizeof endpoint;
  ASSERT_EQ(zmq_getsockopt(publisher, ZMQ_LAST_ENDPOINT, endpoint, &size), 0);
  Connection connection(endpoint, "agent-01", "");
  EXPECT_FALSE(connection.wait_until_up(300));
  zmq_close(publisher);
  zmq_ctx_term(context);
  Router server(endpoint);
  EXPECT_TRUE(connection.wait_until_up(patience_ms));
}

TEST(LiveLink, TheLinkCallbackMayUseTheConnection) {
  Router server;
  Connection* inside = nullptr;
  LinkState state = LinkState::Closed;
  auto options = patient();
  options.on_link_change = [&](LinkState) { state = inside->link_state(); };
  Connection connection(server.endpoint(), "agent-01", "", options);
  inside = &connection;
  ASSERT_TRUE(connection.wait_until_up(patience_ms));
  EXPECT_EQ(state, LinkState::Up);
}

TEST(LiveLink, StatesAreToldInOrderWhoeverNoticesThem) {
  Router server;
  std::promise<void> told_up, go_on;
  std::mutex mutex;
  std::vector<LinkState> told;
  auto options = patient();
  options.on_link_change = [&](LinkState state) {
    if (state == LinkState::Up) {
      told_up.set_value();
      go_on.get_future().wait();
    }
    const std::lock_guard<std::mutex> lock(mutex);
    told.push_back(state);
  };
  Connection connection(server.endpoint(), "agent-01", "", options);
  auto up = std::async(std::launch::async, [&] { return connection.wait_until_up(patience_ms); });
  told_up.get_future().wait();
  server.stop();
  for (const auto start = Clock::now(); connection.link_state() != LinkState::Down;) {
    ASSERT_LT(since_ms(start), patience_ms);
    std::this_thread::yield();
  }
  go_on.set_value();
  EXPECT_TRUE(up.get());
  EXPECT_EQ(told, (std::vector<LinkState>{LinkState::Up, LinkState::Down}));
}

TEST(LiveLink, FullSendQueueIsNotSentAtOnce) {
  Router server;
  auto options = patient();
  options.send_queue_messages = 1;
  Connection connection(server.endpoint(), "agent-01", "", options);
  auto model = connection.model("policy");
  const Floats large(1'000'000, 1.0f);  // 4 MB each: more than queues and kernel buffers hold
  Result<std::uint64_t> sent = std::uint64_t{0};
  int sends = 0;
  for (; sent && sends < 1000; ++sends) sent = model.observe().tensor("x", large).send();
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ErrorCode::NotSent);
  EXPECT_EQ(sent.error().message, "not sent: the link is UP, the send queue is full");
  EXPECT_EQ(sent.error().request_id, static_cast<std::uint64_t>(sends));
  EXPECT_EQ(connection.counters()->not_sent, 1u);
}

TEST(LiveLink, CloseAndWhatIsLeftOfIt) {
  auto server = std::make_unique<Router>();
  auto connection = std::make_unique<Connection>(server->endpoint(), "agent-01", "", patient());
  auto model = connection->model("policy");
  ASSERT_TRUE(model.observe().send());
  server->receive();
  ASSERT_TRUE(model.observe().send());
  server.reset();
  const auto start = Clock::now();
  connection.reset();
  EXPECT_LT(since_ms(start), patience_ms);

  // The model outlives its connection: errors, and the outcomes that nobody has fetched yet.
  EXPECT_EQ(model.next_reply(patience_ms)->status(), Status::LinkLost);
  EXPECT_EQ(model.next_reply(patience_ms)->request_id(), 2u);
  EXPECT_EQ(model.next_reply(patience_ms).error().code, ErrorCode::Closed);
  EXPECT_EQ(model.get_result(patience_ms).error().code, ErrorCode::Closed);
  EXPECT_EQ(model.observe().send().error().code, ErrorCode::Closed);
  EXPECT_FALSE(model.cancel(2));
  EXPECT_EQ(model.act(patience_ms).error->code, ErrorCode::Closed);
}

TEST(LiveLink, BadSettingsShowInTheFirstSendOrAtOnce) {
  const auto message_of = [](std::string_view address, std::string_view client, ConnectionOptions options) {
    Connection connection(address, client, "", options);
    EXPECT_EQ(connection.link_state(), LinkState::Closed);
    const auto sent = connection.model("policy").observe().send();
    EXPECT_FALSE(sent);
    EXPECT_EQ(sent.error().code, ErrorCode::InvalidArgument);
    const auto opened = Connection::open(address, client, "", options);
    EXPECT_FALSE(opened);
    EXPECT_EQ(opened.error().message, sent.error().message);
    return sent.error().message;
  };
  EXPECT_EQ(
      message_of("localhost", "a", {}),
      "address 'localhost' must be tcp://HOST:PORT, with a port of 1 to 65535 and an IPv6 address in brackets, or "
      "ipc://PATH");
  const auto too_long = "ipc:///" + std::string(200, 'x');  // for the system, as ZMQ says
  EXPECT_NE(message_of(too_long, "a", {}).find("address '" + too_long + "' must be"), std::string::npos);
  EXPECT_NE(message_of("localhost:5555", "", {}).find("client_id"), std::string::npos);
  EXPECT_NE(message_of("localhost:5555", "\xFF", {}).find("UTF-8"), std::string::npos);
  ConnectionOptions options;
  options.heartbeat_interval_ms = 100;
  EXPECT_NE(message_of("localhost:5555", "a", options).find("heartbeat_interval_ms"), std::string::npos);
  EXPECT_TRUE(Connection::open("localhost:5555", "a", ""));  // no scheme: TCP
  EXPECT_TRUE(Connection::open("[::1]:5555", "a", ""));
}

TEST_F(Live, MovedObjectsGoOnWorking) {
  auto model = connection.model("policy");
  Connection moved = std::move(connection);
  auto moved_model = std::move(model);
  auto observation = moved_model.observe();
  auto moved_observation = std::move(observation);
  ASSERT_TRUE(moved_observation.send());
  server.answer(server.receive());
  auto result = moved_model.get_result(patience_ms);
  ASSERT_TRUE(result);
  const Reply copy = *result;
  { Connection closed = std::move(moved); }
  EXPECT_EQ(copy["actions"].as<float>()[2], 3);  // replies outlive all of it
}

TEST_F(Live, ConcurrentUseIsAnError) {
  ModelOptions model_options;
  model_options.fallback = Fallback::zero(*TensorsBuilder().add_zeros("actions", DType::Float32, {3}).build());
  auto model = connection.model("policy", model_options);
  ASSERT_TRUE(model.observe().send());
  std::promise<void> started;
  auto waiting = std::async(std::launch::async, [&] {
    started.set_value();
    return model.get_result(patience_ms);
  });
  started.get_future().wait();
  auto other = connection.model("other");
  while (other.get_result(0).error().code != ErrorCode::ConcurrentUse) std::this_thread::yield();
  EXPECT_EQ(other.observe().send().error().code, ErrorCode::ConcurrentUse);
  EXPECT_EQ(other.next_reply(0).error().code, ErrorCode::ConcurrentUse);
  const auto action = model.act(0);
  EXPECT_EQ(action.error->code, ErrorCode::ConcurrentUse);
  EXPECT_EQ(action.source, Source::Zero);
  EXPECT_EQ(action["actions"].as<float>().size(), 3u);
  EXPECT_EQ(connection.ping(0).error().code, ErrorCode::ConcurrentUse);
  EXPECT_EQ(connection.counters().error().code, ErrorCode::ConcurrentUse);
  EXPECT_FALSE(connection.wait_until_up(0));
  EXPECT_FALSE(other.cancel(1));
  EXPECT_EQ(connection.link_state(), LinkState::Up);  // as last seen
  connection.close();                                 // the waiting call ends first, then it closes
  server.answer(server.receive());
  EXPECT_TRUE(waiting.get());
  EXPECT_EQ(connection.link_state(), LinkState::Closed);
}

TEST_F(Live, WhoOnlyLooksCostsNobodyACall) {
  auto model = connection.model("policy");
  greet(model);
  std::atomic<bool> over{false};
  std::atomic<std::uint64_t> looks{0};
  std::vector<std::future<void>> watching;
  for (int i = 0; i < 2; ++i) {
    watching.push_back(std::async(std::launch::async, [&] {
      while (!over) {
        EXPECT_EQ(connection.link_state(), LinkState::Up);
        (void)connection.counters();
        ++looks;
      }
    }));
  }
  for (int i = 0; i < 20'000 || looks < 20'000; ++i) {
    const auto found = model.act(0).error;
    ASSERT_TRUE(found);
    ASSERT_EQ(found->code, ErrorCode::NothingOutstanding) << found->message;
  }
  over = true;
}

TEST_F(Live, HandlesOfOneIdKnowHowItEnded) {
  auto one = connection.model("policy");
  auto other = connection.model("policy");
  EXPECT_FALSE(other.last_status());
  greet(one);
  EXPECT_EQ(other.last_status(), Status::Ok);
}

#if defined(__unix__)
TEST_F(Live, TheChildOfAForkIsToldAndDoesNotHang) {
  auto model = connection.model("policy");
  greet(model);
  ASSERT_TRUE(model.observe().send());
  const auto child = fork();
  if (child == 0) {
    int wrong = 0;
    const auto sent = model.observe().send();
    if (sent || sent.error().code != ErrorCode::Closed) wrong |= 1;
    if (sent || sent.error().message.find("fork") == std::string::npos) wrong |= 2;
    if (connection.link_state() != LinkState::Closed) wrong |= 4;
    const auto lost = model.next_reply(patience_ms);
    if (!lost || lost->status() != Status::LinkLost) wrong |= 8;
    if (model.get_result(patience_ms)) wrong |= 16;
    { const Connection closed = std::move(connection); }
    _exit(wrong);
  }
  ASSERT_GT(child, 0);
  int status = 0;
  for (const auto start = Clock::now(); waitpid(child, &status, WNOHANG) == 0;) {
    if (since_ms(start) > patience_ms) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      FAIL() << "the child hangs";
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  server.answer(server.receive());  // to the parent, who goes on
  EXPECT_TRUE(model.get_result(patience_ms));
}
#endif

TEST_F(Live, ActFallsBackWithinItsTimeout) {
  ModelOptions options;
  options.step_ms = 10;
  options.fallback = Fallback::hold(600'000);
  auto model = connection.model("policy", options);
  EXPECT_EQ(model.act(patience_ms).source, Source::None);  // nothing asked, nothing to wait for

  ASSERT_TRUE(model.observe().send());
  server.answer(server.receive(), Floats{4, 5});
  const auto fresh = model.act(patience_ms);
  EXPECT_EQ(fresh.source, Source::Fresh);
  EXPECT_EQ(fresh["actions"].as<float>()[1], 5);
  EXPECT_EQ(fresh.steps_late, static_cast<std::uint64_t>(fresh.age_ms / 10));

  ASSERT_TRUE(model.observe().send());
  server.receive();
  const auto held = model.act(20);
  EXPECT_EQ(held.source, Source::Hold);
  EXPECT_EQ(held["actions"].as<float>()[1], 5);
  EXPECT_EQ(held.error->code, ErrorCode::TimedOut);
  EXPECT_GE(held.age_ms, 20);
  EXPECT_GE(held.steps_late, 2u);

  ASSERT_TRUE(model.observe().send());
  server.answer(server.receive(), Status::Expired);
  const auto expired = model.act(patience_ms);  // at once
  EXPECT_EQ(expired.source, Source::Hold);
  EXPECT_EQ(expired.error->status, Status::Expired);

  EXPECT_TRUE(model.set_fallback(Fallback::zero()));
  const auto zero = model.act(patience_ms);
  EXPECT_EQ(zero.source, Source::Zero);
  EXPECT_EQ(zero["actions"].as<float>()[1], 0);
  EXPECT_EQ(zero["actions"].as<float>().size(), 2u);
}

TEST_F(Live, TenThousandInAPipeline) {
  auto model = connection.model("policy");
  constexpr std::uint64_t requests = 10000;
  auto serving = std::async(std::launch::async, [&] {
    for (std::uint64_t i = 0; i < requests; ++i) server.answer(server.receive(), Floats{static_cast<float>(i)});
  });
  std::uint64_t sent = 0;
  std::uint64_t received = 0;
  double sum = 0;
  const auto take = [&](double timeout_ms) {
    const auto reply = model.next_reply(timeout_ms);
    if (!reply) return false;
    EXPECT_EQ(reply->status(), Status::Ok);
    sum += static_cast<double>((*reply)["actions"].as<float>()[0]);
    ++received;
    return true;
  };
  while (sent < requests) {
    if (model.observe().tensor("x", Floats{1}).send()) {
      ++sent;
    } else {
      ASSERT_TRUE(take(patience_ms));  // the queue is full: make room
    }
  }
  while (received < requests) ASSERT_TRUE(take(patience_ms));
  serving.get();
  EXPECT_EQ(sum, requests * (requests - 1) / 2.0);
  EXPECT_EQ(connection.counters()->ok, requests);
}

TEST_F(Live, SixtyFourMegabytes) {
  auto model = connection.model("policy");
  std::vector<std::uint32_t> values(16 * 1024 * 1024);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint32_t>(i * 2654435761u);
  ASSERT_TRUE(model.observe().tensor("x", values).send());
  const auto request = server.receive();
  auto reply = response(1, "policy");
  *reply.add_tensors() = request.fields.tensors(0);
  server.reply(request, reply, request.payload);
  const auto result = model.get_result(patience_ms);
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_EQ(std::memcmp((*result)["x"].as<std::uint32_t>().data(), values.data(), values.size() * 4), 0);
}

TEST(Version, IsTheProjects) { EXPECT_STREQ(version(), "2.0.0"); }

}  // namespace
}  // namespace inferential
