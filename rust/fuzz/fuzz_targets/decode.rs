//! Anything that a server may send: split into frames, fed to a session, its tensors read.
//!
//! `fuzz/run.sh [seconds]`, or with nightly Rust `cargo fuzz run decode`.

#![no_main]

use std::time::{Duration, Instant};

use bytes::Bytes;
use inferential::observation::Fields;
use inferential::session::{Session, SessionOptions, Taken};
use inferential::{wire, Tensors};
use libfuzzer_sys::fuzz_target;

/// The first byte says where to cut: the envelope ends there, counted from the end, and the rest is one or two payloads.
fn frames(data: &[u8]) -> Option<Vec<Bytes>> {
    let (&cut, rest) = data.split_first()?;
    let (envelope, payload) = rest.split_at(rest.len() - usize::from(cut).min(rest.len()));
    let (first, second) = payload.split_at(payload.len() / 2);
    let copy = Bytes::copy_from_slice;
    Some(match cut % 3 {
        0 => vec![Bytes::new(), copy(envelope)],
        1 => vec![Bytes::new(), copy(envelope), copy(payload)],
        _ => vec![Bytes::new(), copy(envelope), copy(first), copy(second)],
    })
}

fn read(tensors: &Tensors) {
    for (key, tensor) in tensors.iter() {
        assert!(!key.is_empty());
        let views = [
            tensor.to_vec::<f32>().map(|elements| elements.len()),
            tensor.as_slice::<f64>().map(<[f64]>::len),
            tensor.to_vec::<bool>().map(|elements| elements.len()),
            tensor.as_slice::<i16>().map(<[i16]>::len),
        ];
        let readable = views.iter().flatten().count();
        assert!(readable <= 1, "a tensor is of one type");
        assert!(views.iter().flatten().all(|&length| length == tensor.len()));
    }
}

fuzz_target!(|data: &[u8]| {
    let Some(frames) = frames(data) else { return };
    if let Ok(tensors) = wire::decode_reply(&frames).and_then(|reply| reply.tensors) {
        read(&tensors);
    }
    let mut session = Session::new(SessionOptions {
        client_id: "agent".to_owned(),
        client_type: String::new(),
        hold_off: true,
        request_timeout: Duration::from_secs(1),
        max_message_bytes: 1 << 20,
    });
    session.link_up();
    let now = Instant::now();
    let model = session.model("policy");
    for _ in 0..3 {
        let _ = session.observe(now, 0, model, &Fields::default());
    }
    session.on_message(now, &frames);
    session.on_message(now, &frames);
    session.close(now);
    let mut outcomes = 0;
    while let Taken::Some(reply) = session.take_next(model) {
        outcomes += 1;
        read(&reply.tensors);
    }
    assert_eq!(outcomes, 3, "every request ends once");
});
