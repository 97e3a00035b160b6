// Every rule of the protocol's section 6, on a clock of the test's own.

#include "cpp/src/session.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "messages.hpp"

namespace inferential {
namespace {

using namespace std::chrono_literals;
using Route = Session::Ticket::Route;
using Outcome = Session::Taken::Outcome;
using test::bytes_of;
using test::message_of;
using test::response;

class SessionTest : public testing::Test {
 protected:
  SessionTest() { session.link_up(); }

  static Session::Options small_inbox() {
    Session::Options options;
    options.inbox_replies = 8;
    return options;
  }

  std::uint64_t observe(Session::ModelIndex model, std::string_view slot = "", float step_ms = 0) {
    const auto ticket = session.open_observe(model, slot, step_ms, 12345, now);
    if (ticket.route == Route::Transmit) session.transmitted(ticket.request_id, true);
    return ticket.request_id;
  }

  void reply(const v1::ModelResponse& fields, const std::vector<std::string>& payload = {""}) {
    session.receive(message_of(*pool, fields, payload), true, now);
  }
  void reply(std::uint64_t request_id, Status status = Status::Ok) { reply(response(request_id, "policy", status)); }

  std::uint64_t result() {
    auto taken = session.take_result(policy);
    return taken.outcome == Outcome::Reply ? taken.message->request_id : 0;
  }

