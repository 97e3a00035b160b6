//! Messages to bytes and back. The only user of the generated code.
//!
//! Everything that comes from outside is checked here: a tensor that leaves this module fits its bytes.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message as _};

use crate::observation::{Data, Fields};
use crate::proto;
use crate::reply::{Reason, Status, Timing};
use crate::tensor::{DType, Encoding, Tensor, Tensors, MAX_DIMENSIONS};

/// Tensors from this size on travel as payload frames of their own, once the server is known to read them.
pub const LARGE_TENSOR_BYTES: usize = 64 * 1024;
/// Tensors begin at multiples of this in their frame.
pub(crate) const ALIGNMENT: usize = 8;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An action for this observation.
    Observe,
    /// Whether the server is there, and its models.
    Ping,
    /// To end the request of that id.
    Cancel,
}

/// One payload frame to send: pieces at their offsets, gaps between them zero.
#[derive(Debug)]
pub struct Frame<'p> {
    /// Size of the frame in bytes.
    pub length: usize,
    pieces: Vec<(usize, &'p Data<'p>)>,
}

impl Frame<'_> {
    /// The frame's bytes, where they exist as a whole and are large enough that sending them from their own memory pays.
    pub fn shared(&self) -> Option<&Bytes> {
        match self.pieces.as_slice() {
            [(0, Data::Shared(bytes))] if bytes.len() == self.length && bytes.len() >= LARGE_TENSOR_BYTES => {
                Some(bytes)
            }
            _ => None,
        }
    }

    /// The pieces' offsets and bytes, in order, without overlap.
    pub fn pieces(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.pieces.iter().map(|(offset, data)| (*offset, data.as_slice()))
    }
}

/// Of a request that says nothing else.
pub(crate) const DEFAULT_PRIORITY: u32 = 1;

/// A message to send, less the empty delimiter.
#[derive(Debug)]
pub struct Encoded<'p> {
    /// The serialised `Observation`.
    pub envelope: Vec<u8>,
    /// At least one payload frame.
    pub frames: Vec<Frame<'p>>,
}

/// Serialises observations; keeps its message between calls, so that its strings are allocated once.
#[derive(Debug)]
pub struct Encoder {
    message: proto::Observation,
}

