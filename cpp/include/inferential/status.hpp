#pragma once

#include <cstdint>
#include <string_view>

#include "inferential/export.hpp"

namespace inferential {

/// How a request ended. 0..10 come from the server, 1001..1003 from this SDK alone.
/// A number that this version does not know is kept as it is, and is not OK.
enum class Status : std::int32_t {
  Ok = 0,
  InvalidObservation = 1,
  UnknownModel = 2,
  Rejected = 3,
  Expired = 4,
  Superseded = 5,
  ModelError = 6,
  Unavailable = 7,
  ShuttingDown = 8,
  Unauthenticated = 9,
  Cancelled = 10,
  TimedOut = 1001,  ///< no reply in the time the caller gave
  LinkLost = 1002,  ///< the link went down while the request was outstanding
  NotSent = 1003,   ///< never left this process
};

/// Finer than Status; unknown numbers are kept.
enum class Reason : std::int32_t {
  None = 0,
  QueueFull = 1,
  CannotMeetDeadline = 2,
  OverShare = 3,
  TooLarge = 4,
};

/// The connection's link to the server.
enum class LinkState {
  Connecting,  ///< never up yet
  Up,
  Down,    ///< was up; reconnects by itself
  Closed,  ///< closed by the program, or could not be set up at all
};

/// The name on the wire, "REJECTED" say; "UNKNOWN" for a number this version does not know.
INFERENTIAL_API std::string_view to_string(Status status) noexcept;
INFERENTIAL_API std::string_view to_string(Reason reason) noexcept;
INFERENTIAL_API std::string_view to_string(LinkState state) noexcept;

}  // namespace inferential
