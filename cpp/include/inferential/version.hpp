#pragma once

#include "inferential/export.hpp"

namespace inferential {

/// The SDK's version, "2.0.0" say.
INFERENTIAL_API const char* version() noexcept;

}  // namespace inferential