impl Encoder {
    /// For one client.
    pub fn new(client_id: &str, client_type: &str) -> Encoder {
        let client = proto::Client { id: client_id.to_owned(), r#type: client_type.to_owned() };
        Encoder { message: proto::Observation { client: Some(client), ..Default::default() } }
    }

    /// The size of an envelope, where it is more than `most`. What is far below that is not measured.
    pub fn measure_above(
        &self,
        most: u64,
        request_id: u64,
        model_id: &str,
        fields: &Fields<'_>,
        several_frames: bool,
    ) -> Option<usize> {
        /// No less than numbers, tags and lengths take: of the whole, of a metadata entry or tensor, of a dimension.
        const WHOLE: usize = 256;
        const ENTRY: usize = 96;
        const DIMENSION: usize = 10;
        let client = self.message.client.as_ref().map_or(0, |client| client.id.len() + client.r#type.len());
        let metadata: usize = fields.metadata.iter().map(|(key, value)| ENTRY + key.len() + value.len()).sum();
        let tensors: usize =
            fields.tensors.iter().map(|part| ENTRY + part.key.len() + DIMENSION * part.shape.len()).sum();
        let estimate = WHOLE + client + model_id.len() + fields.slot.len() + metadata + tensors;
        if estimate as u64 <= most {
            return None;
        }
        let mut encoder = Encoder { message: self.message.clone() };
        // As long as any time from 1972 to 2262.
        let size = encoder.observe(request_id, 1 << 60, model_id, fields, several_frames).envelope.len();
        (size as u64 > most).then_some(size)
    }

    /// One observation. `several_frames`: whether this server is known to read more than one payload frame.
    pub fn observe<'p>(
        &mut self,
        request_id: u64,
        timestamp_ns: u64,
        model_id: &str,
        fields: &'p Fields<'p>,
        several_frames: bool,
    ) -> Encoded<'p> {
        let message = &mut self.message;
        message.kind = proto::Kind::Observe as i32;
        message.request_id = request_id;
        message.timestamp_ns = timestamp_ns;
        set(&mut message.model_id, model_id);
        message.urgency = fields.urgency;
        message.priority = fields.priority;
        message.latency_budget_ms = fields.latency_budget_ms;
        message.step_ms = fields.step_ms;
        message.steps_remaining = fields.steps_remaining;
        message.latest_only = fields.latest_only;
        set(&mut message.slot, &fields.slot);
        message.metadata.clear();
        message.metadata.extend(fields.metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())));

        let mut frames: Vec<Frame<'p>> = Vec::with_capacity(1);
        // The frame that all tensors share that have none of their own; by default the only one.
        let mut shared: Option<usize> = None;
        message.tensors.resize_with(fields.tensors.len(), Default::default);
        for (tensor, part) in message.tensors.iter_mut().zip(&fields.tensors) {
            let length = part.data.as_slice().len();
            let own = several_frames && length >= LARGE_TENSOR_BYTES;
            let index = match shared {
                Some(index) if !own => index,
                _ => {
                    frames.push(Frame { length: 0, pieces: Vec::with_capacity(1) });
                    frames.len() - 1
                }
            };
            if !own {
                shared = Some(index);
            }
            let mut offset = 0;
            if let Some(frame) = frames.get_mut(index) {
                offset = frame.length.next_multiple_of(ALIGNMENT);
                frame.length = offset + length;
                frame.pieces.push((offset, &part.data));
            }
            set(&mut tensor.key, &part.key);
            tensor.dtype = part.dtype.number();
            tensor.encoding = part.encoding.number();
            tensor.shape.clear();
            tensor.shape.extend(part.shape.iter().map(|&dimension| dimension as i64));
            tensor.byte_offset = offset as u64;
            tensor.byte_length = length as u64;
            tensor.timestamp_ns = part.timestamp_ns;
            tensor.frame = index as u32;
        }
        if frames.is_empty() {
            frames.push(Frame { length: 0, pieces: Vec::new() });
        }
        Encoded { envelope: message.encode_to_vec(), frames }
    }

    /// A PING or CANCEL: client, id and kind, and a priority that is not the highest.
    pub fn control(&self, kind: Kind, request_id: u64, timestamp_ns: u64) -> Encoded<'static> {
        let kind = match kind {
            Kind::Observe => proto::Kind::Observe,
            Kind::Ping => proto::Kind::Ping,
            Kind::Cancel => proto::Kind::Cancel,
        };
        let message = proto::Observation {
            client: self.message.client.clone(),
            timestamp_ns,
            request_id,
            kind: kind as i32,
            priority: DEFAULT_PRIORITY,
            ..Default::default()
        };
        Encoded { envelope: message.encode_to_vec(), frames: vec![Frame { length: 0, pieces: Vec::new() }] }
    }
}

/// `target = value`, in the memory that `target` has.
fn set(target: &mut String, value: &str) {
    target.clear();
    target.push_str(value);
}

/// A reply as it came.
#[derive(Debug)]
pub struct Incoming {
    /// 0 from a v1 server.
    pub request_id: u64,
    /// The model that answered.
    pub model_id: String,
    /// How the request ended.
    pub status: Status,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub error: String,
    /// The tensors, or what is wrong with them.
    pub tensors: Result<Tensors, String>,
    /// The model's strings.
    pub metadata: HashMap<String, String>,
    /// Finite and not negative.
    pub retry_after_ms: f32,
    /// Finite and not negative.
    pub phase_shift_ms: f32,
    /// Where the time went.
    pub timing: Option<Timing>,
    /// What a v1 server tells in the place of `timing`.
    pub inference_latency_ms: f32,
    /// The server's name for the reply.
    pub response_id: String,
    /// The server's wall clock.
    pub timestamp_ns: u64,
}

