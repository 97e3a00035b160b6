#include "cpp/src/watchdog.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>

#include "inferential/rate.hpp"
#include "messages.hpp"

namespace inferential {
namespace {

using namespace std::chrono_literals;
using detail::Watchdog;
using test::bytes_of;
using test::message_of;
using test::response;

class WatchdogTest : public testing::Test {
 protected:
  /// actions = {1, -2}, `count` = an INT32 7; sent at 10 s, arrived at 10.010 s.
  detail::MessageRef fresh_message(float step_ms = 20) {
    auto fields = response(1, "policy", Status::Ok, {1, -2});
    auto* tensor = fields.add_tensors();
    tensor->set_key("count");
    tensor->set_dtype(v1::DTYPE_INT32);
    tensor->set_byte_offset(8);
    tensor->set_byte_length(4);
    auto message = message_of(*pool, fields, {bytes_of<float>({1, -2}) + bytes_of<std::int32_t>({7})});
    EXPECT_TRUE(wire::decode(*message)) << message->error;
    message->sent_at = 10s;
    message->received_at = 10010ms;
    message->step_ms = step_ms;
    return message;
  }

  static Error why() { return {ErrorCode::TimedOut, Status::TimedOut, "late"}; }
  static std::vector<float> actions(const Action& action) {
    const auto values = action["actions"].as<float>();
    return {values.begin(), values.end()};
  }
  static Tensors one_zero_template() { return *TensorsBuilder().add_zeros("actions", DType::Float32, {3}).build(); }