  std::shared_ptr<MessagePool> pool = std::make_shared<MessagePool>();
  Session session{small_inbox(), pool};
  Session::ModelIndex policy = session.model("policy");
  Session::ModelIndex other = session.model("other");
  Time now = 100s;
};

// ---- 6.1 link

TEST_F(SessionTest, LinkStates) {
  Session fresh(small_inbox(), pool);
  EXPECT_EQ(fresh.link_state(), LinkState::Connecting);
  fresh.link_down(now);  // a handshake that failed
  EXPECT_EQ(fresh.link_state(), LinkState::Connecting);
  fresh.link_up();
  EXPECT_EQ(fresh.link_state(), LinkState::Up);
  fresh.link_down(now);
  EXPECT_EQ(fresh.link_state(), LinkState::Down);
  EXPECT_EQ(fresh.counters().reconnects, 0u);
  fresh.link_up();
  EXPECT_EQ(fresh.counters().reconnects, 1u);
  fresh.close(now);
  EXPECT_EQ(fresh.link_state(), LinkState::Closed);
  fresh.link_up();
  EXPECT_EQ(fresh.link_state(), LinkState::Closed);
}

TEST_F(SessionTest, LinkLossEndsAllOutstandingAtOnce) {
  observe(policy);
  observe(other);
  reply(1);
  observe(policy);
  session.link_down(now + 5ms);
  EXPECT_EQ(session.counters().link_lost, 2u);

  EXPECT_EQ(session.take_next(policy).message->status, Status::Ok);
  const auto lost = session.take_next(policy);
  ASSERT_EQ(lost.outcome, Outcome::Reply);
  EXPECT_EQ(lost.message->status, Status::LinkLost);
  EXPECT_EQ(lost.message->request_id, 3u);
  EXPECT_TRUE(lost.message->local);
  EXPECT_EQ(lost.message->received_at, now + 5ms);
  EXPECT_EQ(session.take_next(policy).outcome, Outcome::NothingOutstanding);
  EXPECT_EQ(session.take_next(other).message->request_id, 2u);

  session.link_up();
  reply(2);  // too late, after the reconnect
  EXPECT_EQ(session.counters().late_replies, 1u);
  EXPECT_EQ(observe(policy), 4u);  // ids go on
}

TEST_F(SessionTest, LinkLossForgetsWhatWasLearned) {
  observe(policy);
  auto fields = response(1, "policy", Status::Rejected);
  fields.set_retry_after_ms(1000);
  reply(fields);
  EXPECT_EQ(session.server(), Session::Server::V2);
  session.link_down(now);
  session.link_up();
  EXPECT_EQ(session.server(), Session::Server::Unknown);
  EXPECT_EQ(session.open_observe(policy, "", 0, 0, now).route, Route::Transmit);
}

TEST_F(SessionTest, CloseEndsOutstandingLinkLost) {
  observe(policy);
  session.close(now);
  EXPECT_EQ(session.take_next(policy).message->status, Status::LinkLost);
  EXPECT_EQ(session.open_observe(policy, "", 0, 0, now).route, Route::NotSent);
}

// ---- 6.2 sending

TEST_F(SessionTest, RequestIdsCountUpThroughEveryOutcome) {
  EXPECT_EQ(observe(policy), 1u);
  EXPECT_EQ(observe(other), 2u);
  const auto refused = session.open_observe(policy, "", 0, 0, now);
  session.transmitted(refused.request_id, false);
  EXPECT_EQ(refused.request_id, 3u);
  session.link_down(now);
  EXPECT_EQ(session.open_observe(policy, "", 0, 0, now).request_id, 4u);
  session.link_up();
  EXPECT_EQ(observe(policy), 5u);
  EXPECT_EQ(session.counters().sent, 3u);
  EXPECT_EQ(session.counters().not_sent, 2u);
}

TEST_F(SessionTest, NotSentIsToldNowhereElse) {
  const auto ticket = session.open_observe(policy, "", 0, 0, now);
  ASSERT_EQ(ticket.route, Route::Transmit);
  session.transmitted(ticket.request_id, false);
  EXPECT_EQ(session.take_next(policy).outcome, Outcome::NothingOutstanding);
  Session unconnected(small_inbox(), pool);
  const auto model = unconnected.model("policy");
  EXPECT_EQ(unconnected.open_observe(model, "", 0, 0, now).route, Route::NotSent);
  EXPECT_EQ(unconnected.take_next(model).outcome, Outcome::NothingOutstanding);
}

TEST_F(SessionTest, RequestTimeoutGoesToTheInbox) {
  observe(policy);
  now += 10s;
  observe(policy);
  EXPECT_EQ(session.next_expiry(), 130s);
  session.expire(129999ms);
  EXPECT_EQ(session.take_next(policy).outcome, Outcome::Wait);
  session.expire(130s);
  const auto taken = session.take_next(policy);
  EXPECT_EQ(taken.message->status, Status::TimedOut);
  EXPECT_EQ(taken.message->request_id, 1u);
  EXPECT_EQ(session.take_next(policy).outcome, Outcome::Wait);
  EXPECT_EQ(session.next_expiry(), 140s);
  reply(1);
  EXPECT_EQ(session.counters().late_replies, 1u);
  EXPECT_EQ(session.counters().timed_out, 1u);
}

// ---- 6.3 matching

TEST_F(SessionTest, RepliesAreMatchedByRequestId) {
  observe(policy, "left", 20);
  observe(other);
  observe(policy);
  reply(response(3, "policy"));
  reply(response(2, "other"));
  EXPECT_EQ(session.take_next(policy).message->request_id, 3u);
  EXPECT_EQ(session.take_next(other).message->request_id, 2u);
  now += 7ms;
  reply(1);
  const auto taken = session.take_next(policy);
  EXPECT_EQ(taken.message->slot, "left");
  EXPECT_EQ(taken.message->step_ms, 20);
  EXPECT_EQ(taken.message->received_at - taken.message->sent_at, 7ms);
  EXPECT_EQ(taken.message->observation_timestamp_ns, 12345u);
  EXPECT_FALSE(taken.message->local);
}

TEST_F(SessionTest, WhatAReplyAnswersIsNotTheServersToSay) {
  auto fields = response(observe(policy), "another");
  fields.set_observation_timestamp_ns(99);
  reply(fields);
  const auto taken = session.take_next(policy);
  EXPECT_EQ(Reply(taken.message).model_id(), "policy");
  EXPECT_EQ(taken.message->observation_timestamp_ns, 12345u);

  const auto ping = session.open_ping(777, now);
  session.transmitted(ping.request_id, true);
  fields.set_request_id(ping.request_id);
  reply(fields);
  const auto ponged = session.take_ping_reply(ping.request_id);
  EXPECT_EQ(Reply(ponged).model_id(), "");
  EXPECT_EQ(ponged->observation_timestamp_ns, 777u);
}

TEST_F(SessionTest, UnknownRequestIdsAreCountedLateAndDropped) {
  observe(policy);
  reply(1);
  reply(1);   // twice
  reply(99);  // never asked
  EXPECT_EQ(session.counters().late_replies, 2u);
  EXPECT_EQ(session.counters().ok, 1u);
  session.take_next(policy);
  EXPECT_EQ(session.take_next(policy).outcome, Outcome::NothingOutstanding);
}

TEST_F(SessionTest, RepliesWithoutIdEndTheOldestOfTheirModel) {
  observe(other);
  observe(policy);
  observe(policy);
  auto fields = response(0, "policy");
  fields.set_inference_latency_ms(2.5f);
  reply(fields);
  EXPECT_EQ(session.server(), Session::Server::V1);
  EXPECT_TRUE(session.take_v1_notice());
  EXPECT_FALSE(session.take_v1_notice());
  auto taken = session.take_next(policy);
  EXPECT_EQ(taken.message->request_id, 2u);
  EXPECT_EQ(Reply(taken.message).timing().inference_ms, 2.5f);
  reply(response(0, "policy"));
  EXPECT_EQ(session.take_next(policy).message->request_id, 3u);
  reply(response(0, "policy"));
  reply(response(0, "unheard of"));
  EXPECT_EQ(session.counters().late_replies, 2u);
  EXPECT_FALSE(session.take_v1_notice());  // once per connection
}

TEST_F(SessionTest, UndecodableReplyEndsItsRequestAsModelError) {
  observe(policy);
  reply(response(1, "policy", Status::Ok, {1, 2, 3}), {"short"});
  const auto taken = session.take_next(policy);
  ASSERT_EQ(taken.outcome, Outcome::Reply);
  EXPECT_EQ(taken.message->status, Status::ModelError);
  EXPECT_TRUE(taken.message->local);
  EXPECT_NE(taken.message->error.find("'actions'"), std::string::npos) << taken.message->error;
  EXPECT_NE(taken.message->error.find("byte_length"), std::string::npos);
  EXPECT_TRUE(taken.message->tensors.empty());
  EXPECT_EQ(session.counters().not_ok, 1u);
  EXPECT_EQ(session.counters().bad_replies, 0u);
}

TEST_F(SessionTest, UndecodableRepliesWithoutARequestAreCounted) {
  observe(policy);
  session.receive(message_of(*pool, std::string_view("\xFF\xFF\xFF"), {""}), true, now);
  session.receive(message_of(*pool, response(1, "policy")), false, now);  // wrong framing
  reply(response(2, "policy", Status::Ok, {1}), {""});                    // wrong tensor, unknown id
  reply(response(0, "policy", Status::Ok, {1}), {""});                    // wrong tensor, no id
  EXPECT_EQ(session.counters().bad_replies, 4u);
  EXPECT_EQ(session.take_next(policy).outcome, Outcome::Wait);
}

TEST_F(SessionTest, UnknownStatusAndReasonAreKeptAndNotOk) {
  observe(policy);
  auto fields = response(1, "policy", static_cast<Status>(77));
  fields.set_reason(static_cast<v1::Reason>(55));
  reply(fields);
  EXPECT_EQ(session.counters().not_ok, 1u);
  const auto taken = session.take_next(policy);
  EXPECT_EQ(static_cast<int>(taken.message->status), 77);
  EXPECT_EQ(static_cast<int>(taken.message->reason), 55);
}

TEST_F(SessionTest, PingsAreTheirCallersAlone) {
  const auto ping = session.open_ping(777, now);
  ASSERT_EQ(ping.route, Route::Transmit);
  session.transmitted(ping.request_id, true);
  EXPECT_FALSE(session.take_ping_reply(ping.request_id));
  reply(response(ping.request_id, ""));
  EXPECT_EQ(session.take_next(policy).outcome, Outcome::NothingOutstanding);
  EXPECT_TRUE(session.take_ping_reply(ping.request_id));
  EXPECT_EQ(session.counters().sent, 0u);
  EXPECT_EQ(session.counters().ok, 0u);

  const auto lost = session.open_ping(777, now);
  session.transmitted(lost.request_id, true);
  session.link_down(now);
  EXPECT_FALSE(session.is_outstanding(lost.request_id));
  EXPECT_EQ(session.counters().link_lost, 0u);
  EXPECT_EQ(session.open_ping(777, now).route, Route::NotSent);
}

TEST_F(SessionTest, RequestTimeoutIsNotForPings) {
  observe(policy);
  const auto ping = session.open_ping(777, now);
  session.transmitted(ping.request_id, true);
  session.expire(now + 1h);
  EXPECT_EQ(session.take_next(policy).message->status, Status::TimedOut);
  EXPECT_FALSE(session.next_expiry());
  EXPECT_TRUE(session.is_outstanding(ping.request_id));
  session.abandon_ping(ping.request_id);
  observe(policy);
  EXPECT_TRUE(session.next_expiry());
}

TEST_F(SessionTest, CancelOnlyOfOutstandingRequestsAndToV2) {
  observe(policy);
  EXPECT_FALSE(session.may_cancel(policy, 1));  // not known to be v2 yet
  observe(policy);
  reply(1);
  EXPECT_FALSE(session.may_cancel(policy, 1));  // ended
  EXPECT_TRUE(session.may_cancel(policy, 2));
  EXPECT_FALSE(session.may_cancel(other, 2));
  EXPECT_FALSE(session.may_cancel(policy, 3));
  EXPECT_FALSE(session.may_cancel(policy, 0));
}

// ---- 6.4 receiving

TEST_F(SessionTest, InboxDropsTheOldest) {
  for (int i = 0; i < 10; ++i) observe(policy);
  for (std::uint64_t id = 1; id <= 10; ++id) reply(id);
  EXPECT_EQ(session.counters().replies_dropped, 2u);
  EXPECT_EQ(session.take_next(policy).message->request_id, 3u);
}

TEST_F(SessionTest, NextReplyIsInOrderOfArrivalWithEveryStatus) {
  for (int i = 0; i < 3; ++i) observe(policy);
  reply(3);
  reply(1, Status::Expired);
  EXPECT_EQ(session.take_next(policy).message->request_id, 3u);
  EXPECT_EQ(session.take_next(policy).message->status, Status::Expired);
  EXPECT_EQ(session.take_next(policy).outcome, Outcome::Wait);
  reply(2);
  EXPECT_EQ(session.take_next(policy).message->request_id, 2u);
  EXPECT_EQ(session.take_next(policy).outcome, Outcome::NothingOutstanding);
}

TEST_F(SessionTest, GetResultDeliversOnlyNewerReplies) {
  for (int i = 0; i < 3; ++i) observe(policy);
  reply(2);
  EXPECT_EQ(result(), 2u);
  reply(1);
  reply(3);
  EXPECT_EQ(result(), 3u);
  EXPECT_EQ(session.counters().late_replies, 1u);
  EXPECT_EQ(session.last_status(policy), Status::Ok);
  EXPECT_EQ(session.take_result(policy).outcome, Outcome::NothingOutstanding);
  EXPECT_EQ(session.last_status(policy), std::nullopt);  // of that call alone
}

TEST_F(SessionTest, SlotsWhoseNamesKeepChangingAreForgotten) {
  observe(policy, "kept");
  observe(policy, "kept");
  reply(2);
  EXPECT_EQ(result(), 2u);
  for (int i = 0; i < 5000; ++i) {
    const auto id = observe(policy, "slot " + std::to_string(i));
    reply(id);
    EXPECT_EQ(result(), id);
  }
  EXPECT_LT(session.slots_known(policy), 1000u);
  auto taken = session.take_next(policy);
  reply(1);  // its slot was remembered, as it was outstanding
  EXPECT_EQ(result(), 0u);
  EXPECT_EQ(session.counters().late_replies, 1u);
  observe(policy, "kept");
  reply(5003);
  taken = session.take_next(policy);
  ASSERT_EQ(taken.outcome, Outcome::Reply);
  EXPECT_EQ(taken.message->slot, "kept");
}

TEST_F(SessionTest, HintsThatAreNoneAreNotGivenOut) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float hint : {std::nanf(""), infinity, -infinity, -1.0f}) {
    auto fields = response(observe(policy), "policy");
    fields.set_phase_shift_ms(hint);
    fields.set_retry_after_ms(hint);
    reply(fields);
    EXPECT_EQ(session.take_phase_shift_ms(policy), 0.0f);
    const Reply given(session.take_next(policy).message);
    EXPECT_EQ(given.phase_shift_ms(), 0.0f);
    EXPECT_EQ(given.retry_after_ms(), hint == infinity ? std::numeric_limits<float>::max() : 0.0f);
  }
}