/// A field of a message: its number, its wire type, and the fields within where it is a message.
struct Field(u32, WireType, &'static [Field]);

const fn varint(number: u32) -> Field {
    Field(number, WireType::Varint, &[])
}

const fn float(number: u32) -> Field {
    Field(number, WireType::ThirtyTwoBit, &[])
}

const fn bytes(number: u32) -> Field {
    Field(number, WireType::LengthDelimited, &[])
}

const fn message(number: u32, fields: &'static [Field]) -> Field {
    Field(number, WireType::LengthDelimited, fields)
}

const STRINGS: &[Field] = &[bytes(1), bytes(2)];
const TENSOR: &[Field] =
    &[bytes(1), varint(2), varint(3), bytes(3), varint(4), varint(5), varint(6), varint(7), varint(101)];
const TIMING: &[Field] = &[float(1), float(2), float(3), varint(4), bytes(5)];
/// Of `proto::ModelResponse`. Tensor 3, the shape, comes packed or one by one.
const RESPONSE: &[Field] = &[
    message(1, STRINGS),
    bytes(2),
    varint(3),
    message(4, TENSOR),
    float(5),
    bytes(6),
    message(7, STRINGS),
    varint(101),
    varint(102),
    bytes(103),
    float(104),
    message(105, TIMING),
    varint(106),
    float(107),
    varint(108),
    varint(109),
];

/// Copies a message, less its fields of a wire type that is not theirs: protobuf has them skipped as unknown, prost refuses the message.
fn copy_well_typed(fields: &[Field], from: &[u8], to: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut rest = from;
    while !rest.is_empty() {
        let whole = rest;
        let (number, wire_type) = encoding::decode_key(&mut rest)?;
        let content = rest;
        encoding::skip_field(wire_type, number, &mut rest, DecodeContext::default())?;
        let known = || fields.iter().filter(|field| field.0 == number);
        match known().find(|field| field.1 == wire_type) {
            Some(Field(_, _, within @ [_, ..])) => {
                let mut content = content.split_at(content.len() - rest.len()).0;
                encoding::decode_varint(&mut content)?; // the length
                let mut copy = Vec::with_capacity(content.len());
                copy_well_typed(within, content, &mut copy)?;
                encoding::encode_key(number, wire_type, to);
                encoding::encode_varint(copy.len() as u64, to);
                to.extend(copy);
            }
            None if known().next().is_some() => {}
            _ => to.extend(whole.split_at(whole.len() - rest.len()).0),
        }
    }
    Ok(())
}

/// Reads a reply's envelope as every protobuf parser does.
///
/// # Errors
/// It is none.
pub fn decode_envelope(envelope: &[u8]) -> Result<proto::ModelResponse, DecodeError> {
    proto::ModelResponse::decode(envelope).or_else(|_| {
        let mut copy = Vec::with_capacity(envelope.len());
        copy_well_typed(RESPONSE, envelope, &mut copy)?;
        proto::ModelResponse::decode(copy.as_slice())
    })
}

/// Reads a reply: frames are `["", envelope, payload 0, ...]`.
///
/// # Errors
/// What is wrong, where the message cannot even be read so far that the request it answers is known.
pub fn decode_reply(frames: &[Bytes]) -> Result<Incoming, String> {
    let [delimiter, envelope, payloads @ ..] = frames else {
        return Err(format!("{} frames; expected an empty one, an envelope and a payload", frames.len()));
    };
    if !delimiter.is_empty() {
        return Err("the first frame is not empty".to_owned());
    }
    let message = decode_envelope(envelope).map_err(|error| format!("envelope: {error}"))?;
    // Even a reply without tensors has a payload frame.
    let tensors = match decode_tensors(message.tensors, payloads) {
        Ok(_) if payloads.is_empty() => Err("the reply has no payload frame".to_owned()),
        decoded => decoded,
    };
    Ok(Incoming {
        request_id: message.request_id,
        model_id: message.model_id,
        status: Status::from_code(message.status),
        reason: Reason::from_code(message.reason),
        error: message.error,
        tensors,
        metadata: message.metadata,
        retry_after_ms: match message.retry_after_ms {
            f32::INFINITY => f32::MAX, // not to ask again is a hint too
            ms => hint(ms),
        },
        phase_shift_ms: hint(message.phase_shift_ms),
        timing: message.timing.map(|timing| Timing {
            queue_ms: timing.queue_ms,
            inference_ms: timing.inference_ms,
            server_ms: timing.server_ms,
            batch_size: timing.batch_size,
            replica: timing.replica,
        }),
        inference_latency_ms: message.inference_latency_ms,
        response_id: message.response_id,
        timestamp_ns: message.timestamp_ns,
    })
}

/// A number of ms; 0, which says nothing, in the place of what is none.
fn hint(ms: f32) -> f32 {
    if ms.is_finite() && ms > 0.0 {
        ms
    } else {
        0.0
    }
}

/// Checks every tensor, in the protocol's order, and takes its bytes out of the frames without a copy where they are aligned.
///
/// # Errors
/// The first failure; names the tensor and the field.
pub fn decode_tensors(tensors: Vec<proto::Tensor>, payloads: &[Bytes]) -> Result<Tensors, String> {
    let mut keys = HashSet::new();
    // Few tensors are told apart faster without a set.
    let few = tensors.len() <= 8;
    let mut decoded: Vec<(String, Tensor)> = Vec::with_capacity(tensors.len());
    for mut tensor in tensors {
        let used =
            if few { decoded.iter().any(|(key, _)| *key == tensor.key) } else { !keys.insert(tensor.key.clone()) };
        if used {
            return Err(format!("tensor {:?}: key is used twice", tensor.key));
        }
        let key = std::mem::take(&mut tensor.key);
        match decode_tensor(&key, tensor, payloads) {
            Ok(value) => decoded.push((key, value)),
            Err(reason) => return Err(format!("tensor {key:?}: {reason}")),
        }
    }
    Ok(Tensors::from_unique(decoded))
}

fn decode_tensor(key: &str, tensor: proto::Tensor, payloads: &[Bytes]) -> Result<Tensor, String> {
    if key.is_empty() {
        return Err("key is empty".to_owned());
    }
    let dtype = DType::from_number(tensor.dtype).ok_or_else(|| format!("dtype {} is unknown", tensor.dtype))?;
    let encoding =
        Encoding::from_number(tensor.encoding).ok_or_else(|| format!("encoding {} is unknown", tensor.encoding))?;
    let frame = usize::try_from(tensor.frame)
        .ok()
        .and_then(|index| payloads.get(index))
        .ok_or_else(|| format!("frame {} of {} payload frames", tensor.frame, payloads.len()))?;
    let size = frame.len();
    let offset = usize::try_from(tensor.byte_offset)
        .ok()
        .filter(|&offset| offset <= size)
        .ok_or_else(|| format!("byte_offset {} in a frame of {size} bytes", tensor.byte_offset))?;
    let length =
        usize::try_from(tensor.byte_length).ok().filter(|&length| length <= size - offset).ok_or_else(|| {
            format!("byte_length {} at byte_offset {offset} in a frame of {size} bytes", tensor.byte_length)
        })?;
    if tensor.shape.len() > MAX_DIMENSIONS {
        return Err(format!("shape has {} dimensions; at most {MAX_DIMENSIONS} are allowed", tensor.shape.len()));
    }
    let shape = tensor
        .shape
        .into_iter()
        .map(|dimension| usize::try_from(dimension).map_err(|_| format!("shape has a dimension of {dimension}")))
        .collect::<Result<Vec<usize>, String>>()?;
    let data = frame.slice(offset..offset + length);
    Ok(Tensor::new(dtype, shape, encoding, data)?.with_timestamp_ns(tensor.timestamp_ns))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The wire types of the fields of a message and of those within, by their numbers' path.
    fn flat(fields: &[Field], path: &str, into: &mut BTreeMap<String, Vec<WireType>>) {
        for Field(number, wire_type, within) in fields {
            let path = format!("{path}.{number}");
            into.entry(path.clone()).or_default().push(*wire_type);
            flat(within, &path, into);
        }
    }

    #[test]
    fn the_fields_are_those_of_the_schema() {
        let include = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
        let files = protox::compile(["inferential/v1/inferential.proto"], [&include]).expect("the schema compiles");
        let mut messages = HashMap::new();
        for message in files.file.iter().flat_map(|file| &file.message_type) {
            for entry in &message.nested_type {
                messages.insert(format!(".inferential.v1.{}.{}", message.name(), entry.name()), &entry.field);
            }
            messages.insert(format!(".inferential.v1.{}", message.name()), &message.field);
        }
        let mut expected = BTreeMap::new();
        let mut open = vec![(".inferential.v1.ModelResponse".to_owned(), String::new())];
        while let Some((name, path)) = open.pop() {
            for field in messages[&name] {
                let path = format!("{path}.{}", field.number());
                let wire_types = match field.r#type().as_str_name() {
                    "TYPE_STRING" | "TYPE_BYTES" => vec![WireType::LengthDelimited],
                    "TYPE_FLOAT" => vec![WireType::ThirtyTwoBit],
                    "TYPE_MESSAGE" => {
                        open.push((field.type_name().to_owned(), path.clone()));
                        vec![WireType::LengthDelimited]
                    }
                    _ if field.label().as_str_name() == "LABEL_REPEATED" => {
                        vec![WireType::Varint, WireType::LengthDelimited]
                    }
                    "TYPE_INT64" | "TYPE_UINT64" | "TYPE_UINT32" | "TYPE_ENUM" => vec![WireType::Varint],
                    other => panic!("{path} is {other}"),
                };
                expected.insert(path, wire_types);
            }
        }
        let mut found = BTreeMap::new();
        flat(RESPONSE, "", &mut found);
        assert_eq!(found, expected);
    }

    #[test]
    fn fields_of_another_wire_type_are_unknown() {
        let tensor =
            proto::Tensor { key: "x".to_owned(), dtype: 2, shape: vec![1], byte_length: 4, ..Default::default() };
        let mut message = proto::ModelResponse {
            client: Some(proto::Client { id: "a".to_owned(), r#type: "b".to_owned() }),
            model_id: "policy".to_owned(),
            request_id: 7,
            timing: Some(proto::Timing { server_ms: 1.5, ..Default::default() }),
            tensors: vec![tensor],
            ..Default::default()
        };
        message.metadata.insert("plan".to_owned(), "pick".to_owned());
        let plain = message.encode_to_vec();

        // A field of each kind that is none of its own, in the whole and in each message within.
        let strangers = |fields: &[Field]| {
            let mut strangers = Vec::new();
            for Field(number, wire_type, _) in fields {
                let (other, content): (_, &[u8]) = match wire_type {
                    WireType::SixtyFourBit => unreachable!(),
                    _ if *number % 2 == 0 => (WireType::SixtyFourBit, &[1; 8]),
                    // A group with a number in it.
                    _ => (WireType::StartGroup, &[0x08, 0x01]),
                };
                encoding::encode_key(*number, other, &mut strangers);
                strangers.extend(content);
                if other == WireType::StartGroup {
                    encoding::encode_key(*number, WireType::EndGroup, &mut strangers);
                }
            }
            strangers
        };
        let mut envelope = strangers(RESPONSE);
        envelope.extend(&plain);
        for Field(number, _, within) in RESPONSE.iter().filter(|field| matches!(field.0, 1 | 105)) {
            let inside = strangers(within);
            encoding::encode_key(*number, WireType::LengthDelimited, &mut envelope);
            encoding::encode_varint(inside.len() as u64, &mut envelope);
            envelope.extend(inside);
        }
        assert!(proto::ModelResponse::decode(envelope.as_slice()).is_err(), "should prost skip them, all this can go");
        assert_eq!(decode_envelope(&envelope).unwrap(), message);
        assert!(decode_envelope(&envelope[..envelope.len() - 1]).is_err());
        let mut not_utf8 = envelope.clone();
        not_utf8.extend([0x32, 0x01, 0xff]);
        assert!(decode_envelope(&not_utf8).is_err());
    }
}
