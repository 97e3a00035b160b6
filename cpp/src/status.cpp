#include "inferential/status.hpp"

#include "inferential/error.hpp"
#include "inferential/options.hpp"
#include "inferential/tensor.hpp"

namespace inferential {

std::string_view to_string(Status status) noexcept {
  switch (status) {
    case Status::Ok: return "OK";
    case Status::InvalidObservation: return "INVALID_OBSERVATION";
    case Status::UnknownModel: return "UNKNOWN_MODEL";
    case Status::Rejected: return "REJECTED";
    case Status::Expired: return "EXPIRED";
    case Status::Superseded: return "SUPERSEDED";
    case Status::ModelError: return "MODEL_ERROR";
    case Status::Unavailable: return "UNAVAILABLE";
    case Status::ShuttingDown: return "SHUTTING_DOWN";
    case Status::Unauthenticated: return "UNAUTHENTICATED";
    case Status::Cancelled: return "CANCELLED";
    case Status::TimedOut: return "TIMED_OUT";
    case Status::LinkLost: return "LINK_LOST";
    case Status::NotSent: return "NOT_SENT";
  }
  return "UNKNOWN";
}

std::string_view to_string(Reason reason) noexcept {
  switch (reason) {
    case Reason::None: return "NONE";
    case Reason::QueueFull: return "QUEUE_FULL";
    case Reason::CannotMeetDeadline: return "CANNOT_MEET_DEADLINE";
    case Reason::OverShare: return "OVER_SHARE";
    case Reason::TooLarge: return "TOO_LARGE";
  }
  return "UNKNOWN";
}

std::string_view to_string(LinkState state) noexcept {
  switch (state) {
    case LinkState::Connecting: return "CONNECTING";
    case LinkState::Up: return "UP";
    case LinkState::Down: return "DOWN";
    case LinkState::Closed: return "CLOSED";
  }
  return "UNKNOWN";
}

std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::InvalidArgument: return "INVALID_ARGUMENT";
    case ErrorCode::NotSent: return "NOT_SENT";
    case ErrorCode::Closed: return "CLOSED";
    case ErrorCode::ConcurrentUse: return "CONCURRENT_USE";
    case ErrorCode::NothingOutstanding: return "NOTHING_OUTSTANDING";
    case ErrorCode::TimedOut: return "TIMED_OUT";
    case ErrorCode::NotOk: return "NOT_OK";
    case ErrorCode::MissingTensor: return "MISSING_TENSOR";
    case ErrorCode::WrongType: return "WRONG_TYPE";
    case ErrorCode::Unsupported: return "UNSUPPORTED";
    case ErrorCode::OutOfMemory: return "OUT_OF_MEMORY";
  }
  return "UNKNOWN";
}

std::string_view to_string(Source source) noexcept {
  switch (source) {
    case Source::Fresh: return "FRESH";
    case Source::Hold: return "HOLD";
    case Source::Decay: return "DECAY";
    case Source::Zero: return "ZERO";
    case Source::Callback: return "CALLBACK";
    case Source::None: return "NONE";
  }
  return "UNKNOWN";
}

std::string_view to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::Unspecified: break;
    case DType::Float16: return "FLOAT16";
    case DType::Float32: return "FLOAT32";
    case DType::Float64: return "FLOAT64";
    case DType::BFloat16: return "BFLOAT16";
    case DType::UInt8: return "UINT8";
    case DType::Int32: return "INT32";
    case DType::Int64: return "INT64";
    case DType::Bool: return "BOOL";
    case DType::UInt16: return "UINT16";
    case DType::Int8: return "INT8";
    case DType::Int16: return "INT16";
    case DType::UInt32: return "UINT32";
    case DType::UInt64: return "UINT64";
    case DType::Float8E4M3FN: return "FLOAT8_E4M3FN";
    case DType::Float8E5M2: return "FLOAT8_E5M2";
  }
  return "UNSPECIFIED";
}

std::string_view to_string(Encoding encoding) noexcept {
  switch (encoding) {
    case Encoding::Raw: return "RAW";
    case Encoding::Jpeg: return "JPEG";
    case Encoding::Png: return "PNG";
  }
  return "UNKNOWN";
}

std::size_t itemsize(DType dtype) noexcept {
  switch (dtype) {
    case DType::UInt8:
    case DType::Int8:
    case DType::Bool:
    case DType::Float8E4M3FN:
    case DType::Float8E5M2: return 1;
    case DType::Float16:
    case DType::BFloat16:
    case DType::UInt16:
    case DType::Int16: return 2;
    case DType::Float32:
    case DType::Int32:
    case DType::UInt32: return 4;
    case DType::Float64:
    case DType::Int64:
    case DType::UInt64: return 8;
    case DType::Unspecified: break;
  }
  return 0;
}

}  // namespace inferential