  std::shared_ptr<MessagePool> pool = std::make_shared<MessagePool>();
};

using Floats = std::vector<float>;

TEST_F(WatchdogTest, FreshIsTheReplyWithItsAge) {
  Watchdog watchdog(Fallback::zero(), pool);
  const auto action = watchdog.fresh(fresh_message(), 10050ms);
  EXPECT_EQ(action.source, Source::Fresh);
  EXPECT_EQ(actions(action), (Floats{1, -2}));
  EXPECT_DOUBLE_EQ(action.age_ms, 50);
  EXPECT_EQ(action.steps_late, 2u);
  EXPECT_EQ(action.reply->request_id(), 1u);
  EXPECT_FALSE(action.error);
}

TEST_F(WatchdogTest, StepsLateNeedsAStep) {
  Watchdog watchdog(Fallback::zero(), pool);
  EXPECT_EQ(watchdog.fresh(fresh_message(0), 11s).steps_late, 0u);
  EXPECT_EQ(watchdog.fresh(fresh_message(20), 10019ms).steps_late, 0u);
  EXPECT_EQ(watchdog.fresh(fresh_message(20), 10020ms).steps_late, 1u);
}

TEST_F(WatchdogTest, HoldLastsAtMostItsTimeSinceArrival) {
  Watchdog watchdog(Fallback::hold(100), pool);
  watchdog.fresh(fresh_message(), 10010ms);
  const auto held = watchdog.fall_back(why(), 10110ms);
  EXPECT_EQ(held.source, Source::Hold);
  EXPECT_EQ(actions(held), (Floats{1, -2}));
  EXPECT_DOUBLE_EQ(held.age_ms, 110);
  EXPECT_EQ(held.steps_late, 5u);
  EXPECT_EQ(held.error->status, Status::TimedOut);

  const auto zero = watchdog.fall_back(why(), 10110ms + 1ns);
  EXPECT_EQ(zero.source, Source::Zero);
  EXPECT_EQ(actions(zero), (Floats{0, 0}));
  EXPECT_EQ(zero["count"].as<std::int32_t>()[0], 0);
  EXPECT_NEAR(zero.age_ms, 110, 0.01);
}

TEST_F(WatchdogTest, DecayHalvesFloatingPointTensorsOnly) {
  Watchdog watchdog(Fallback::decay(40), pool);
  watchdog.fresh(fresh_message(), 10010ms);
  EXPECT_EQ(actions(watchdog.fall_back(why(), 10010ms)), (Floats{1, -2}));
  const auto decayed = watchdog.fall_back(why(), 10090ms);
  EXPECT_EQ(decayed.source, Source::Decay);
  EXPECT_FLOAT_EQ(actions(decayed)[0], 0.25f);
  EXPECT_FLOAT_EQ(actions(decayed)[1], -0.5f);
  EXPECT_EQ(decayed["count"].as<std::int32_t>()[0], 7);
  EXPECT_EQ(actions(watchdog.fall_back(why(), 3600s)), (Floats{0, -0.0f}));
}

TEST_F(WatchdogTest, DecayKnowsEveryFloatType) {
  auto fields = response(1, "policy");
  std::string payload;
  const auto add = [&](const char* key, v1::DType dtype, const std::string& bytes) {
    payload.resize((payload.size() + 7) / 8 * 8);
    auto* tensor = fields.add_tensors();
    tensor->set_key(key);
    tensor->set_dtype(dtype);
    tensor->set_byte_offset(payload.size());
    tensor->set_byte_length(bytes.size());
    payload += bytes;
  };
  add("f16", v1::DTYPE_FLOAT16, bytes_of<float16>({float16::from_float(8)}));
  add("bf16", v1::DTYPE_BFLOAT16, bytes_of<bfloat16>({bfloat16::from_float(8)}));
  add("e4m3", v1::DTYPE_FLOAT8_E4M3FN, bytes_of<float8_e4m3fn>({float8_e4m3fn::from_float(8)}));
  add("e5m2", v1::DTYPE_FLOAT8_E5M2, bytes_of<float8_e5m2>({float8_e5m2::from_float(8)}));
  add("f64", v1::DTYPE_FLOAT64, bytes_of<double>({8}));
  auto message = message_of(*pool, fields, {payload});
  ASSERT_TRUE(wire::decode(*message)) << message->error;

  Watchdog watchdog(Fallback::decay(10), pool);
  watchdog.fresh(message, 0s);
  const auto action = watchdog.fall_back(why(), 20ms);
  EXPECT_EQ(static_cast<float>(action["f16"].as<float16>()[0]), 2);
  EXPECT_EQ(static_cast<float>(action["bf16"].as<bfloat16>()[0]), 2);
  EXPECT_EQ(static_cast<float>(action["e4m3"].as<float8_e4m3fn>()[0]), 2);
  EXPECT_EQ(static_cast<float>(action["e5m2"].as<float8_e5m2>()[0]), 2);
  EXPECT_EQ(action["f64"].as<double>()[0], 2);
}

TEST_F(WatchdogTest, BeforeTheFirstAnswerTheTemplateServes) {
  for (const auto& fallback : {Fallback::zero(one_zero_template()), Fallback::hold(100, one_zero_template()),
                               Fallback::decay(5, one_zero_template())}) {
    Watchdog watchdog(fallback, pool);
    const auto action = watchdog.fall_back(why(), 1s);
    EXPECT_EQ(action.source, Source::Zero);
    EXPECT_EQ(actions(action), (Floats{0, 0, 0}));
    EXPECT_EQ(action.age_ms, 0);
  }
  for (const auto& fallback : {Fallback::zero(), Fallback::hold(100), Fallback::decay(5)}) {
    Watchdog watchdog(fallback, pool);
    const auto action = watchdog.fall_back(why(), 1s);
    EXPECT_EQ(action.source, Source::None);
    EXPECT_TRUE(action.tensors.empty());
    EXPECT_EQ(action.age_ms, 0);
    EXPECT_EQ(action.steps_late, 0u);
  }
}

TEST_F(WatchdogTest, ACallbackThatAsksItselfGetsNothing) {
  Watchdog* asked = nullptr;
  std::optional<Action> inner;
  Watchdog watchdog(Fallback::callback([&](const Reply*, double) {
                      inner = asked->fall_back(why(), 1s);
                      asked->set_fallback(Fallback::zero());
                      return one_zero_template();
                    }),
                    pool);
  asked = &watchdog;
  EXPECT_EQ(actions(watchdog.fall_back(why(), 1s)), (Floats{0, 0, 0}));
  ASSERT_TRUE(inner);
  EXPECT_EQ(inner->source, Source::None);
  EXPECT_TRUE(inner->error);
}

TEST_F(WatchdogTest, CallbackGetsTheLastFreshReplyAndItsAge) {
  const Reply* seen = nullptr;
  double age_ms = -1;
  Watchdog watchdog(Fallback::callback([&](const Reply* last, double age) {
                      seen = last;
                      age_ms = age;
                      return one_zero_template();
                    }),
                    pool);
  auto action = watchdog.fall_back(why(), 1s);
  EXPECT_EQ(seen, nullptr);
  EXPECT_EQ(age_ms, 0);
  EXPECT_EQ(action.source, Source::Callback);
  EXPECT_EQ(actions(action), (Floats{0, 0, 0}));

  watchdog.fresh(fresh_message(), 10010ms);
  action = watchdog.fall_back(why(), 10100ms);
  EXPECT_NE(seen, nullptr);
  EXPECT_DOUBLE_EQ(age_ms, 100);
  EXPECT_EQ(action.age_ms, 0);
  EXPECT_EQ(action.steps_late, 0u);
}

TEST_F(WatchdogTest, ImpossibleFallbacksAreRefused) {
  EXPECT_THROW(Fallback::hold(-1), std::invalid_argument);
  EXPECT_THROW(Fallback::hold(std::nan("")), std::invalid_argument);
  EXPECT_THROW(Fallback::decay(0), std::invalid_argument);
  EXPECT_THROW(Fallback::decay(std::numeric_limits<double>::infinity()), std::invalid_argument);
  EXPECT_THROW(Fallback::callback({}), std::invalid_argument);
}

TEST_F(WatchdogTest, ActionsOutliveTheWatchdog) {
  Action action;
  {
    Watchdog watchdog(Fallback::decay(10), pool);
    watchdog.fresh(fresh_message(), 10010ms);
    action = watchdog.fall_back(why(), 10020ms);
    pool.reset();
  }
  EXPECT_EQ(actions(action), (Floats{0.5f, -1}));
  EXPECT_EQ(action["actions"].key(), "actions");
  pool = std::make_shared<MessagePool>();
  {
    Watchdog watchdog(Fallback::zero(one_zero_template()), pool);
    action = watchdog.fall_back(why(), 1s);
    watchdog.set_fallback(Fallback::zero());
  }
  EXPECT_EQ(actions(action), (Floats{0, 0, 0}));
  EXPECT_EQ(action["actions"].key(), "actions");
}

// ---- Rate

TEST(RateTest, TicksLieOnAFixedGrid) {
  const Rate::Clock::time_point start{};
  Rate rate(100, start);
  auto tick = rate.next(start + 1ms);
  EXPECT_EQ(tick.at, start + 10ms);
  EXPECT_EQ(tick.missed, 0u);
  tick = rate.next(start + 20ms);  // the very time of the tick is in time
  EXPECT_EQ(tick.at, start + 20ms);
  EXPECT_EQ(tick.missed, 0u);
}

TEST(RateTest, MissedTicksAreSkipped) {
  const Rate::Clock::time_point start{};
  Rate rate(100, start);
  auto tick = rate.next(start + 35ms);
  EXPECT_EQ(tick.at, start + 40ms);
  EXPECT_EQ(tick.missed, 3u);
  tick = rate.next(start + 41ms);
  EXPECT_EQ(tick.at, start + 50ms);
  EXPECT_EQ(tick.missed, 0u);
}

TEST(RateTest, EachTickIsWaitedForOnce) {
  const Rate::Clock::time_point start{};
  Rate rate(100, start);
  EXPECT_EQ(rate.next(start).at, start + 10ms);
  EXPECT_EQ(rate.next(start).at, start + 20ms);
}

TEST(RateTest, DelayMovesTheGrid) {
  const Rate::Clock::time_point start{};
  Rate rate(100, start);
  rate.delay_ms(4);
  rate.delay_ms(-1);
  rate.delay_ms(0);
  EXPECT_EQ(rate.next(start + 1ms).at, start + 14ms);
}

TEST(RateTest, ADelayHoldsALoopUpForLessThanAPeriod) {
  const Rate::Clock::time_point start{};
  for (const double hint : {10.0, 3e9, 3.4e38, std::numeric_limits<double>::max()}) {
    Rate rate(100, start);
    rate.delay_ms(hint);
    const auto tick = rate.next(start);
    EXPECT_EQ(tick.missed, 0u);
    EXPECT_GE(tick.at, start + 10ms) << hint;
    EXPECT_LE(tick.at, start + 20ms) << hint;
  }
  Rate rate(100, start);
  rate.delay_ms(34);
  EXPECT_EQ(std::chrono::round<std::chrono::microseconds>(rate.next(start).at - start), 14ms);
  for (const double nothing : {std::nan(""), std::numeric_limits<double>::infinity(), -1e300}) {
    Rate same(100, start);
    same.delay_ms(nothing);
    EXPECT_EQ(same.next(start).at, start + 10ms);
  }
}

TEST(RateTest, RefusesWhatIsNoRate) {
  EXPECT_THROW(Rate(1e-4), std::invalid_argument);
  EXPECT_THROW(Rate(1e7), std::invalid_argument);
  EXPECT_THROW(Rate(0), std::invalid_argument);
  EXPECT_THROW(Rate(-1), std::invalid_argument);
  EXPECT_THROW(Rate(std::numeric_limits<double>::infinity()), std::invalid_argument);
  EXPECT_THROW(Rate(std::nan("")), std::invalid_argument);
}

TEST(RateTest, SleepsUntilTheTick) {
  const auto start = Rate::Clock::now();
  Rate rate(200, start);
  rate.sleep();
  EXPECT_GE(Rate::Clock::now(), start + 5ms);
}

}  // namespace
}  // namespace inferential
