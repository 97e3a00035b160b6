//! The examples run, and the documentation shows them as they are.

mod common;

use common::Server;

#[allow(dead_code)]
#[path = "../examples/control_loop.rs"]
mod control_loop;

#[test]
fn the_control_loop_acts_on_fresh_answers() {
    // A policy that pulls every joint to zero.
    let server = Server::start_at("tcp://127.0.0.1:*", |request| {
        let state = request.tensors()["state"].to_vec::<f32>().unwrap();
        let velocities: Vec<u8> = state.iter().flat_map(|joint| (-joint).to_le_bytes()).collect();
        let mut answer = request.echo();
        answer.envelope.tensors[0].key = "actions".to_owned();
        answer.payloads = vec![velocities.into()];
        vec![answer]
    });
    // On a machine so busy that no answer comes within 18 ms, another round.
    assert!((0..20).any(|_| control_loop::run(&server.address, 50).unwrap() > 0));
    let states =
        std::iter::from_fn(|| server.try_request()).map(|request| request.tensors()["state"].as_f32().unwrap()[0]);
    let least = states.reduce(f32::min).expect("observations");
    assert!(least < 0.3, "the joints move from 0.3 to zero");
}

#[test]
fn the_control_loop_stands_still_without_a_server() {
    assert_eq!(control_loop::run("127.0.0.1:1", 3).unwrap(), 0);
}

#[test]
fn the_documentation_shows_the_examples() {
    let read = |path: &str| std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let page = read("../docs/sdk-rust.md");
    assert!(page.contains(read("examples/control_loop.rs").trim()), "docs/sdk-rust.md shows another control loop");
    let quickstart = read("examples/quickstart.rs");
    let program: Vec<&str> = page
        .lines()
        .skip_while(|line| *line != "use inferential::Connection;")
        .take_while(|line| !line.starts_with("```"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    assert!(program.len() > 10);
    for line in program {
        assert!(quickstart.contains(line), "docs/sdk-rust.md has a line that the quick start has not: {line}");
    }
}
