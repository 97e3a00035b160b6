#include "cpp/src/wire.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "cpp/src/image_header.hpp"
#include "inferential/reply.hpp"
#include "messages.hpp"

namespace inferential {
namespace {

using test::bytes_of;
using test::message_of;
using test::response;

std::shared_ptr<MessagePool> pool() {
  static const auto shared = std::make_shared<MessagePool>();
  return shared;
}

v1::Tensor tensor_of(std::string key, v1::DType dtype, std::vector<std::int64_t> shape, std::uint64_t offset,
                     std::uint64_t length) {
  v1::Tensor tensor;
  tensor.set_key(key);
  tensor.set_dtype(dtype);
  for (const auto dimension : shape) tensor.add_shape(dimension);
  tensor.set_byte_offset(offset);
  tensor.set_byte_length(length);
  return tensor;
}

/// Of 16 x 32 pixels in colour.
const std::string jpeg("\xFF\xD8\xFF\xE0\x00\x04zz\xFF\xFF\xC0\x00\x0B\x08\x00\x10\x00\x20\x03\x01\x11\x00", 22);

TEST(ElementCount, CountsWithoutOverflow) {
  const auto count = [](std::vector<std::int64_t> shape, std::size_t item) -> std::optional<std::uint64_t> {
    std::uint64_t number = 0;
    if (!wire::element_count({shape.data(), shape.size()}, item, number)) return std::nullopt;
    return number;
  };
  constexpr auto max = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(count({}, 4), 1u);
  EXPECT_EQ(count({3, 4}, 4), 12u);
  EXPECT_EQ(count({0}, 4), 0u);
  EXPECT_EQ(count({1 << 20, 0, 1 << 20}, 8), 0u);
  EXPECT_EQ(count({max}, 1), static_cast<std::uint64_t>(max));
  EXPECT_EQ(count({max}, 2), std::nullopt);
  EXPECT_EQ(count({max, max}, 1), std::nullopt);
  EXPECT_EQ(count({max, max, 0}, 1), std::nullopt);  // no bytes, but no array can have it
  EXPECT_EQ(count({-1}, 1), std::nullopt);
  EXPECT_EQ(count({0, -1}, 1), std::nullopt);
}

TEST(Utf8, AcceptsTextAndNothingElse) {
  for (const std::string text : {"", "plain", "gr\xC3\xBC\xC3\x9F", "\xE2\x82\xAC", "\xF0\x9F\xA4\x96"}) {
    EXPECT_TRUE(wire::is_utf8(text)) << text;
  }
  for (const std::string text : {"\xFF", "\xC3", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "a\x80", "\xE2\x82"}) {
    EXPECT_FALSE(wire::is_utf8(text)) << testing::PrintToString(text);
  }
}

struct Layout {
  v1::Observation observation;
  std::vector<std::string> contents;
  std::vector<Frame> payload;

  void add(std::string key, std::size_t bytes) {
    auto* tensor = observation.add_tensors();
    *tensor = tensor_of(key, v1::DTYPE_UINT8, {static_cast<std::int64_t>(bytes)}, 0, 0);
    contents.emplace_back(bytes, static_cast<char>('a' + contents.size()));
  }

