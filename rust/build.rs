//! Compiles libzmq with CURVE (libsodium) into a static library, so that cargo alone builds the crate.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Set by libsodium-sys-stable's own build; the library lies beside its headers.
    let include = PathBuf::from(
        env::var_os("DEP_SODIUM_INCLUDE").expect("libsodium-sys-stable did not say where its headers are"),
    );
    let lib = include.parent().map(|root| root.join("lib")).expect("libsodium's include folder has no parent");
    // cargo prints a path crate's C++ warnings; these are libzmq's and not ours to mend.
    let flags = env::var("CXXFLAGS").unwrap_or_default();
    // zeromq-src asks the system for less than libzmq's own build does: threads would wake each other through socket pairs.
    let linux = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux" || os == "android");
    let quicker = if linux { "-DZMQ_HAVE_EVENTFD -DZMQ_HAVE_EVENTFD_CLOEXEC" } else { "" };
    env::set_var("CXXFLAGS", format!("{flags} -w {quicker}"));
    zeromq_src::Build::new().with_libsodium(Some(zeromq_src::LibLocation::new(lib, include))).build();
}
