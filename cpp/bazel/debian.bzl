"""The repositories of MODULE.bazel for Bazel 4.2.3, each made of a Debian package.

A workspace that depends on this one through a local_repository calls debian_repositories() too.
"""

def _shim_impl(repository_ctx):
    for label, path in repository_ctx.attr.files.items():
        repository_ctx.symlink(label, path)
    for path, target in repository_ctx.attr.links.items():
        repository_ctx.symlink(target, path)
    repository_ctx.file("WORKSPACE", "workspace(name = \"%s\")\n" % repository_ctx.name)

# A repository of files of this tree (label -> path) and links to what is installed (path -> target).
_shim = repository_rule(
    implementation = _shim_impl,
    attrs = {
        "files": attr.label_keyed_string_dict(),
        "links": attr.string_dict(),
    },
    local = True,
)

def _file(name):
    return "@inferential//cpp/bazel/shims:" + name

def debian_repositories(name = "debian"):
    """Of Debian's bazel-rules-java, -rules-proto, -platforms, -skylib, libzmq3-dev, protobuf-compiler, libprotobuf-dev, libgtest-dev and libgmock-dev.

    Args:
      name: unused; every macro has one.
    """
    for repository, path in {
        "bazel_skylib": "/usr/share/bazel/tools/skylib",
        "platforms": "/usr/share/bazel/tools/platforms",
        "rules_java": "/usr/share/bazel/rules/java",
        "rules_proto": "/usr/share/bazel/rules/proto",
    }.items():
        native.local_repository(name = repository, path = path)

    _shim(
        name = "rules_cc",
        files = {
            _file("empty.BUILD"): "cc/BUILD",
            _file("rules_cc_defs.bzl"): "cc/defs.bzl",
        },
    )
    _shim(
        name = "protobuf",
        files = {
            _file("protobuf.BUILD"): "BUILD",
            _file("empty.BUILD"): "bazel/BUILD",
            _file("cc_proto_library.bzl"): "bazel/cc_proto_library.bzl",
            _file("proto_library.bzl"): "bazel/proto_library.bzl",
        },
    )
    _shim(
        name = "remote_coverage_tools",
        files = {_file("remote_coverage_tools.BUILD"): "BUILD"},
    )
    _shim(
        name = "system_protoc",
        files = {_file("system_protoc.BUILD"): "BUILD"},
        links = {"protoc": "/usr/bin/protoc"},
    )
    _shim(
        name = "libzmq",
        files = {_file("libzmq.BUILD"): "BUILD"},
    )
    _shim(
        name = "googletest",
        files = {_file("googletest.BUILD"): "BUILD"},
    )