TEST_F(SessionTest, GetResultCountsDeliveredPerSlot) {
  observe(policy, "left");
  observe(policy, "right");
  reply(2);
  EXPECT_EQ(result(), 2u);
  reply(1);
  EXPECT_EQ(result(), 1u);  // another slot
  EXPECT_EQ(session.counters().late_replies, 0u);
}

TEST_F(SessionTest, NotOkEndsTheWaitOnlyWhenNothingNewerIsComing) {
  observe(policy);
  observe(policy);
  reply(1, Status::Expired);
  EXPECT_EQ(session.take_result(policy).outcome, Outcome::Wait);  // 2 is outstanding
  reply(2, Status::ModelError);
  const auto taken = session.take_result(policy);
  EXPECT_EQ(taken.outcome, Outcome::NotOk);
  EXPECT_EQ(session.last_status(policy), Status::ModelError);

  observe(policy);
  observe(policy);
  reply(3, Status::Rejected);
  reply(4);
  EXPECT_EQ(result(), 4u);  // a newer one waits in the inbox

  observe(policy);
  observe(policy);
  reply(6, Status::Expired);
  EXPECT_EQ(session.take_result(policy).outcome, Outcome::NotOk);  // only an older one is outstanding
  EXPECT_EQ(session.take_result(policy).outcome, Outcome::Wait);
  reply(5);
  EXPECT_EQ(result(), 5u);

  for (int i = 7; i <= 10; ++i) observe(policy);
  reply(10);
  EXPECT_EQ(result(), 10u);
  reply(7, Status::Expired);
  reply(9);  // too late, then it is not newer than anything either
  reply(8, Status::Expired);
  const auto last = session.take_result(policy);
  ASSERT_EQ(last.outcome, Outcome::NotOk);
  EXPECT_EQ(last.message->request_id, 8u);
}

