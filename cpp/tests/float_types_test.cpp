#include "inferential/float_types.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace inferential {
namespace {

template <class T>
class FloatTypes : public testing::Test {};
using Types = testing::Types<float16, bfloat16, float8_e4m3fn, float8_e5m2>;
TYPED_TEST_SUITE(FloatTypes, Types);

template <class T>
std::uint32_t codes() {
  return 1u << (8 * sizeof(T));
}

template <class T>
T of_bits(std::uint32_t bits) {
  T value;
  value.bits = static_cast<decltype(value.bits)>(bits);
  return value;
}

TYPED_TEST(FloatTypes, EveryCodeSurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < codes<TypeParam>(); ++bits) {
    const float value = static_cast<float>(of_bits<TypeParam>(bits));
    const auto back = TypeParam::from_float(value);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(back))) << bits;
    } else {
      EXPECT_EQ(back.bits, bits) << value;
    }
  }
}

TYPED_TEST(FloatTypes, RoundsToNearestTiesToEven) {
  // All finite magnitudes in order; codes of positive numbers are.
  std::vector<float> magnitudes;
  for (std::uint32_t bits = 0; bits < codes<TypeParam>() / 2; ++bits) {
    const float value = static_cast<float>(of_bits<TypeParam>(bits));
    if (!std::isfinite(value)) break;
    ASSERT_TRUE(magnitudes.empty() || value > magnitudes.back());
    magnitudes.push_back(value);
  }
  std::mt19937 random(1);
  std::uniform_int_distribution<std::size_t> pick(0, magnitudes.size() - 2);
  std::uniform_real_distribution<double> part(0, 1);
  for (int i = 0; i < 20000; ++i) {
    const auto code = pick(random);
    const double low = magnitudes[code];
    const double high = magnitudes[code + 1];
    const auto middle = static_cast<float>((low + high) / 2);
    const auto between = static_cast<float>(low + (high - low) * part(random));
    const auto nearest = [&](float value) -> std::size_t {
      const double down = value - low;
      const double up = high - value;
      return down < up || (down == up && code % 2 == 0) ? code : code + 1;
    };
    EXPECT_EQ(TypeParam::from_float(middle).bits, nearest(middle)) << middle;
    EXPECT_EQ(TypeParam::from_float(between).bits, nearest(between)) << between;
    EXPECT_EQ(static_cast<float>(TypeParam::from_float(-between)), -static_cast<float>(TypeParam::from_float(between)));
  }
}

TEST(FloatTypes, KnownValues) {
  EXPECT_EQ(float16::from_float(1.0f).bits, 0x3C00);
  EXPECT_EQ(float16::from_float(65504.0f).bits, 0x7BFF);
  EXPECT_EQ(float16::from_float(65520.0f).bits, 0x7C00);  // rounds up to infinity
  EXPECT_EQ(float16::from_float(-0.0f).bits, 0x8000);
  EXPECT_EQ(float16::from_float(5.9604645e-8f).bits, 0x0001);
  EXPECT_EQ(bfloat16::from_float(1.0f).bits, 0x3F80);
  EXPECT_EQ(bfloat16::from_float(INFINITY).bits, 0x7F80);
  EXPECT_EQ(float8_e4m3fn::from_float(448.0f).bits, 0x7E);
  EXPECT_EQ(float8_e4m3fn::from_float(464.0f).bits, 0x7E);  // the tie goes to the even code
  EXPECT_EQ(float8_e4m3fn::from_float(465.0f).bits, 0x7F);
  EXPECT_EQ(float8_e4m3fn::from_float(-INFINITY).bits, 0xFF);
  EXPECT_EQ(float8_e5m2::from_float(57344.0f).bits, 0x7B);
  EXPECT_EQ(float8_e5m2::from_float(INFINITY).bits, 0x7C);
  EXPECT_EQ(float8_e5m2::from_float(1e-30f).bits, 0);
}

}  // namespace
}  // namespace inferential
