//! The checked-in generated code is what the schema gives, so that users need neither protoc nor protox.
//! After a change of the schema: `cargo test --test schema -- --ignored regenerate`.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn generate() -> String {
    let include = root().join("../proto");
    let files = protox::compile(["inferential/v1/inferential.proto"], [&include]).expect("the schema compiles");
    let out = std::env::temp_dir().join(format!("inferential-schema-{}", std::process::id()));
    std::fs::create_dir_all(&out).unwrap();
    prost_build::Config::new().out_dir(&out).compile_fds(files).expect("prost generates");
    let code = std::fs::read_to_string(out.join("inferential.v1.rs")).unwrap();
    std::fs::remove_dir_all(&out).unwrap();
    code
}

#[test]
fn generated_code_matches_the_schema() {
    let checked_in = std::fs::read_to_string(root().join("src/proto.rs")).unwrap();
    assert!(
        checked_in == generate(),
        "src/proto.rs differs from proto/; run: cargo test --test schema -- --ignored regenerate"
    );
}

#[test]
#[ignore = "writes src/proto.rs"]
fn regenerate() {
    std::fs::write(root().join("src/proto.rs"), generate()).unwrap();
}