TEST_F(SessionTest, AnotherModelsRequestsDoNotCount) {
  observe(policy);
  observe(other);
  reply(1, Status::Expired);
  EXPECT_EQ(session.take_result(policy).outcome, Outcome::NotOk);
  EXPECT_EQ(session.take_result(policy).outcome, Outcome::NothingOutstanding);
  EXPECT_EQ(session.take_result(other).outcome, Outcome::Wait);
}

TEST_F(SessionTest, AbandonEndsEverythingOfTheModelTimedOut) {
  observe(policy);
  observe(other);
  observe(policy, "left");
  EXPECT_EQ(session.take_result(policy).outcome, Outcome::Wait);
  session.abandon(policy);
  EXPECT_EQ(session.counters().timed_out, 2u);
  EXPECT_EQ(session.last_status(policy), Status::TimedOut);
  EXPECT_EQ(session.take_next(policy).outcome, Outcome::NothingOutstanding);  // not put into the inbox
  EXPECT_EQ(session.take_next(other).outcome, Outcome::Wait);
  reply(1);
  reply(3);
  EXPECT_EQ(session.counters().late_replies, 2u);
}

TEST_F(SessionTest, EqualIdsShareAnInbox) {
  EXPECT_EQ(session.model("policy"), policy);
  EXPECT_NE(session.model("new"), policy);
}

