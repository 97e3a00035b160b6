//! An observation being put together, and the checks a server would make.

use std::borrow::Cow;

use bytes::Bytes;

use crate::error::Error;
use crate::options::ModelOptions;
use crate::tensor::{self, DType, Element, Encoding, Tensor};
use crate::wire;

const MAX_NAME_BYTES: usize = 256;
const MAX_TENSORS: usize = 256;
/// A server may read no observation of more fields than some 16,000, and then does not know whom to answer.
const MAX_METADATA: usize = 4096;
const MAX_PRIORITY: u32 = 1000;

/// Bytes to send: the caller's, copied once when they are sent, or shared, sent from where they lie when large.
#[derive(Debug, Clone)]
pub enum Data<'a> {
    /// The caller's memory.
    Borrowed(&'a [u8]),
    /// Memory kept alive by counting.
    Shared(Bytes),
}

impl Data<'_> {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Data::Borrowed(bytes) => bytes,
            Data::Shared(bytes) => bytes,
        }
    }
}

/// One tensor to send.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    /// Its name.
    pub key: Cow<'a, str>,
    /// Type of its elements.
    pub dtype: DType,
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// How its bytes are written.
    pub encoding: Encoding,
    /// When it was measured; 0 is not known.
    pub timestamp_ns: u64,
    /// Its bytes.
    pub data: Data<'a>,
}

impl Part<'_> {
    /// A tensor, sharing its bytes.
    pub fn of<'k>(key: impl Into<Cow<'k, str>>, tensor: &Tensor) -> Part<'k> {
        Part {
            key: key.into(),
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            encoding: tensor.encoding(),
            timestamp_ns: tensor.timestamp_ns(),
            data: Data::Shared(tensor.bytes().clone()),
        }
    }
}

/// What an observation says, apart from ids and times.
#[derive(Debug, Clone, Default)]
pub struct Fields<'a> {
    /// 0 to 1.
    pub urgency: f32,
    /// 0 is the highest.
    pub priority: u32,
    /// 0 leaves it to the server.
    pub latency_budget_ms: f32,
    /// 0 leaves it to the server.
    pub step_ms: f32,
    /// Actions the client still has.
    pub steps_remaining: Option<u32>,
    /// Whether a newer one may take its place.
    pub latest_only: bool,
    /// Which body behind the connection.
    pub slot: Cow<'a, str>,
    /// Strings for the model.
    pub metadata: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Arrays for the model.
    pub tensors: Vec<Part<'a>>,
    /// The first error met while putting it together (field, reason); told when it is sent.
    pub problem: Option<(String, String)>,
}

pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("is {} bytes long; at most {MAX_NAME_BYTES} are allowed", name.len()));
    }
    Ok(())
}

fn check_duration(value: f32) -> Result<(), String> {
    if value.is_finite() && value >= 0.0 {
        Ok(())
    } else {
        Err(format!("is {value}; must be 0 or more ms"))
    }
}

