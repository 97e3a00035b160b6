// The golden vectors of conformance/vectors, whose README says what the files hold. Run from the repository's root.

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#include "cpp/src/wire.hpp"
#include "inferential/reply.hpp"
#include "messages.hpp"

namespace inferential {
namespace {

const std::string root = "conformance/vectors/";

struct Vector {
  std::string name, message, verdict, key, field;
  std::size_t frames = 0;
  int status = 0;
  std::uint64_t request_id = 0;

  friend void PrintTo(const Vector& vector, std::ostream* out) { *out << vector.name; }
};

std::string contents_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (const char character : text) {
    if (character == separator) {
      parts.emplace_back();
    } else {
      parts.back() += character;
    }
  }
  return parts;
}

std::vector<Vector> manifest() {
  std::vector<Vector> vectors;
  std::ifstream file(root + "manifest.tsv");
  for (std::string line; std::getline(file, line);) {
    const auto columns = split(line, '\t');
    vectors.push_back({columns.at(0), columns.at(1), columns.at(2), columns.at(6), columns.at(7),
                       std::stoul(columns.at(3)), std::stoi(columns.at(4)), std::stoull(columns.at(5))});
  }
  return vectors;
}

std::vector<std::string> payload_of(const Vector& vector) {
  std::vector<std::string> frames;
  for (std::size_t i = 0; i < vector.frames; ++i) {
    frames.push_back(contents_of(root + vector.name + ".payload" + (i == 0 ? "" : "." + std::to_string(i))));
  }
  return frames;
}

std::string hex(Span<const std::byte> bytes) {
  static const char digits[] = "0123456789abcdef";
  std::string text;
  for (const auto byte : bytes) {
    text += digits[std::to_integer<int>(byte) >> 4];
    text += digits[std::to_integer<int>(byte) & 15];
  }
  return text;
}

/// The lines of NAME.txt as this SDK reads the message; without the number for people that follows a float's bits.
class Description {
 public:
  template <class T>
  void add(const char* field, const T& value) {
    std::ostringstream line;
    line << field << '\t';
    if constexpr (std::is_same_v<T, float>) {
      std::uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      char text[9];
      std::snprintf(text, sizeof text, "%08x", bits);
      line << text;
    } else {
      line << value;
    }
    lines_.push_back(line.str());
  }

  void add_metadata(const google::protobuf::Map<std::string, std::string>& metadata) {
    const std::map<std::string, std::string> sorted(metadata.begin(), metadata.end());
    for (const auto& [key, value] : sorted) lines_.push_back("metadata\t" + key + "\t" + value);
  }

  void add_tensor(const v1::Tensor& tensor, Span<const std::byte> bytes, bool placed) {
    std::string shape;
    for (const auto dimension : tensor.shape()) shape += (shape.empty() ? "" : ",") + std::to_string(dimension);
    const int encoding = tensor.encoding() == 0 ? 1 : tensor.encoding();
    std::ostringstream line;
    line << "tensor\t" << tensor.key() << '\t' << tensor.dtype() << '\t' << encoding << '\t';
    if (placed) line << tensor.frame() << '\t' << tensor.byte_offset() << '\t';
    line << tensor.byte_length() << '\t' << tensor.timestamp_ns() << '\t' << shape << '\t'
         << hex({bytes.data(), placed ? std::min<std::size_t>(bytes.size(), 64) : bytes.size()});
    lines_.push_back(line.str());
  }

  const std::vector<std::string>& lines() const { return lines_; }

