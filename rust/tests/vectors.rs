//! The golden vectors that the three languages share (../conformance/vectors).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use inferential::observation::{Fields, Part};
use inferential::zmq::Message;
use inferential::{proto, wire, Tensors};
use prost::Message as _;

struct Vector {
    name: String,
    message: String,
    valid: bool,
    status: i32,
    request_id: u64,
    key: String,
    field: String,
    envelope: Bytes,
    payloads: Vec<Bytes>,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/vectors")
}

fn read(path: impl AsRef<Path>) -> Bytes {
    let path = root().join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
}

fn vectors() -> Vec<Vector> {
    let manifest = String::from_utf8(read("manifest.tsv").to_vec()).unwrap();
    let vectors: Vec<Vector> = manifest
        .lines()
        .map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            let name = columns[0];
            let valid = columns[2] == "valid";
            let frames: usize = columns[3].parse().unwrap();
            let payloads = (0..frames).map(|index| match index {
                0 => read(format!("{name}.payload")),
                _ => read(format!("{name}.payload.{index}")),
            });
            let text = if valid { read(format!("{name}.txt")) } else { Bytes::new() };
            Vector {
                name: name.to_owned(),
                message: columns[1].to_owned(),
                valid,
                status: columns[4].parse().unwrap(),
                request_id: columns[5].parse().unwrap(),
                key: columns[6].to_owned(),
                field: columns[7].to_owned(),
                envelope: read(format!("{name}.envelope")),
                payloads: payloads.collect(),
                text: String::from_utf8(text.to_vec()).unwrap(),
            }
        })
        .collect();
    assert!(vectors.len() > 100);
    vectors
}

fn reply_frames(vector: &Vector) -> Vec<Bytes> {
    [Bytes::new(), vector.envelope.clone()].into_iter().chain(vector.payloads.iter().cloned()).collect()
}

/// The lines of a vector's text that say what its tensors are, from the tensors as decoded. Where each lies is the message's.
fn tensor_lines(tensors: &Tensors, places: &[proto::Tensor]) -> Vec<String> {
    let encodings = places.iter().map(|place| place.encoding);
    tensors
        .iter()
        .zip(places)
        .zip(encodings)
        .map(|(((key, tensor), place), encoding)| {
            // 0 may be reported as 1.
            let encoding = if encoding == 0 { 0 } else { tensor.encoding().number() };
            let shape = tensor.shape().iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            let hex = tensor.bytes().iter().take(64).fold(String::new(), |mut hex, byte| {
                write!(hex, "{byte:02x}").unwrap();
                hex
            });
            let (dtype, timestamp_ns) = (tensor.dtype().number(), tensor.timestamp_ns());
            let (frame, offset, length) = (place.frame, place.byte_offset, tensor.bytes().len());
            format!("tensor\t{key}\t{dtype}\t{encoding}\t{frame}\t{offset}\t{length}\t{timestamp_ns}\t{shape}\t{hex}")
        })
        .collect()
}

fn metadata_lines(metadata: &HashMap<String, String>) -> Vec<String> {
    let mut entries: Vec<_> = metadata.iter().collect();
    entries.sort();
    entries.into_iter().map(|(key, value)| format!("metadata\t{key}\t{value}")).collect()
}

/// `field -> value` of a vector's text, a float by its bits.
fn fields(text: &str) -> HashMap<&str, &str> {
    text.lines()
        .filter(|line| !line.starts_with("tensor\t") && !line.starts_with("metadata\t"))
        .map(|line| {
            let mut columns = line.split('\t');
            (columns.next().unwrap(), columns.next().unwrap_or_default())
        })
        .collect()
}

fn bits(value: f32) -> String {
    format!("{:08x}", value.to_bits())
}

fn lines<'a>(text: &'a str, kind: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.split('\t').next() == Some(kind)).collect()
}

/// The bytes of each tensor are those of its frame.
fn check_bytes(name: &str, tensors: &Tensors, places: &[proto::Tensor], payloads: &[Bytes]) {
    assert_eq!(tensors.len(), places.len(), "{name}");
    for ((key, tensor), place) in tensors.iter().zip(places) {
        let from = place.byte_offset as usize;
        let expected = payloads[place.frame as usize].slice(from..from + place.byte_length as usize);
        assert_eq!(tensor.bytes(), &expected, "{name}: {key}");
    }
}