impl Fields<'_> {
    /// An empty observation with a model handle's defaults.
    pub(crate) fn of(options: &ModelOptions) -> Fields<'static> {
        Fields {
            priority: options.priority,
            latency_budget_ms: options.latency_budget_ms,
            step_ms: options.step_ms,
            problem: options.fallback.check().err().map(|reason| ("fallback".to_owned(), reason)),
            ..Fields::default()
        }
    }

    /// Everything a server would refuse; the error names the field.
    pub(crate) fn check(&self, model_id: &str, max_message_bytes: u64) -> Result<(), Error> {
        self.find_problem(model_id, max_message_bytes).map_err(|(field, reason)| Error::InvalidObservation {
            model: model_id.to_owned(),
            field,
            reason,
        })
    }

    fn find_problem(&self, model_id: &str, max_message_bytes: u64) -> Result<(), (String, String)> {
        let field = |name: &'static str| move |reason: String| (name.to_owned(), reason);
        if let Some(problem) = &self.problem {
            return Err(problem.clone());
        }
        if model_id.is_empty() {
            return Err(field("model_id")("must not be empty".to_owned()));
        }
        check_name(model_id).map_err(field("model_id"))?;
        check_name(&self.slot).map_err(field("slot"))?;
        if !(0.0..=1.0).contains(&self.urgency) {
            return Err(field("urgency")(format!("is {}; must be from 0 to 1", self.urgency)));
        }
        if self.priority > MAX_PRIORITY {
            return Err(field("priority")(format!("is {}; must be from 0 (highest) to {MAX_PRIORITY}", self.priority)));
        }
        check_duration(self.latency_budget_ms).map_err(field("latency_budget_ms"))?;
        check_duration(self.step_ms).map_err(field("step_ms"))?;
        if self.tensors.len() > MAX_TENSORS {
            return Err(field("tensors")(format!("are {}; at most {MAX_TENSORS} are allowed", self.tensors.len())));
        }
        if self.metadata.len() > MAX_METADATA {
            let number = self.metadata.len();
            return Err(field("metadata")(format!("are {number} entries; at most {MAX_METADATA} are allowed")));
        }
        let mut total: u64 = 0;
        for (index, part) in self.tensors.iter().enumerate() {
            let problem = |reason: String| Err((format!("tensor {:?}", part.key), reason));
            if part.key.is_empty() {
                return problem("key must not be empty".to_owned());
            }
            if self.tensors.iter().take(index).any(|other| other.key == part.key) {
                return problem("key is used twice".to_owned());
            }
            if self.metadata.iter().any(|(key, _)| *key == part.key) {
                return problem("key is also a metadata key".to_owned());
            }
            let bytes = part.data.as_slice();
            tensor::check(part.dtype, &part.shape, part.encoding, bytes).or_else(problem)?;
            // Each begins at a multiple of 8 in its frame.
            total = total
                .checked_next_multiple_of(wire::ALIGNMENT as u64)
                .and_then(|offset| offset.checked_add(bytes.len() as u64))
                .unwrap_or(u64::MAX);
        }
        if total > max_message_bytes {
            return Err(field("tensors")(format!("are {total} bytes; max_message_bytes is {max_message_bytes}")));
        }
        Ok(())
    }
}

/// An observation being put together; `send` sends it.
///
/// Made by [`Model::observe`](crate::Model::observe) or [`AsyncModel::observe`](crate::AsyncModel::observe). A wrong value
/// is told by `send`. Slices are borrowed until then and copied once; [`tensor`](Observation::tensor) takes over memory instead,
/// which is sent from where it lies when it is large.
#[derive(Debug, Clone)]
#[must_use = "an observation goes nowhere until send() is called"]
pub struct Observation<'a, M> {
    pub(crate) model: &'a M,
    pub(crate) fields: Fields<'a>,
}

impl<'a, M> Observation<'a, M> {
    /// How urgent the client finds it, from 0 (default) to 1.
    pub fn urgency(mut self, urgency: f32) -> Self {
        self.fields.urgency = urgency;
        self
    }

    /// 0 is the highest; the model's default where not given.
    pub fn priority(mut self, priority: u32) -> Self {
        self.fields.priority = priority;
        self
    }

    /// Deadline in ms after arrival at the server; 0 leaves it to the server. The model's default where not given.
    pub fn latency_budget_ms(mut self, latency_budget_ms: f32) -> Self {
        self.fields.latency_budget_ms = latency_budget_ms;
        self
    }

    /// How long one action lasts, in ms; 0 leaves it to the server. The model's default where not given.
    pub fn step_ms(mut self, step_ms: f32) -> Self {
        self.fields.step_ms = step_ms;
        self
    }

    /// How many actions the client still has.
    pub fn steps_remaining(mut self, steps: u32) -> Self {
        self.fields.steps_remaining = Some(steps);
        self
    }

    /// Lets a newer observation of the same model and slot take the place of this one while it is queued.
    pub fn latest_only(mut self, latest_only: bool) -> Self {
        self.fields.latest_only = latest_only;
        self
    }

    /// Which body behind this connection; at most 256 bytes.
    pub fn slot(mut self, slot: impl Into<Cow<'a, str>>) -> Self {
        self.fields.slot = slot.into();
        self
    }

