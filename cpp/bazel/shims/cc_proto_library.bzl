"""The rule that Bazel 4 has built in."""

cc_proto_library = native.cc_proto_library
