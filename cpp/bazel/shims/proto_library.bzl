"""The rule that Bazel 4 has built in."""

proto_library = native.proto_library