  void lay_out(bool one_frame, std::size_t own_frame_bytes) {
    std::vector<wire::Source> sources;
    for (const auto& content : contents) sources.push_back({content.data(), content.size()});
    wire::lay_out(observation, sources, one_frame, own_frame_bytes, payload);
    ASSERT_EQ(wire::check_tensors(observation.tensors(), {payload.data(), payload.size()}), "");
    for (std::size_t i = 0; i < contents.size(); ++i) {
      const auto& tensor = observation.tensors(static_cast<int>(i));
      EXPECT_EQ(tensor.byte_offset() % 8, 0u);
      const auto* at = reinterpret_cast<const char*>(payload[tensor.frame()].data()) + tensor.byte_offset();
      EXPECT_EQ(std::string(at, tensor.byte_length()), contents[i]);
    }
  }
};

TEST(LayOut, OneFrameForAllWithGapsOfZeros) {
  Layout layout;
  layout.add("a", 3);
  layout.add("none", 0);
  layout.add("b", 100);
  layout.lay_out(true, 0);
  ASSERT_EQ(layout.payload.size(), 1u);
  EXPECT_EQ(layout.payload[0].size(), 108u);
  for (int i = 3; i < 8; ++i) EXPECT_EQ(layout.payload[0].data()[i], std::byte{0});
}

TEST(LayOut, LargeTensorsHaveFramesOfTheirOwn) {
  Layout layout;
  layout.add("large", 64);
  layout.add("small", 5);
  layout.add("larger", 65);
  layout.add("tiny", 1);
  layout.lay_out(false, 64);
  ASSERT_EQ(layout.payload.size(), 3u);
  EXPECT_EQ(layout.observation.tensors(0).frame(), 0u);
  EXPECT_EQ(layout.observation.tensors(1).frame(), 1u);
  EXPECT_EQ(layout.observation.tensors(2).frame(), 2u);
  EXPECT_EQ(layout.observation.tensors(3).frame(), 1u);
  EXPECT_EQ(layout.observation.tensors(3).byte_offset(), 8u);
}

TEST(LayOut, NoTensorsIsOneEmptyFrame) {
  Layout layout;
  layout.lay_out(false, 64);
  ASSERT_EQ(layout.payload.size(), 1u);
  EXPECT_EQ(layout.payload[0].size(), 0u);
}

TEST(LayOut, AnyMixOfSizesComesBack) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    Layout layout;
    const int tensors = static_cast<int>(random() % 20);
    for (int i = 0; i < tensors; ++i) layout.add("t" + std::to_string(i), random() % 70);
    layout.lay_out(random() % 2 == 0, random() % 70);
  }
}

TEST(Decode, MisalignedTensorsAreReadable) {
  const std::vector<double> values = {1.5, -2.25, 1e300};
  auto fields = response(1, "policy");
  *fields.add_tensors() = tensor_of("x", v1::DTYPE_FLOAT64, {3}, 3, 24);
  auto message = message_of(*pool(), fields, {"abc" + bytes_of(values)});
  ASSERT_TRUE(wire::decode(*message)) << message->error;
  const Reply reply(message);
  const auto read = reply["x"].as<double>();
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(read.data()) % alignof(double), 0u);
  EXPECT_EQ(std::vector<double>(read.begin(), read.end()), values);
  EXPECT_EQ(std::memcmp(reply["x"].bytes().data(), values.data(), 24), 0);
}

TEST(Decode, BoolsAreZeroOrOneWhateverTheirBytes) {
  auto fields = response(1, "policy");
  *fields.add_tensors() = tensor_of("mask", v1::DTYPE_BOOL, {4}, 0, 4);
  auto message = message_of(*pool(), fields, {std::string("\x00\x01\x02\xFF", 4)});
  ASSERT_TRUE(wire::decode(*message));
  const Reply reply(message);
  const auto mask = reply["mask"].as<bool>();
  EXPECT_EQ(std::vector<bool>(mask.begin(), mask.end()), (std::vector<bool>{false, true, true, true}));
  EXPECT_EQ(reply["mask"].bytes()[3], std::byte{0xFF});
}

TEST(Decode, WrongTypeIsAnErrorAndNeverReinterpreted) {
  auto message = message_of(*pool(), response(1, "policy", Status::Ok, {1, 2}), {bytes_of<float>({1, 2})});
  ASSERT_TRUE(wire::decode(*message));
  const Reply reply(message);
  EXPECT_EQ(reply["actions"].as<std::int32_t>().data(), nullptr);
  EXPECT_EQ(reply["actions"].as<std::int32_t>().size(), 0u);
  const auto wrong = reply.get<std::uint32_t>("actions");
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().code, ErrorCode::WrongType);
  EXPECT_EQ(wrong.error().message, "tensor 'actions' is FLOAT32, not UINT32");
  EXPECT_THROW((void)wrong.value(), std::runtime_error);

  EXPECT_FALSE(reply["action"]);
  const auto [pointer, count] = reply["action"].as<float>();
  EXPECT_EQ(pointer, nullptr);
  EXPECT_EQ(count, 0u);
  EXPECT_EQ(reply.find("action").error().code, ErrorCode::MissingTensor);
  EXPECT_EQ(reply.find("action").error().message, "no tensor 'action'; there is 'actions'");
  EXPECT_EQ(reply.get<float>("actions")->size(), 2u);
}

