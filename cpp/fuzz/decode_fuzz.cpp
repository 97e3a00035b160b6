// A message from a server that means ill: whatever its frames hold, decoding it ends in a reply or in an error
// text, and every tensor of a reply can be read to its last byte.
//
// Input: the number of payload frames (1 byte), for each its size (2 bytes, little-endian), the frames' bytes, and
// the rest is the envelope.

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cpp/src/session.hpp"
#include "cpp/src/wire.hpp"
#include "inferential/reply.hpp"

namespace {

using namespace inferential;

Frame frame_of(const std::uint8_t* data, std::size_t size) {
  Frame frame(size);
  if (size > 0) std::memcpy(frame.data(), data, size);
  return frame;
}

void require(bool condition) {
  if (!condition) std::abort();
}

template <class T>
std::size_t read_as(const Tensor& tensor) {
  const auto values = tensor.as<T>();
  require(values.data() == nullptr || reinterpret_cast<std::uintptr_t>(values.data()) % alignof(T) == 0);
  std::size_t zeros = 0;
  const T zero{};
  for (std::size_t i = 0; i < values.size(); ++i) zeros += std::memcmp(&values[i], &zero, sizeof zero) == 0;
  return values.size() + (zeros > values.size() ? 1 : 0);
}

void read(const Reply& reply) {
  for (const auto& tensor : reply.tensors()) {
    require(!tensor.key().empty());
    require(tensor.shape().size() <= 32);
    std::size_t sum = 0;
    for (const auto byte : tensor.bytes()) sum += std::to_integer<std::size_t>(byte);
    sum += read_as<float>(tensor) + read_as<double>(tensor) + read_as<float16>(tensor) + read_as<bfloat16>(tensor) +
           read_as<float8_e4m3fn>(tensor) + read_as<float8_e5m2>(tensor) + read_as<bool>(tensor) +
           read_as<std::uint8_t>(tensor) + read_as<std::uint16_t>(tensor) + read_as<std::uint32_t>(tensor) +
           read_as<std::uint64_t>(tensor) + read_as<std::int8_t>(tensor) + read_as<std::int16_t>(tensor) +
           read_as<std::int32_t>(tensor) + read_as<std::int64_t>(tensor);
    require(sum < static_cast<std::size_t>(-1));
    if (tensor.encoding() == Encoding::Raw) {
      require(tensor.bytes().size() == tensor.element_count() * itemsize(tensor.dtype()));
    }
  }
  for (const auto& entry : reply.metadata()) require(reply.metadata(entry.key) == entry.value);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto pool = std::make_shared<MessagePool>();
  const auto* end = data + size;
  const auto available = [&] { return static_cast<std::size_t>(end - data); };
  if (available() < 1) return 0;
  const std::size_t frames = *data++;
  if (available() < 2 * frames) return 0;
  const auto* sizes = data;
  data += 2 * frames;

  auto message = pool->acquire();
  for (std::size_t i = 0; i < frames; ++i) {
    const std::size_t wanted = sizes[2 * i] + 256u * sizes[2 * i + 1];
    const std::size_t frame = wanted < available() ? wanted : available();
    message->payload.push_back(frame_of(data, frame));
    data += frame;
  }
  message->envelope = frame_of(data, available());

  Session session({std::chrono::seconds(1), 16, true}, pool);
  session.link_up();
  const auto model = session.model("policy");
  for (int i = 0; i < 8; ++i) {
    session.transmitted(session.open_observe(model, "", 0, 0, Time{0}).request_id, true);
  }
  session.receive(std::move(message), true, Time{1});
  session.expire(std::chrono::seconds(2));
  for (int replies = 0;; ++replies) {
    const auto taken = session.take_next(model);
    if (taken.outcome != Session::Taken::Outcome::Reply) {
      require(replies == 8);  // each request ended exactly once, whatever came
      break;
    }
    read(Reply(taken.message));
  }
  return 0;
}
