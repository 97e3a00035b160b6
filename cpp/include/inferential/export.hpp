#pragma once

// Everything is hidden but what carries this macro, so that the SDK's own copies of protobuf
// messages never meet those of the program it is linked into.
#if defined(_WIN32)
#if defined(INFERENTIAL_SHARED)
#if defined(INFERENTIAL_BUILDING)
#define INFERENTIAL_API __declspec(dllexport)
#else
#define INFERENTIAL_API __declspec(dllimport)
#endif
#else
#define INFERENTIAL_API
#endif
#else
#define INFERENTIAL_API __attribute__((visibility("default")))
#endif