    /// A string for the model. A second value for the same key takes the place of the first.
    pub fn metadata(mut self, key: impl Into<Cow<'a, str>>, value: impl Into<Cow<'a, str>>) -> Self {
        let key = key.into();
        self.fields.metadata.retain(|(other, _)| *other != key);
        self.fields.metadata.push((key, value.into()));
        self
    }

    /// A tensor, shared without a copy.
    pub fn tensor(mut self, key: impl Into<Cow<'a, str>>, tensor: Tensor) -> Self {
        self.fields.tensors.push(Part::of(key, &tensor));
        self
    }

    /// Elements of any type of the wire, borrowed until `send`. An empty `shape` is a scalar.
    pub fn tensor_slice<T: Element>(
        mut self,
        key: impl Into<Cow<'a, str>>,
        elements: &'a [T],
        shape: &[usize],
    ) -> Self {
        self.fields.tensors.push(Part {
            key: key.into(),
            dtype: T::DTYPE,
            shape: shape.to_vec(),
            encoding: Encoding::Raw,
            timestamp_ns: 0,
            data: Data::Borrowed(bytemuck::cast_slice(elements)),
        });
        self
    }

    /// Short for [`tensor_slice::<f32>`](Observation::tensor_slice).
    pub fn tensor_f32(self, key: impl Into<Cow<'a, str>>, elements: &'a [f32], shape: &[usize]) -> Self {
        self.tensor_slice(key, elements, shape)
    }

    /// A picture as the bytes of a JPEG or PNG file, borrowed until `send`; `shape` is (height, width, channels) of the decoded picture.
    pub fn image(
        mut self,
        key: impl Into<Cow<'a, str>>,
        encoding: Encoding,
        file: &'a [u8],
        shape: [usize; 3],
    ) -> Self {
        let key = key.into();
        if encoding == Encoding::Raw {
            let reason = "encoding of an image must be Jpeg or Png, not Raw".to_owned();
            self.fields.problem.get_or_insert((format!("tensor {key:?}"), reason));
        }
        self.fields.tensors.push(Part {
            key,
            dtype: DType::UInt8,
            shape: shape.to_vec(),
            encoding,
            timestamp_ns: 0,
            data: Data::Borrowed(file),
        });
        self
    }

    /// An array: borrowed where it is in C order, else copied.
    #[cfg(feature = "ndarray")]
    pub fn array<T: Element, D: ndarray::Dimension>(
        mut self,
        key: impl Into<Cow<'a, str>>,
        array: ndarray::ArrayView<'a, T, D>,
    ) -> Self {
        if let Some(elements) = array.to_slice() {
            return self.tensor_slice(key, elements, array.shape());
        }
        let key = key.into();
        match Tensor::from_array(&array) {
            Ok(tensor) => self.tensor(key, tensor),
            Err(error) => {
                self.fields.problem.get_or_insert((format!("tensor {key:?}"), error.to_string()));
                self
            }
        }
    }

    /// Wall clock time, in ns since 1970, at which the sensor measured the tensor added last.
    pub fn measured_at_ns(mut self, timestamp_ns: u64) -> Self {
        match self.fields.tensors.last_mut() {
            Some(part) => part.timestamp_ns = timestamp_ns,
            None => {
                let problem = ("timestamp_ns".to_owned(), "given before the tensor that it belongs to".to_owned());
                self.fields.problem.get_or_insert(problem);
            }
        }
        self
    }
}

/// What became of an observation: its request id, or why it was not sent. May be ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent(pub(crate) Result<u64, Error>);

impl Sent {
    /// The request's id, where it was sent (or answered locally during a hold-off).
    pub fn request_id(&self) -> Option<u64> {
        self.0.as_ref().ok().copied()
    }

    /// Whether it was sent.
    pub fn is_sent(&self) -> bool {
        self.0.is_ok()
    }

    /// Why it was not sent.
    pub fn error(&self) -> Option<&Error> {
        self.0.as_ref().err()
    }

    /// As a `Result`, for `?`.
    ///
    /// # Errors
    /// [`Error::NotSent`] where it never left this process, [`Error::InvalidObservation`] where no server would accept it,
    /// [`Error::Closed`] or [`Error::InvalidAddress`] where the connection cannot be used.
    pub fn into_result(self) -> Result<u64, Error> {
        self.0
    }
}