 private:
  std::vector<std::string> lines_;
};

std::vector<std::string> expected_lines(const Vector& vector) {
  std::vector<std::string> lines;
  std::istringstream file(contents_of(root + vector.name + ".txt"));
  for (std::string line; std::getline(file, line);) {
    auto columns = split(line, '\t');
    if (columns[0] == "tensor" && columns.at(3) == "0") columns[3] = "1";  // unspecified is RAW
    if (columns[0] != "tensor" && columns[0] != "metadata") columns.resize(2);
    std::string joined;
    for (const auto& column : columns) joined += (joined.empty() ? "" : "\t") + column;
    lines.push_back(joined);
  }
  return lines;
}

Description describe(const v1::Observation& fields, const std::vector<Frame>& payload, bool placed) {
  Description text;
  text.add("client.id", fields.client().id());
  text.add("client.type", fields.client().type());
  text.add("timestamp_ns", fields.timestamp_ns());
  text.add("urgency", fields.urgency());
  text.add("model_id", fields.model_id());
  if (fields.has_steps_remaining()) text.add("steps_remaining", fields.steps_remaining());
  text.add("priority", fields.priority());
  text.add("request_id", fields.request_id());
  text.add("latency_budget_ms", fields.latency_budget_ms());
  text.add("step_ms", fields.step_ms());
  text.add("kind", static_cast<int>(fields.kind()));
  text.add("latest_only", fields.latest_only());
  text.add("slot", fields.slot());
  text.add_metadata(fields.metadata());
  for (const auto& tensor : fields.tensors()) {
    text.add_tensor(tensor, {payload[tensor.frame()].data() + tensor.byte_offset(), tensor.byte_length()}, placed);
  }
  return text;
}

Description describe(const detail::MessageRef& message) {
  const Reply reply(message);
  Description text;
  text.add("client.id", message->fields.client().id());
  text.add("client.type", message->fields.client().type());
  text.add("response_id", reply.response_id());
  text.add("timestamp_ns", reply.timestamp_ns());
  text.add("inference_latency_ms", message->fields.inference_latency_ms());
  text.add("model_id", reply.model_id());
  text.add("request_id", reply.request_id());
  text.add("status", static_cast<int>(reply.status()));
  text.add("error", reply.error());
  text.add("retry_after_ms", reply.retry_after_ms());
  text.add("timing.queue_ms", reply.timing().queue_ms);
  text.add("timing.inference_ms", reply.timing().inference_ms);
  text.add("timing.server_ms", reply.timing().server_ms);
  text.add("timing.batch_size", reply.timing().batch_size);
  text.add("timing.replica", reply.timing().replica);
  text.add("observation_timestamp_ns", reply.observation_timestamp_ns());
  text.add("phase_shift_ms", reply.phase_shift_ms());
  text.add("protocol_version", reply.protocol_version());
  text.add("reason", static_cast<int>(reply.reason()));
  google::protobuf::Map<std::string, std::string> metadata;
  for (const auto& entry : reply.metadata()) metadata[std::string(entry.key)] = std::string(entry.value);
  text.add_metadata(metadata);
  for (std::size_t i = 0; i < reply.tensors().size(); ++i) {
    const auto& tensor = reply.tensors().begin()[i];
    const auto& fields = message->fields.tensors(static_cast<int>(i));
    EXPECT_EQ(tensor.key(), fields.key());
    EXPECT_EQ(static_cast<int>(tensor.dtype()), static_cast<int>(fields.dtype()));
    text.add_tensor(fields, tensor.bytes(), true);
  }
  return text;
}

class Vectors : public testing::TestWithParam<Vector> {
 protected:
  std::shared_ptr<MessagePool> pool_ = std::make_shared<MessagePool>();
};

void check_response(const Vector& vector, const std::shared_ptr<MessagePool>& pool) {
  auto message = test::message_of(*pool, contents_of(root + vector.name + ".envelope"), payload_of(vector));
  const bool decoded = wire::decode(*message);
  EXPECT_EQ(message->fields.request_id(), vector.request_id);
  if (vector.verdict == "valid") {
    ASSERT_TRUE(decoded) << message->error;
    EXPECT_EQ(describe(message).lines(), expected_lines(vector));
    return;
  }
  ASSERT_FALSE(decoded);
  EXPECT_NE(message->error, "");
  if (vector.field != "envelope") {
    EXPECT_NE(message->error.find(vector.field), std::string::npos) << message->error;
    EXPECT_NE(message->error.find("'" + vector.key + "'"), std::string::npos) << message->error;
  }
}

void check_observation(const Vector& vector) {
  v1::Observation fields;
  const bool parsed = fields.ParseFromString(contents_of(root + vector.name + ".envelope"));
  if (vector.field == "envelope") {
    EXPECT_FALSE(parsed);
    return;
  }
  ASSERT_TRUE(parsed);
  std::vector<Frame> payload;
  for (const auto& bytes : payload_of(vector)) payload.push_back(test::frame_of(bytes));
  const auto error = fields.tensors_size() > wire::max_tensors
                         ? "tensors '': more than a client sends"
                         : wire::check_tensors(fields.tensors(), {payload.data(), payload.size()});

  if (vector.verdict == "valid") {
    ASSERT_EQ(error, "");
    EXPECT_EQ(describe(fields, payload, true).lines(), expected_lines(vector));

    // Encoded again, laid out this SDK's way, it reads the same.
    for (const bool one_frame : {true, false}) {
      v1::Observation again = fields;
      std::vector<wire::Source> sources;
      for (const auto& tensor : fields.tensors()) {
        sources.push_back({payload[tensor.frame()].data() + tensor.byte_offset(), tensor.byte_length()});
      }
      std::vector<Frame> laid_out;
      wire::lay_out(again, sources, one_frame, 16, laid_out);
      const auto envelope = wire::encode(again);
      v1::Observation read;
      ASSERT_TRUE(read.ParseFromArray(envelope.data(), static_cast<int>(envelope.size())));
      EXPECT_EQ(wire::check_tensors(read.tensors(), {laid_out.data(), laid_out.size()}), "");
      EXPECT_EQ(describe(read, laid_out, false).lines(), describe(fields, payload, false).lines());
    }
    return;
  }

  // A server's other checks are not this SDK's; those of tensors are.
  const bool of_tensors = !vector.key.empty() || vector.field == "key" || vector.field == "tensors";
  if (of_tensors && vector.field != "metadata") {
    EXPECT_NE(error.find(vector.field), std::string::npos) << error;
    EXPECT_NE(error.find(vector.key), std::string::npos) << error;
  } else {
    EXPECT_EQ(error, "");
  }
}

TEST_P(Vectors, DecodeToWhatTheySay) {
  const auto& vector = GetParam();
  if (vector.message == "ModelResponse") {
    check_response(vector, pool_);
  } else {
    check_observation(vector);
  }
}

std::string test_name(const testing::TestParamInfo<Vector>& info) {
  std::string name = info.param.name;
  for (auto& character : name) {
    if (std::isalnum(static_cast<unsigned char>(character)) == 0) character = '_';
  }
  return name;
}

// With no vectors found there is no test, and an uninstantiated suite fails.
INSTANTIATE_TEST_SUITE_P(Golden, Vectors, testing::ValuesIn(manifest()), test_name);

TEST(Manifest, IsThere) { EXPECT_GT(manifest().size(), 200u) << "run from the repository's root"; }

}  // namespace
}  // namespace inferential
