#pragma once

#include <zmq.h>

#include <cstddef>
#include <new>
#include <utility>

namespace inferential {

/// One ZMQ frame, the buffer type of every layer: what arrives is used where it lies, what leaves is
/// written once where ZMQ wants it. (zmq_msg_t is memory only; sockets are the transport's alone.)
class Frame {
 public:
  Frame() noexcept { zmq_msg_init(&message_); }
  explicit Frame(std::size_t size) {
    if (zmq_msg_init_size(&message_, size) != 0) throw std::bad_alloc();
  }
  Frame(Frame&& other) noexcept : Frame() { zmq_msg_move(&message_, &other.message_); }
  Frame& operator=(Frame&& other) noexcept {
    zmq_msg_move(&message_, &other.message_);
    return *this;
  }
  ~Frame() { zmq_msg_close(&message_); }

  // A short message lies inside the zmq_msg_t: moving a Frame may move its bytes.
  std::byte* data() noexcept { return static_cast<std::byte*>(zmq_msg_data(&message_)); }
  const std::byte* data() const noexcept {
    return static_cast<const std::byte*>(zmq_msg_data(const_cast<zmq_msg_t*>(&message_)));
  }
  std::size_t size() const noexcept { return zmq_msg_size(&message_); }
  bool more() const noexcept { return zmq_msg_more(&message_) != 0; }
  zmq_msg_t* handle() noexcept { return &message_; }

 private:
  zmq_msg_t message_;
};

}  // namespace inferential