// ---- 6.5 hold-off

TEST_F(SessionTest, HoldOffAnswersLocallyUntilTheTimeHasPassed) {
  observe(policy);
  auto fields = response(1, "policy", Status::Rejected);
  fields.set_reason(v1::REASON_QUEUE_FULL);
  fields.set_retry_after_ms(200);
  fields.set_error("full");
  reply(fields);
  session.take_next(policy);

  now += 50ms;
  const auto held = session.open_observe(policy, "left", 5, 1, now);
  EXPECT_EQ(held.route, Route::Local);
  EXPECT_EQ(held.request_id, 2u);
  const auto taken = session.take_next(policy);
  EXPECT_EQ(taken.message->status, Status::Rejected);
  EXPECT_EQ(taken.message->reason, Reason::QueueFull);
  EXPECT_NEAR(taken.message->retry_after_ms, 150, 0.01);
  EXPECT_EQ(taken.message->error, "full");
  EXPECT_EQ(taken.message->slot, "left");
  EXPECT_TRUE(taken.message->local);
  EXPECT_EQ(session.counters().held_off, 1u);
  EXPECT_EQ(session.counters().sent, 1u);
  EXPECT_EQ(session.open_observe(other, "", 0, 0, now).route, Route::Transmit);

  now += 150ms;
  EXPECT_EQ(session.open_observe(policy, "", 0, 0, now).route, Route::Transmit);
}

