//! Messages to bytes and back. The only user of the generated code.
//!
//! Everything that comes from outside is checked here: a tensor that leaves this module fits its bytes.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use prost::encoding::{self, DecodeContext, WireType};
use prost::Message as _;

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

impl Incoming {
    /// Nothing but whom it answers.
    fn unreadable(request_id: u64, reason: String) -> Incoming {
        Incoming {
            request_id,
            model_id: String::new(),
            status: Status::ModelError,
            reason: Reason::None,
            error: String::new(),
            tensors: Err(reason),
            metadata: HashMap::new(),
            retry_after_ms: 0.0,
            phase_shift_ms: 0.0,
            timing: None,
            inference_latency_ms: 0.0,
            response_id: String::new(),
            timestamp_ns: 0,
        }
    }
}

/// The request id in an envelope of another schema; 0 where there is none, or what is there is no protobuf.
fn request_id_of(envelope: &[u8]) -> u64 {
    const REQUEST_ID: u32 = 101;
    let mut rest = envelope;
    let mut request_id = 0;
    while !rest.is_empty() {
        let Ok((tag, wire_type)) = encoding::decode_key(&mut rest) else { return 0 };
        let read = if (tag, wire_type) == (REQUEST_ID, WireType::Varint) {
            encoding::decode_varint(&mut rest).map(|id| request_id = id)
        } else {
            encoding::skip_field(wire_type, tag, &mut rest, DecodeContext::default())
        };
        if read.is_err() {
            return 0;
        }
    }
    request_id
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
    let message = match proto::ModelResponse::decode(envelope.as_ref()) {
        Ok(message) => message,
        Err(error) => {
            let reason = format!("envelope: {error}");
            // A protobuf all the same, though of another schema: others read the rest of it.
            let request_id = if reason.contains("invalid wire type") { request_id_of(envelope) } else { 0 };
            return if request_id == 0 { Err(reason) } else { Ok(Incoming::unreadable(request_id, reason)) };
        }
    };
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