TEST(Decode, EncodedImagesAreNotPixels) {
  auto fields = response(1, "policy");
  auto* tensor = fields.add_tensors();
  *tensor = tensor_of("camera", v1::DTYPE_UINT8, {16, 32, 3}, 0, jpeg.size());
  tensor->set_encoding(v1::ENCODING_JPEG);
  auto message = message_of(*pool(), fields, {jpeg});
  ASSERT_TRUE(wire::decode(*message)) << message->error;
  const Reply reply(message);
  EXPECT_EQ(reply["camera"].as<std::uint8_t>().data(), nullptr);
  EXPECT_EQ(reply.get<std::uint8_t>("camera").error().message,
            "tensor 'camera' is a JPEG file: use bytes() and decode it");
  EXPECT_EQ(reply["camera"].bytes().size(), jpeg.size());

  message = message_of(*pool(), fields, {std::string(jpeg.size(), 'x')});
  EXPECT_FALSE(wire::decode(*message));
  EXPECT_EQ(message->error, "tensor 'camera': encoding says JPEG, but the bytes are no JPEG file");
  fields.mutable_tensors(0)->set_shape(0, 17);
  message = message_of(*pool(), fields, {jpeg});
  EXPECT_FALSE(wire::decode(*message));
  EXPECT_EQ(message->error, "tensor 'camera': shape (17, 32, 3) is not the image's own, (16, 32, 3)");
}

TEST(Decode, AnyNumberOfTensors) {
  auto fields = response(1, "policy");
  for (int i = 0; i < 5000; ++i) {
    *fields.add_tensors() = tensor_of(std::to_string(i), v1::DTYPE_UINT8, {1}, 0, 1);
    fields.mutable_tensors(i)->set_frame(static_cast<std::uint32_t>(i));
  }
  const std::vector<std::string> payload(5000, "x");
  auto message = message_of(*pool(), fields, payload);
  ASSERT_TRUE(wire::decode(*message)) << message->error;
  EXPECT_TRUE(Reply(message)["4999"]);
  fields.mutable_tensors(4999)->set_key("17");
  message = message_of(*pool(), fields, payload);
  EXPECT_FALSE(wire::decode(*message));
  EXPECT_EQ(message->error, "tensor '17': key is used twice in one message");
}

TEST(Decode, EmptyTensorIsNotAMissingOne) {
  auto fields = response(1, "policy");
  *fields.add_tensors() = tensor_of("none", v1::DTYPE_FLOAT64, {0, 7}, 0, 0);
  auto message = message_of(*pool(), fields, {""});
  ASSERT_TRUE(wire::decode(*message)) << message->error;
  const Reply reply(message);
  EXPECT_TRUE(reply["none"]);
  EXPECT_NE(reply["none"].as<double>().data(), nullptr);
  EXPECT_EQ(reply["none"].as<double>().size(), 0u);
  EXPECT_EQ(reply["none"].shape().size(), 2u);
}

TEST(Decode, AMessageIsReusedWithoutTraces) {
  const auto own = std::make_shared<MessagePool>();
  auto fields = response(9, "policy", Status::ModelError, {1});
  fields.set_error("it broke");
  fields.set_response_id("abc");
  fields.mutable_timing()->set_replica("r1");
  fields.mutable_timing()->set_batch_size(3);
  (*fields.mutable_metadata())["k"] = "v";
  fields.mutable_client()->set_id("me");
  detail::Message* first = nullptr;
  {
    auto message = message_of(*own, fields, {bytes_of<float>({1})});
    first = message.get();
    ASSERT_TRUE(wire::decode(*message));
    EXPECT_EQ(Reply(message).metadata("k"), "v");
    EXPECT_EQ(Reply(message).timing().replica, "r1");
  }
  auto message = message_of(*own, v1::ModelResponse());
  ASSERT_EQ(message.get(), first);
  ASSERT_TRUE(wire::decode(*message));
  const Reply reply(message);
  EXPECT_EQ(message->fields.ByteSizeLong(), [] {
    v1::ModelResponse empty;
    empty.mutable_client();
    empty.mutable_timing();
    return empty.ByteSizeLong();
  }());
  EXPECT_EQ(reply.status(), Status::Ok);
  EXPECT_EQ(reply.error(), "");
  EXPECT_TRUE(reply.metadata().empty());
  EXPECT_TRUE(reply.tensors().empty());
}

