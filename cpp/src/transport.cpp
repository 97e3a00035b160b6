#include "transport.hpp"

#include <zmq.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#if defined(__linux__)
#include <poll.h>
#include <time.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <arpa/inet.h>
#include <pthread.h>
#elif defined(_WIN32)
#include <ws2tcpip.h>
#endif

namespace inferential {
namespace {

// Of one attempt: a host that comes back is found within two seconds, whatever TCP's own backoff.
constexpr int connect_attempt_ms = 1000;

// From a break of the connection until it is made anew, once: that also ends an attempt that is under way, and the
// look-up of a name may take longer.
constexpr Time connect_anew_after = std::chrono::seconds(3);

// As many as a model's inbox holds. Once they are full ZMQ reads no more, not even the answers to its heartbeats, and
// gives the link up.
constexpr int receive_queue_messages = 65'536;

constexpr const char* monitor_endpoint = "inproc://link";  // unique within the socket's own context

std::string check_options(const ConnectionOptions& options) {
  const auto number = [](const char* name, long long value, const char* range) {
    return std::string(name) + " is " + std::to_string(value) + ", must be " + range;
  };
  if (options.connect_timeout_ms < 0) return number("connect_timeout_ms", options.connect_timeout_ms, "0 or more");
  if (options.request_timeout_ms < 1) return number("request_timeout_ms", options.request_timeout_ms, "1 or more");
  if (options.heartbeat_interval_ms < 300 || options.heartbeat_interval_ms > 1000) {
    return number("heartbeat_interval_ms", options.heartbeat_interval_ms, "300 to 1000");
  }
  if (options.reconnect_interval_ms < 1)
    return number("reconnect_interval_ms", options.reconnect_interval_ms, "1 or more");
  if (options.reconnect_interval_max_ms < options.reconnect_interval_ms || options.reconnect_interval_max_ms > 500) {
    return number("reconnect_interval_max_ms", options.reconnect_interval_max_ms, "reconnect_interval_ms to 500");
  }
  if (options.linger_ms < 0 || options.linger_ms > 10'000) return number("linger_ms", options.linger_ms, "0 to 10000");
  if (options.send_queue_messages < 1) return number("send_queue_messages", options.send_queue_messages, "1 or more");
  if (options.max_message_bytes < 1) return number("max_message_bytes", options.max_message_bytes, "1 or more");
  if (options.inbox_replies < 1) return number("inbox_replies", 0, "1 or more");
  return {};
}

// Nothing here waits, yet a signal may interrupt a call before it has done anything.
int send_now(Frame& frame, void* socket, int flags) noexcept {
  int result;
  do {
    result = zmq_msg_send(frame.handle(), socket, ZMQ_DONTWAIT | flags);
  } while (result < 0 && zmq_errno() == EINTR);
  return result;
}

int receive_now(Frame& frame, void* socket) noexcept {
  int result;
  do {
    result = zmq_msg_recv(frame.handle(), socket, ZMQ_DONTWAIT);
  } while (result < 0 && zmq_errno() == EINTR);
  return result;
}

// Asked for its events ZMQ sees to all its commands.
void see_to_commands(void* socket) noexcept {
  int events = 0;
  std::size_t size = sizeof events;
  zmq_getsockopt(socket, ZMQ_EVENTS, &events, &size);
}

// In every 100th call that receives a frame ZMQ sees to its commands. Where one of them says that the link is gone, and
// that call is in the midst of a message, it aborts the program. So after these frames it is asked to between messages.
constexpr int frames_between_commands = 64;

// Counted, as to ask for the process's id is a system call.
std::atomic<unsigned> forks{0};
#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int counting_forks =
    pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
#endif

std::string bad_address(std::string_view address) {
  return "address '" + std::string(address) +
         "' must be tcp://HOST:PORT, with a port of 1 to 65535 and an IPv6 address in brackets, or ipc://PATH";
}

bool starts_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

// As ZMQ and name servers know them, whatever the locale.
bool is_name(std::string_view text) {
  constexpr std::string_view allowed = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._-";
  return !text.empty() && text.find_first_not_of(allowed) == text.npos &&
         std::string_view("._-").find(text[0]) == text.npos;
}

bool is_ipv6(std::string_view text) {
  const auto percent = text.find('%');
  in6_addr parsed{};
  return inet_pton(AF_INET6, std::string(text.substr(0, percent)).c_str(), &parsed) == 1 &&
         text.find('\0') == text.npos && (percent == text.npos || is_name(text.substr(percent + 1)));
}

// "HOST:PORT" with the port's leading zeros gone; empty where it is none.
std::string host_and_port(std::string_view text) {
  const auto colon = text.rfind(':');
  if (colon == text.npos) return {};
  const auto host = text.substr(0, colon);
  const auto port = text.substr(colon + 1);
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (!(bracketed ? is_ipv6(host.substr(1, host.size() - 2)) : is_name(host))) return {};
  if (port.empty() || port.find_first_not_of("0123456789") != port.npos) return {};
  int number = 0;
  for (const char digit : port) number = std::min(10 * number + (digit - '0'), 65'536);
  if (number < 1 || number > 65'535) return {};
  return std::string(host) + ":" + std::to_string(number);
}

}  // namespace

std::string normalize_address(std::string_view address, std::string& error) {
  constexpr std::string_view blank = " \t\r\n";
  const auto start = std::min(address.find_first_not_of(blank), address.size());
  const auto text = address.substr(start, address.find_last_not_of(blank) + 1 - start);
  if (starts_with(text, "ipc://") && text.size() > 6 && text.find('\0') == text.npos) return std::string(text);

  const auto endpoint = host_and_port(text.substr(starts_with(text, "tcp://") ? 6 : 0));
  if (!endpoint.empty()) return "tcp://" + endpoint;
  error = bad_address(address);
  return {};
}

Transport::Transport(std::string_view address, const ConnectionOptions& options)
    : forks_(forks.load(std::memory_order_relaxed)) {
  error_ = check_options(options);
  if (!error_.empty()) return;
  const auto endpoint = normalize_address(address, error_);
  if (!error_.empty()) return;
  if (!open(endpoint, options)) close();
}

Transport::~Transport() { close(); }

bool Transport::fail(const std::string& what) {
  error_ = what + ": " + zmq_strerror(zmq_errno());
  return false;
}

bool Transport::open(const std::string& endpoint, const ConnectionOptions& options) {
  context_ = zmq_ctx_new();
  if (context_ == nullptr) return fail("cannot make a ZMQ context");
  socket_ = zmq_socket(context_, ZMQ_DEALER);
  if (socket_ == nullptr) return fail("cannot make a ZMQ socket");

  const auto set = [&](int option, int value) { return zmq_setsockopt(socket_, option, &value, sizeof value) == 0; };
  const std::int64_t max_message_bytes = options.max_message_bytes;
  const int heartbeat_timeout_ms = 3 * options.heartbeat_interval_ms;
  const bool ipv6 =
      endpoint.find('[') != std::string::npos;  // else a name may resolve to ::1, where no v4 server listens
  const bool configured =
      set(ZMQ_IMMEDIATE, 1) && set(ZMQ_SNDHWM, options.send_queue_messages) &&
      set(ZMQ_RCVHWM, receive_queue_messages) && set(ZMQ_LINGER, options.linger_ms) &&
      set(ZMQ_HEARTBEAT_IVL, options.heartbeat_interval_ms) && set(ZMQ_HEARTBEAT_TIMEOUT, heartbeat_timeout_ms) &&
      set(ZMQ_HEARTBEAT_TTL, heartbeat_timeout_ms) && set(ZMQ_RECONNECT_IVL, options.reconnect_interval_ms) &&
      set(ZMQ_RECONNECT_IVL_MAX, options.reconnect_interval_max_ms) && set(ZMQ_CONNECT_TIMEOUT, connect_attempt_ms) &&
      (!ipv6 || set(ZMQ_IPV6, 1)) &&
      zmq_setsockopt(socket_, ZMQ_MAXMSGSIZE, &max_message_bytes, sizeof max_message_bytes) == 0;
  if (!configured) return fail("cannot set the socket's options");

  // Few, as an idle program leaves them unread. A handshake that fails ends with DISCONNECTED.
  constexpr int events = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED;
  if (zmq_socket_monitor(socket_, monitor_endpoint, events) != 0) {
    return fail("cannot monitor the socket");
  }
  monitor_ = zmq_socket(context_, ZMQ_PAIR);
  if (monitor_ == nullptr) return fail("cannot make the monitor's socket");
  // Unlimited: an idle program reads no events, and a full monitor queue would stop ZMQ's own thread.
  const int unlimited = 0;
  zmq_setsockopt(monitor_, ZMQ_RCVHWM, &unlimited, sizeof unlimited);
  zmq_setsockopt(monitor_, ZMQ_LINGER, &unlimited, sizeof unlimited);
  if (zmq_connect(monitor_, monitor_endpoint) != 0) return fail("cannot monitor the socket");
  endpoint_ = endpoint;
  if (zmq_connect(socket_, endpoint_.c_str()) != 0) return fail(bad_address(endpoint));
#if defined(__linux__)
  std::size_t size = sizeof socket_fd_;
  return (zmq_getsockopt(socket_, ZMQ_FD, &socket_fd_, &size) == 0 &&
          zmq_getsockopt(monitor_, ZMQ_FD, &monitor_fd_, &size) == 0) ||
         fail("cannot get the sockets' descriptors");
#else
  return true;
#endif
}

bool Transport::send(Frame& envelope, std::vector<Frame>& payload) noexcept {
  socket_ready_ = true;  // a send may take note of arrivals that the descriptor tells of no more
  // The queue is counted in messages, so only the first frame can find it full.
  Frame delimiter;
  const auto send_frame = [&](Frame& frame, bool more) {
    return send_now(frame, socket_, more ? ZMQ_SNDMORE : 0) >= 0;
  };
  if (!send_frame(delimiter, true)) {
    // There may be news of room in the queue. When sending ZMQ looks for such but once a millisecond.
    see_to_commands(socket_);
    if (!send_frame(delimiter, true)) return false;
  }
  // The link may break in the midst. ZMQ then drops all frames up to a last one: this message's, or else the next
  // one's.
  bool sent = send_frame(envelope, true);
  for (std::size_t i = 0; i < payload.size(); ++i) {
    sent = send_frame(payload[i], i + 1 < payload.size()) && sent;
  }
  return sent;
}

std::optional<Transport::Received> Transport::receive(MessagePool& pool) {
  if (!socket_ready_) return std::nullopt;
  if (frames_received_ >= frames_between_commands) see_to_commands(socket_);
  Frame frame;
  if (receive_now(frame, socket_) < 0) {
    frames_received_ = 0;
    // ZMQ has seen to all its commands by then, without its usual throttle: a send that follows finds the
    // link as it is, and the descriptor tells of whatever comes later.
    socket_ready_ = zmq_errno() != EAGAIN;
    return std::nullopt;
  }

  // The rest of a message is there with its first frame.
  Received received{pool.acquire(), frame.size() == 0 && frame.more()};
  auto& message = *received.message;
  frames_received_ += 2;
  if (frame.more()) receive_now(message.envelope, socket_);
  bool more = frame.more() && message.envelope.more();
  while (more) {
    Frame next;
    if (receive_now(next, socket_) < 0) break;
    ++frames_received_;
    more = next.more();
    message.payload.push_back(std::move(next));
  }
  return received;
}

std::optional<Transport::LinkEvent> Transport::next_link_event(Time now) noexcept {
  if (!monitor_ready_) return std::nullopt;
  Frame event;
  if (receive_now(event, monitor_) < 0) {
    monitor_ready_ = zmq_errno() != EAGAIN;
    return std::nullopt;
  }
  std::uint16_t number = 0;
  if (event.size() >= sizeof number) std::memcpy(&number, event.data(), sizeof number);
  if (event.more()) {
    Frame address;
    receive_now(address, monitor_);
  }
  const bool up = number == ZMQ_EVENT_HANDSHAKE_SUCCEEDED;
  broken_since_ = up ? std::nullopt : std::optional(now);
  return up ? LinkEvent::Up : LinkEvent::Down;
}

std::optional<Time> Transport::revival_due() const noexcept {
  if (!broken_since_) return std::nullopt;
  return *broken_since_ + connect_anew_after;
}

void Transport::revive(Time now) noexcept {
  const auto due = revival_due();
  if (!due || now < *due) return;
  zmq_disconnect(socket_, endpoint_.c_str());  // fails where nothing is left of it
  broken_since_ = zmq_connect(socket_, endpoint_.c_str()) == 0 ? std::nullopt : std::optional(now);
  socket_ready_ = true;  // these calls may take note of arrivals that the descriptor tells of no more
}

void Transport::look() noexcept {
  if (!std::exchange(just_looked_, false)) poll(Time{0});
}

void Transport::wait(Time duration) noexcept {
  // What a send has seen of the socket's commands its descriptor no longer tells.
  if (socket_ready_ || monitor_ready_) return;
  just_looked_ = poll(std::max(duration, Time{0}));
}

bool Transport::poll(Time timeout) noexcept {
#if defined(__linux__)
  // Not zmq_poll, which counts in whole milliseconds: much in a control loop.
  // The monitor first: where a link event is seen, so are the messages that came before it.
  pollfd descriptors[2] = {{monitor_fd_, POLLIN, 0}, {socket_fd_, POLLIN, 0}};
  timespec limit{};
  limit.tv_sec = static_cast<time_t>(timeout.count() / 1'000'000'000);
  limit.tv_nsec = static_cast<long>(timeout.count() % 1'000'000'000);
  const int found = ppoll(descriptors, 2, &limit, nullptr);
  if (found <= 0) return found == 0;
  monitor_ready_ = monitor_ready_ || descriptors[0].revents != 0;
  socket_ready_ = socket_ready_ || descriptors[1].revents != 0;
#else
  zmq_pollitem_t items[2] = {{socket_, 0, ZMQ_POLLIN, 0}, {monitor_, 0, ZMQ_POLLIN, 0}};
  zmq_poll(items, 2, static_cast<long>((timeout.count() + 999'999) / 1'000'000));
  socket_ready_ = monitor_ready_ = true;
#endif
  return true;
}

bool Transport::inherited() const noexcept { return forks.load(std::memory_order_relaxed) != forks_; }

void Transport::close() noexcept {
  if (inherited()) context_ = socket_ = monitor_ = nullptr;  // the parent's
  if (monitor_ != nullptr) {
    zmq_socket_monitor(socket_, nullptr, 0);
    zmq_close(monitor_);
  }
  if (socket_ != nullptr) zmq_close(socket_);
  if (context_ != nullptr) {
    while (zmq_ctx_term(context_) != 0 && zmq_errno() == EINTR) {
    }
  }
  context_ = socket_ = monitor_ = nullptr;
}

}  // namespace inferential
