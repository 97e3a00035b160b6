#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "inferential/options.hpp"
#include "message.hpp"

namespace inferential {

/// The DEALER socket and its monitor. Used by one thread at a time. Never blocks but in wait() and close().
class Transport {
 public:
  /// Connects in the background. With a bad address or option nothing is opened and error() says why.
  Transport(std::string_view address, const ConnectionOptions& options);
  ~Transport();
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  const std::string& error() const noexcept { return error_; }

  /// All frames or none: false where the queue is full or there is no peer. Takes the frames' contents.
  bool send(Frame& envelope, std::vector<Frame>& payload) noexcept;

  /// Looks whether anything has arrived; without it receive() and next_link_event() find nothing new. Then call
  /// these two until they are empty.
  void look() noexcept;

  struct Received {
    detail::MessageRef message;
    bool framed;  // the frames are those of a reply
  };
  /// The next message that has arrived.
  std::optional<Received> receive(MessagePool& pool);

  enum class LinkEvent { Up, Down };  // Down: whatever says that there is no connection, or not yet
  std::optional<LinkEvent> next_link_event(Time now) noexcept;

  /// ZMQ gives a connection up for good where the peer breaks the protocol. When to connect anew unless it is up by
  /// then, so that the right server is found once it is there.
  std::optional<Time> revival_due() const noexcept;
  /// Does it where it is due. Drops what has not been received.
  void revive(Time now) noexcept;

  /// look(), waiting for something to arrive at most so long; may return early. Call it when receive() and
  /// next_link_event() are empty.
  void wait(Time duration) noexcept;

  /// At most linger_ms; the resolution of a name that is under way may take longer.
  void close() noexcept;

  /// Whether this is the child of a fork of the process that made it: ZMQ's thread stayed behind, and no call would
  /// end.
  bool inherited() const noexcept;

 private:
  bool open(const std::string& endpoint, const ConnectionOptions& options);
  bool fail(const std::string& what);
  bool poll(Time timeout) noexcept;  // false where a signal cut it short

  void* context_ = nullptr;
  void* socket_ = nullptr;
  void* monitor_ = nullptr;
  std::string endpoint_;
  int socket_fd_ = -1;
  int monitor_fd_ = -1;
  // Whether there may be something to receive. ZMQ's descriptors are edge-triggered: one that is not readable after the
  // socket was found empty says that nothing has come since, at the price of one system call for both.
  bool socket_ready_ = true;
  bool monitor_ready_ = true;
  bool just_looked_ = false;          // in wait()
  int frames_received_ = 0;           // since the socket was found empty
  std::optional<Time> broken_since_;  // until it is up, or was connected anew
  const unsigned forks_;              // of this process and its ancestors, when it was made
  std::string error_;
};

/// As ZMQ wants it: with the scheme, without blanks around. Sets the error where the address cannot be one.
std::string normalize_address(std::string_view address, std::string& error);

}  // namespace inferential