TEST(Decode, AReusedMessageKeepsNoFieldsOfANewerServer) {
  const auto own = std::make_shared<MessagePool>();
  auto fields = response(9, "policy");
  // Field 5000, in the reply and in one of its parts.
  const std::string unknown = "\xC2\xB8\x02\x03new";
  ASSERT_TRUE(fields.MergeFromString(unknown));
  ASSERT_TRUE(fields.mutable_timing()->MergeFromString(unknown));
  const detail::Message* first = nullptr;
  std::size_t size = 0;
  for (int i = 0; i < 3; ++i) {
    auto message = message_of(*own, fields);
    ASSERT_TRUE(wire::decode(*message));
    if (i == 0) {
      first = message.get();
      size = message->fields.ByteSizeLong();
    }
    ASSERT_EQ(message.get(), first);
    EXPECT_EQ(message->fields.ByteSizeLong(), size);
  }
}

TEST(Decode, RandomChangesToAMessageNeverCrash) {
  std::mt19937 random(11);
  auto fields = response(3, "policy", Status::Ok, {1, 2, 3});
  *fields.add_tensors() = tensor_of("y", v1::DTYPE_INT16, {2, 2}, 12, 8);
  (*fields.mutable_metadata())["k"] = "v";
  const auto envelope = fields.SerializeAsString();
  int decoded = 0;
  for (int round = 0; round < 20000; ++round) {
    auto changed = envelope;
    for (auto changes = 1 + random() % 4; changes > 0; --changes) {
      changed[random() % changed.size()] = static_cast<char>(random());
    }
    if (random() % 8 == 0) changed.resize(random() % changed.size());
    auto message = message_of(*pool(), changed, {std::string(20 + random() % 3, 'x')});
    if (!wire::decode(*message)) {
      EXPECT_NE(message->error, "");
      continue;
    }
    ++decoded;
    for (const auto& tensor : Reply(message).tensors()) {
      for (const auto byte : tensor.bytes()) decoded += byte == std::byte{0};
      for (const auto value : tensor.as<float>()) decoded += value == 0.0f;
    }
  }
  EXPECT_GT(decoded, 0);
}

TEST(ImageHeader, ReadsWhatTheFileSays) {
  const auto shape = [](auto function, const std::string& file) {
    return function(reinterpret_cast<const std::byte*>(file.data()), file.size());
  };
  const auto read = shape(wire::jpeg_shape, jpeg);
  ASSERT_TRUE(read);
  EXPECT_EQ(read->height, 16);
  EXPECT_EQ(read->width, 32);
  EXPECT_EQ(read->channels, 3);
  for (std::size_t size = 0; size < 19; ++size) EXPECT_FALSE(shape(wire::jpeg_shape, jpeg.substr(0, size))) << size;

  const std::string png("\x89PNG\r\n\x1A\n\0\0\0\rIHDR\0\0\0\x02\0\0\0\x03\x08\x06\0\0\0", 29);
  const auto png_read = shape(wire::png_shape, png);
  ASSERT_TRUE(png_read);
  EXPECT_EQ(png_read->height, 3);
  EXPECT_EQ(png_read->width, 2);
  EXPECT_EQ(png_read->channels, 4);
  for (std::size_t size = 0; size < 26; ++size) EXPECT_FALSE(shape(wire::png_shape, png.substr(0, size))) << size;
  EXPECT_FALSE(shape(wire::png_shape, jpeg));
  EXPECT_FALSE(shape(wire::jpeg_shape, png));
}

TEST(TensorsBuilder, MakesTensorsAndChecksThem) {
  const std::vector<double> values = {1, 2, 3, 4, 5, 6};
  TensorsBuilder builder;
  builder.add("a", values.data(), values.size(), {2, 3}).add_zeros("b", DType::BFloat16, {4});
  const auto tensors = builder.build();
  ASSERT_TRUE(tensors) << tensors.error().message;
  EXPECT_EQ(tensors->get<double>("a")->size(), 6u);
  EXPECT_EQ((*tensors)["b"].as<bfloat16>()[3].bits, 0);
  EXPECT_TRUE(builder.build()->empty());

  EXPECT_EQ(builder.add("a", values.data(), 5, {2, 3}).build().error().code, ErrorCode::InvalidArgument);
  EXPECT_FALSE(builder.add_zeros("x", DType::Float32, {1}).add_zeros("x", DType::Float32, {1}).build());
  EXPECT_FALSE(builder.add_zeros("x", DType::Unspecified, {1}).build());
  EXPECT_FALSE(builder.add_zeros("x", DType::Float32, {std::numeric_limits<std::int64_t>::max()}).build());
  EXPECT_FALSE(builder.add<float>("x", nullptr, 1, {1}).build());
}

}  // namespace
}  // namespace inferential