#[test]
fn valid_replies() {
    for vector in vectors().iter().filter(|vector| vector.valid && vector.message == "ModelResponse") {
        let name = &vector.name;
        let reply = wire::decode_reply(&reply_frames(vector)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let message = wire::decode_envelope(&vector.envelope).unwrap();
        let tensors = reply.tensors.as_ref().unwrap_or_else(|error| panic!("{name}: {error}"));
        check_bytes(name, tensors, &message.tensors, &vector.payloads);
        assert_eq!(tensor_lines(tensors, &message.tensors), lines(&vector.text, "tensor"), "{name}");
        assert_eq!(metadata_lines(&reply.metadata), lines(&vector.text, "metadata"), "{name}");

        let said = fields(&vector.text);
        let mut seen = vec![
            ("request_id", reply.request_id.to_string()),
            ("model_id", reply.model_id.clone()),
            ("status", reply.status.code().to_string()),
            ("reason", reply.reason.code().to_string()),
            ("error", reply.error.clone()),
            ("response_id", reply.response_id.clone()),
            ("timestamp_ns", reply.timestamp_ns.to_string()),
            ("retry_after_ms", bits(reply.retry_after_ms)),
            ("phase_shift_ms", bits(reply.phase_shift_ms)),
        ];
        let timing = reply.timing.clone().unwrap_or_default();
        seen.extend([
            ("timing.queue_ms", bits(timing.queue_ms)),
            ("timing.inference_ms", bits(timing.inference_ms)),
            ("timing.server_ms", bits(timing.server_ms)),
            ("timing.batch_size", timing.batch_size.to_string()),
            ("timing.replica", timing.replica.clone()),
        ]);
        for (field, value) in seen {
            assert_eq!(said.get(field), Some(&value.as_str()), "{name}: {field}");
        }
        assert_eq!(reply.request_id, vector.request_id, "{name}");
    }
}

#[test]
fn malformed_replies() {
    for vector in vectors().iter().filter(|vector| !vector.valid && vector.message == "ModelResponse") {
        let name = &vector.name;
        assert_eq!(vector.status, 6, "{name}");
        match wire::decode_reply(&reply_frames(vector)) {
            Err(error) => {
                assert_eq!(vector.field, "envelope", "{name}: {error}");
                assert_eq!(vector.request_id, 0, "{name}");
            }
            Ok(reply) => {
                assert_eq!(reply.request_id, vector.request_id, "{name}");
                let error = reply.tensors.expect_err(name);
                assert!(error.contains(&vector.field), "{name}: {error:?} does not name {:?}", vector.field);
                assert!(
                    error.contains(&format!("tensor {:?}", vector.key)),
                    "{name}: {error:?} names no {:?}",
                    vector.key
                );
            }
        }
    }
}

/// Every valid observation's tensors, encoded by this crate, are read again to the same values and bytes.
#[test]
fn observations_encoded_anew() {
    for vector in vectors().iter().filter(|vector| vector.valid && vector.message == "Observation") {
        let name = &vector.name;
        let message = proto::Observation::decode(vector.envelope.clone()).unwrap();
        let tensors = wire::decode_tensors(message.tensors.clone(), &vector.payloads).unwrap();
        let fields = Fields {
            urgency: message.urgency,
            priority: message.priority,
            latency_budget_ms: message.latency_budget_ms,
            step_ms: message.step_ms,
            steps_remaining: message.steps_remaining,
            latest_only: message.latest_only,
            slot: message.slot.as_str().into(),
            metadata: message.metadata.iter().map(|(key, value)| (key.into(), value.into())).collect(),
            tensors: tensors.iter().map(|(key, tensor)| Part::of(key, tensor)).collect(),
            problem: None,
        };
        for several in [false, true] {
            let client = message.client.clone().unwrap_or_default();
            let mut encoder = wire::Encoder::new(&client.id, &client.r#type);
            let encoded =
                encoder.observe(message.request_id, message.timestamp_ns, &message.model_id, &fields, several);
            let payloads: Vec<Bytes> = encoded.frames.iter().map(payload).collect();
            let mut again = proto::Observation::decode(encoded.envelope.as_slice()).unwrap();
            assert_eq!(wire::decode_tensors(again.tensors.clone(), &payloads).unwrap(), tensors, "{name}");
            again.tensors = message.tensors.clone(); // where they lie is each encoder's own
            again.kind = message.kind;
            assert_eq!(again, message, "{name}");
        }
    }
}

fn payload(frame: &wire::Frame<'_>) -> Bytes {
    Message::gather(frame.length, frame.pieces()).unwrap().into()
}

/// This crate sends observations and does not read them; what it shares with a server is the check of tensors.
#[test]
fn tensors_of_observations() {
    let tensor_fields = ["key", "dtype", "encoding", "frame", "byte_offset", "byte_length", "shape"];
    for vector in vectors().iter().filter(|vector| vector.message == "Observation") {
        let name = &vector.name;
        let Ok(message) = proto::Observation::decode(vector.envelope.clone()) else {
            assert_eq!(vector.field, "envelope", "{name}");
            continue;
        };
        let decoded = wire::decode_tensors(message.tensors.clone(), &vector.payloads);
        if vector.valid {
            let tensors = decoded.unwrap_or_else(|error| panic!("{name}: {error}"));
            check_bytes(name, &tensors, &message.tensors, &vector.payloads);
            assert_eq!(tensor_lines(&tensors, &message.tensors), lines(&vector.text, "tensor"), "{name}");
        } else if !vector.key.is_empty() && tensor_fields.contains(&vector.field.as_str()) {
            let error = decoded.expect_err(name);
            assert!(error.contains(&vector.field) && error.contains(&vector.key), "{name}: {error}");
        }
    }
}
