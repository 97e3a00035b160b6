//! Tells the module which version of the SDK it is built against: what cargo resolved, not what was asked for.

use std::{env, fs, path::Path};

fn main() {
    let lock = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("Cargo.lock");
    println!("cargo:rerun-if-changed={}", lock.display());
    let text = fs::read_to_string(&lock).expect("cargo has written Cargo.lock");
    let package = text.split("[[package]]").find(|p| p.contains("name = \"inferential\"\n")).expect("a dependency");
    let version = package.split("version = \"").nth(1).and_then(|rest| rest.split('"').next()).expect("a version");
    println!("cargo:rustc-env=SDK_VERSION={version}");
}
