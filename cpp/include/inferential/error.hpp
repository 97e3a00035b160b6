#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "inferential/export.hpp"
#include "inferential/status.hpp"

namespace inferential {

/// What a caller can do about it: one code per reaction.
enum class ErrorCode {
  InvalidArgument,     ///< mend the program: the message names the field
  NotSent,             ///< the link is not up or the send queue is full: fall back, try the next cycle
  Closed,              ///< the connection was closed, or was never set up
  ConcurrentUse,       ///< another thread (or a call further up the stack) is using the connection
  NothingOutstanding,  ///< nothing was asked, so there is nothing to wait for
  TimedOut,            ///< no reply in the time given
  NotOk,               ///< the request ended otherwise than OK: see `status`
  MissingTensor,       ///< the reply has no tensor of that key
  WrongType,           ///< the tensor is of another dtype, or an encoded image
  Unsupported,         ///< the server speaks v1 and cannot do this
  OutOfMemory,
};

INFERENTIAL_API std::string_view to_string(ErrorCode code) noexcept;

/// Why a call gave no value.
struct Error {
  ErrorCode code = ErrorCode::InvalidArgument;
  std::optional<Status> status;  ///< where a request's outcome stands behind the error
  std::string message;           ///< what was wrong, where, and what would be right
  std::uint64_t request_id = 0;  ///< of an observation that was NotSent; else 0
};

/// A value or an Error. `if (result) use(*result); else log(result.error().message);`
template <class T>
class Result {
 public:
  Result(T value) noexcept : content_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) noexcept : content_(std::in_place_index<1>, std::move(error)) {}

  [[nodiscard]] bool has_value() const noexcept { return content_.index() == 0; }
  explicit operator bool() const noexcept { return has_value(); }

  /// Undefined without a value, as with std::optional; value() checks.
  [[nodiscard]] T& operator*() & noexcept { return *std::get_if<0>(&content_); }
  [[nodiscard]] const T& operator*() const& noexcept { return *std::get_if<0>(&content_); }
  [[nodiscard]] T&& operator*() && noexcept { return std::move(*std::get_if<0>(&content_)); }
  [[nodiscard]] T* operator->() noexcept { return std::get_if<0>(&content_); }
  [[nodiscard]] const T* operator->() const noexcept { return std::get_if<0>(&content_); }

  /// Throws std::runtime_error with the error's message where there is no value.
  [[nodiscard]] T& value() & {
    require_value();
    return **this;
  }
  [[nodiscard]] const T& value() const& {
    require_value();
    return **this;
  }
  [[nodiscard]] T&& value() && {
    require_value();
    return std::move(**this);
  }

  /// Undefined where there is a value.
  [[nodiscard]] const Error& error() const noexcept { return *std::get_if<1>(&content_); }

 private:
  void require_value() const {
    if (!has_value()) throw std::runtime_error(error().message);
  }

  std::variant<T, Error> content_;
};

}  // namespace inferential