TEST_F(SessionTest, HoldOffNeedsTheHintAndTheSetting) {
  observe(policy);
  reply(1, Status::Rejected);  // no hint
  EXPECT_EQ(session.open_observe(policy, "", 0, 0, now).route, Route::Transmit);
  auto fields = response(2, "policy", Status::Expired);
  fields.set_retry_after_ms(200);
  reply(fields);  // not a status that holds off
  EXPECT_EQ(session.open_observe(policy, "", 0, 0, now).route, Route::Transmit);
  fields = response(3, "policy", Status::Unavailable);
  fields.set_retry_after_ms(std::numeric_limits<float>::infinity());
  reply(fields);
  EXPECT_EQ(session.open_observe(policy, "", 0, 0, now).route, Route::Local);

  auto options = small_inbox();
  options.hold_off = false;
  Session eager(options, pool);
  eager.link_up();
  const auto model = eager.model("policy");
  eager.transmitted(eager.open_observe(model, "", 0, 0, now).request_id, true);
  fields.set_request_id(1);
  eager.receive(message_of(*pool, fields), true, now);
  EXPECT_EQ(eager.open_observe(model, "", 0, 0, now).route, Route::Transmit);
}

TEST_F(SessionTest, PhaseShiftIsTakenOnce) {
  observe(policy);
  auto fields = response(1, "policy");
  fields.set_phase_shift_ms(3);
  reply(fields);
  EXPECT_EQ(session.take_phase_shift_ms(policy), 3);
  EXPECT_EQ(session.take_phase_shift_ms(policy), 0);
}

// ---- invariants

TEST(SessionProperty, EveryRequestEndsExactlyOnce) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    std::mt19937 random(seed);
    const auto pool = std::make_shared<MessagePool>();
    Session session({2s, 1'000'000, true}, pool);
    const Session::ModelIndex models[2] = {session.model("a"), session.model("b")};
    Time now = 0s;
    std::set<std::uint64_t> open;  // transmitted or answered locally, not handed out yet
    std::set<std::uint64_t> ended;
    std::uint64_t observed = 0;

    const auto take = [&](Session::ModelIndex model) {
      for (auto taken = session.take_next(model); taken.outcome == Outcome::Reply; taken = session.take_next(model)) {
        EXPECT_EQ(open.erase(taken.message->request_id), 1u);
        EXPECT_TRUE(ended.insert(taken.message->request_id).second);
      }
    };
    for (int step = 0; step < 400; ++step) {
      now += std::chrono::milliseconds(random() % 20);
      const auto model = models[random() % 2];
      switch (random() % 8) {
        case 0:
        case 1:
        case 2: {
          const auto ticket = session.open_observe(model, random() % 2 == 0 ? "" : "s", 0, 0, now);
          EXPECT_EQ(ticket.request_id, ++observed);
          if (ticket.route == Route::NotSent) break;
          const bool sent = ticket.route == Route::Local || random() % 10 != 0;
          if (ticket.route == Route::Transmit) session.transmitted(ticket.request_id, sent);
          if (sent) open.insert(ticket.request_id);
          break;
        }
        case 3:
        case 4: {
          auto fields =
              response(random() % (observed + 3), random() % 2 == 0 ? "a" : "b", static_cast<Status>(random() % 12));
          if (random() % 3 == 0) fields.set_retry_after_ms(static_cast<float>(random() % 50));
          if (random() % 10 == 0) fields.add_tensors();  // does not decode
          session.receive(message_of(*pool, fields), random() % 20 != 0, now);
          break;
        }
        case 5: session.link_up(); break;
        case 6:
          if (random() % 4 == 0) session.link_down(now);
          break;
        case 7:
          session.expire(now);
          take(model);
          break;
      }
    }
    session.close(now);
    take(models[0]);
    take(models[1]);
    EXPECT_TRUE(open.empty()) << "seed " << seed;
    const auto counters = session.counters();
    EXPECT_EQ(counters.sent + counters.not_sent + counters.held_off, observed);
    EXPECT_EQ(counters.ok + counters.not_ok + counters.timed_out + counters.link_lost, counters.sent);
  }
}

}  // namespace
}  // namespace inferential
