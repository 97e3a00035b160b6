//! The Rust SDK behind the interface of `adapters/native.py`. A translation and no more: what the SDK does is what is tested.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::thread;

use inferential::{
    wire, Action, AsyncConnection, AsyncModel, Connection, ConnectionOptions, DType, Encoding, Error, Fallback,
    LinkState, Model, ModelOptions, Observation, Rate, Reply, Source, Status, Tensor, Tensors,
};
use pyo3::exceptions::{PyException, PyKeyError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use tokio::runtime::Runtime;

pyo3::create_exception!(inferential_rust, CallError, PyException);

/// Type, shape, bytes and encoding by name.
type TensorValues = HashMap<String, (i32, Vec<usize>, Vec<u8>, i32)>;

/// The tokio runtime that the async client lives in.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a tokio runtime")
    })
}

fn refused(error: Error) -> PyErr {
    let code = match error {
        Error::InvalidAddress { .. } | Error::InvalidOption { .. } => "argument",
        Error::InvalidObservation { .. } | Error::InvalidTensor { .. } => "argument",
        Error::Closed => "closed",
        Error::Busy { .. } => "concurrent",
        _ => "other",
    };
    CallError::new_err((code, error.to_string()))
}

fn tensors_from(values: TensorValues) -> Result<Vec<(String, Tensor)>, Error> {
    let convert = |(key, (number, shape, data, encoding)): (String, (i32, Vec<usize>, Vec<u8>, i32))| {
        if encoding != 1 {
            let encoding = if encoding == 2 { Encoding::Jpeg } else { Encoding::Png };
            let shape =
                shape.try_into().map_err(|shape| Error::InvalidTensor { reason: format!("shape {shape:?}") })?;
            return Ok((key, Tensor::from_image(encoding, data, shape)?));
        }
        let dtype = DType::from_number(number).ok_or(Error::InvalidTensor { reason: format!("dtype {number}") })?;
        Ok((key, Tensor::from_bytes(dtype, &shape, data)?))
    };
    values.into_iter().map(convert).collect()
}

fn tensors_to<'py>(py: Python<'py>, tensors: &Tensors) -> PyResult<Bound<'py, PyDict>> {
    let found = PyDict::new(py);
    for (key, tensor) in tensors.iter() {
        let data = PyBytes::new(py, tensor.bytes());
        found.set_item(key, (tensor.dtype().number(), PyTuple::new(py, tensor.shape())?, data))?;
    }
    Ok(found)
}

fn reply_to<'py>(py: Python<'py>, reply: &Reply) -> PyResult<Bound<'py, PyDict>> {
    let found = PyDict::new(py);
    let timing = reply.timing.clone().unwrap_or_default();
    found.set_item("model_id", &reply.model_id)?;
    found.set_item("request_id", reply.request_id)?;
    found.set_item("slot", &reply.slot)?;
    found.set_item("status", reply.status.code())?;
    found.set_item("reason", reply.reason.code())?;
    found.set_item("error", &reply.error)?;
    found.set_item("local", reply.local)?;
    found.set_item("retry_after_ms", reply.retry_after_ms)?;
    found.set_item("phase_shift_ms", reply.phase_shift_ms)?;
    found.set_item("age_ms", reply.age_ms())?;
    found.set_item("round_trip_ms", reply.round_trip_ms())?;
    found.set_item("timestamp_ns", reply.timestamp_ns)?;
    found.set_item("observation_timestamp_ns", reply.observation_timestamp_ns)?;
    found.set_item("queue_ms", timing.queue_ms)?;
    found.set_item("inference_ms", timing.inference_ms)?;
    found.set_item("server_ms", timing.server_ms)?;
    found.set_item("batch_size", timing.batch_size)?;
    found.set_item("replica", timing.replica)?;
    found.set_item("metadata", &reply.metadata)?;
    found.set_item("tensors", tensors_to(py, &reply.tensors)?)?;
    Ok(found)
}

fn action_to<'py>(py: Python<'py>, action: &Action) -> PyResult<Bound<'py, PyDict>> {
    let source = match action.source {
        Source::Fresh => "fresh",
        Source::Hold => "hold",
        Source::Decay => "decay",
        Source::Zero => "zero",
        Source::Callback => "callback",
        _ => "none",
    };
    let found = PyDict::new(py);
    found.set_item("source", source)?;
    found.set_item("tensors", tensors_to(py, &action.tensors)?)?;
    found.set_item("age_ms", action.age_ms)?;
    found.set_item("steps_late", action.steps_late)?;
    found.set_item("request_id", action.reply.as_ref().map_or(0, |reply| reply.request_id))?;
    found.set_item("status", action.status.map(Status::code))?;
    Ok(found)
}

fn connection_options(
    address: &str,
    client_id: &str,
    client_type: &str,
    options: &Bound<'_, PyDict>,
) -> PyResult<ConnectionOptions> {
    let mut found = ConnectionOptions::new(address, client_id, client_type);
    for (name, value) in options.iter() {
        found = match name.extract::<String>()?.as_str() {
            "connect_timeout_ms" => found.connect_timeout_ms(value.extract()?),
            "request_timeout_ms" => found.request_timeout_ms(value.extract()?),
            "max_message_bytes" => found.max_message_bytes(value.extract()?),
            "hold_off" => found.hold_off(value.extract()?),
            other => return Err(PyKeyError::new_err(format!("no option {other}"))),
        };
    }
    Ok(found)
}

fn fallback(value: &Bound<'_, PyAny>) -> PyResult<Fallback> {
    let (kind, ms, template): (String, f64, Option<TensorValues>) = value.extract()?;
    let found = match kind.as_str() {
        "hold" => Fallback::hold(ms),
        "decay" => Fallback::decay(ms),
        "zero" => Fallback::zero(),
        _ => Fallback::callback(|last, _age| {
            let given = if last.is_some() { 1.0f32 } else { 0.0 };
            [("actions".to_owned(), Tensor::from_vec(vec![given], &[1]).expect("one element"))].into_iter().collect()
        }),
    };
    Ok(match template {
        None => found,
        Some(values) => found.template(tensors_from(values).map_err(refused)?.into_iter().collect()),
    })
}

fn model_options(id: &str, options: &Bound<'_, PyDict>) -> PyResult<ModelOptions> {
    let mut found = ModelOptions::new(id);
    for (name, value) in options.iter() {
        found = match name.extract::<String>()?.as_str() {
            "latency_budget_ms" => found.latency_budget_ms(value.extract()?),
            "priority" => found.priority(value.extract()?),
            "step_ms" => found.step_ms(value.extract()?),
            "fallback" => found.fallback(fallback(&value)?),
            other => return Err(PyKeyError::new_err(format!("no option {other}"))),
        };
    }
    Ok(found)
}

/// What `observe` is given.
#[derive(Default)]
struct Draft {
    tensors: Vec<(String, Tensor)>,
    metadata: HashMap<String, String>,
    urgency: Option<f32>,
    steps_remaining: Option<u32>,
    priority: Option<u32>,
    latency_budget_ms: Option<f32>,
    step_ms: Option<f32>,
    latest_only: Option<bool>,
    slot: Option<String>,
}

impl Draft {
    fn new(tensors: TensorValues, metadata: HashMap<String, String>, options: &Bound<'_, PyDict>) -> PyResult<Draft> {
        let mut draft = Draft { tensors: tensors_from(tensors).map_err(refused)?, metadata, ..Draft::default() };
        for (name, value) in options.iter() {
            match name.extract::<String>()?.as_str() {
                "urgency" => draft.urgency = Some(value.extract()?),
                "steps_remaining" => draft.steps_remaining = Some(value.extract()?),
                "priority" => draft.priority = Some(value.extract()?),
                "latency_budget_ms" => draft.latency_budget_ms = Some(value.extract()?),
                "step_ms" => draft.step_ms = Some(value.extract()?),
                "latest_only" => draft.latest_only = Some(value.extract()?),
                "slot" => draft.slot = Some(value.extract()?),
                other => return Err(PyKeyError::new_err(format!("no option {other}"))),
            }
        }
        Ok(draft)
    }

    fn write<'a, M>(self, mut observation: Observation<'a, M>) -> Observation<'a, M> {
        for (key, tensor) in self.tensors {
            observation = observation.tensor(key, tensor);
        }
        for (key, value) in self.metadata {
            observation = observation.metadata(key, value);
        }
        if let Some(urgency) = self.urgency {
            observation = observation.urgency(urgency);
        }
        if let Some(steps) = self.steps_remaining {
            observation = observation.steps_remaining(steps);
        }
        if let Some(priority) = self.priority {
            observation = observation.priority(priority);
        }
        if let Some(budget) = self.latency_budget_ms {
            observation = observation.latency_budget_ms(budget);
        }
        if let Some(step) = self.step_ms {
            observation = observation.step_ms(step);
        }
        if let Some(latest_only) = self.latest_only {
            observation = observation.latest_only(latest_only);
        }
        if let Some(slot) = self.slot {
            observation = observation.slot(slot);
        }
        observation
    }
}

/// One model handle of either client; what waits, blocks.
enum AnyModel {
    Sync(Model),
    Async(AsyncModel),
}

impl AnyModel {
    fn send(&self, draft: Draft) -> Result<u64, Error> {
        match self {
            AnyModel::Sync(model) => draft.write(model.observe()).send().into_result(),
            AnyModel::Async(model) => runtime().block_on(draft.write(model.observe()).send()).into_result(),
        }
    }

    fn get_result(&self, timeout_ms: u64) -> Result<Option<Reply>, Error> {
        match self {
            AnyModel::Sync(model) => model.try_get_result(timeout_ms),
            AnyModel::Async(model) => runtime().block_on(model.try_get_result(timeout_ms)),
        }
    }

    fn next_reply(&self, timeout_ms: u64) -> Result<Option<Reply>, Error> {
        match self {
            AnyModel::Sync(model) => model.try_next_reply(timeout_ms),
            AnyModel::Async(model) => runtime().block_on(model.try_next_reply(timeout_ms)),
        }
    }

    fn act(&self, timeout_ms: u64) -> Action {
        match self {
            AnyModel::Sync(model) => model.act(timeout_ms),
            AnyModel::Async(model) => runtime().block_on(model.act(timeout_ms)),
        }
    }

    fn last_status(&self) -> Option<Status> {
        match self {
            AnyModel::Sync(model) => model.last_status(),
            AnyModel::Async(model) => model.last_status(),
        }
    }

    fn take_phase_shift_ms(&self) -> f64 {
        match self {
            AnyModel::Sync(model) => model.take_phase_shift_ms(),
            AnyModel::Async(model) => model.take_phase_shift_ms(),
        }
    }

    fn pace(&self, hz: f64, ticks: u32) -> Result<u64, Error> {
        let mut rate = Rate::new(hz)?;
        let mut missed = 0;
        for _ in 0..ticks {
            rate.delay_ms(self.take_phase_shift_ms());
            missed += match self {
                AnyModel::Sync(_) => rate.sleep(),
                AnyModel::Async(_) => runtime().block_on(rate.sleep_async()),
            };
        }
        Ok(missed)
    }

    fn cancel(&self, request_id: u64) -> bool {
        match self {
            AnyModel::Sync(model) => model.cancel(request_id),
            AnyModel::Async(model) => {
                let _entered = runtime().enter();
                model.cancel(request_id)
            }
        }
    }

    fn two_waiters(&self, timeout_ms: u64) -> [Result<Option<Reply>, Error>; 2] {
        match self {
            AnyModel::Sync(model) => thread::scope(|scope| {
                let waiters = [(); 2].map(|()| scope.spawn(|| model.try_get_result(timeout_ms)));
                waiters.map(|waiter| waiter.join().expect("the SDK does not panic"))
            }),
            AnyModel::Async(model) => {
                let (first, second) = runtime().block_on(async {
                    tokio::join!(model.try_get_result(timeout_ms), model.try_get_result(timeout_ms))
                });
                [first, second]
            }
        }
    }
}

fn milliseconds(timeout_ms: f64) -> u64 {
    timeout_ms.ceil() as u64
}

/// A model handle; its methods are those of `adapters/base.py`.
#[pyclass(name = "Model")]
struct PyModel(AnyModel);

#[pymethods]
impl PyModel {
    fn observe(
        &self,
        py: Python<'_>,
        tensors: TensorValues,
        metadata: HashMap<String, String>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<(u64, Option<i32>, String)> {
        let draft = Draft::new(tensors, metadata, options)?;
        match py.detach(|| self.0.send(draft)) {
            Ok(request_id) => Ok((request_id, None, String::new())),
            Err(Error::NotSent { request_id, reason }) => {
                Ok((request_id, Some(Status::NotSent.code()), reason.to_string()))
            }
            Err(error) => Err(refused(error)),
        }
    }

    fn get_result<'py>(&self, py: Python<'py>, timeout_ms: f64) -> PyResult<Option<Bound<'py, PyDict>>> {
        let found = py.detach(|| self.0.get_result(milliseconds(timeout_ms))).map_err(refused)?;
        found.map(|reply| reply_to(py, &reply)).transpose()
    }

    fn next_reply<'py>(&self, py: Python<'py>, timeout_ms: f64) -> PyResult<Option<Bound<'py, PyDict>>> {
        let found = py.detach(|| self.0.next_reply(milliseconds(timeout_ms))).map_err(refused)?;
        found.map(|reply| reply_to(py, &reply)).transpose()
    }

    fn last_status(&self) -> Option<i32> {
        self.0.last_status().map(Status::code)
    }

    fn act<'py>(&self, py: Python<'py>, timeout_ms: f64) -> PyResult<Bound<'py, PyDict>> {
        let action = py.detach(|| self.0.act(milliseconds(timeout_ms)));
        action_to(py, &action)
    }

    fn take_phase_shift_ms(&self) -> f64 {
        self.0.take_phase_shift_ms()
    }

    fn pace(&self, py: Python<'_>, hz: f64, ticks: u32) -> PyResult<u64> {
        py.detach(|| self.0.pace(hz, ticks)).map_err(refused)
    }

    fn cancel(&self, request_id: u64) -> bool {
        self.0.cancel(request_id)
    }

    fn two_waiters(&self, py: Python<'_>, timeout_ms: f64) -> Vec<&'static str> {
        let found = py.detach(|| self.0.two_waiters(milliseconds(timeout_ms)));
        found
            .into_iter()
            .map(|outcome| match outcome {
                Ok(Some(_)) => "reply",
                Ok(None) => "none",
                Err(Error::Busy { .. }) => "concurrent",
                Err(_) => "other",
            })
            .collect()
    }
}

/// One connection of either client.
enum AnyConnection {
    Sync(Connection),
    Async(AsyncConnection),
}

/// A connection; its methods are those of `adapters/base.py`.
#[pyclass(name = "Connection")]
struct PyConnection(AnyConnection);

#[pymethods]
impl PyConnection {
    fn model(&self, id: &str, options: &Bound<'_, PyDict>) -> PyResult<PyModel> {
        let options = model_options(id, options)?;
        Ok(PyModel(match &self.0 {
            AnyConnection::Sync(connection) => AnyModel::Sync(connection.model_with(options)),
            AnyConnection::Async(connection) => AnyModel::Async(connection.model_with(options)),
        }))
    }

    fn ping(&self, py: Python<'_>, timeout_ms: f64) -> PyResult<Option<(f64, String, HashMap<String, bool>)>> {
        let timeout_ms = milliseconds(timeout_ms);
        let found = py.detach(|| match &self.0 {
            AnyConnection::Sync(connection) => connection.ping(timeout_ms),
            AnyConnection::Async(connection) => runtime().block_on(connection.ping(timeout_ms)),
        });
        Ok(found.map_err(refused)?.map(|pong| (pong.round_trip_ms, pong.server, pong.models)))
    }

    fn link_state(&self) -> &'static str {
        let state = match &self.0 {
            AnyConnection::Sync(connection) => connection.link_state(),
            AnyConnection::Async(connection) => {
                let _entered = runtime().enter();
                connection.link_state()
            }
        };
        match state {
            LinkState::Connecting => "connecting",
            LinkState::Up => "up",
            LinkState::Down => "down",
            _ => "closed",
        }
    }

    fn counters(&self) -> HashMap<&'static str, u64> {
        let c = match &self.0 {
            AnyConnection::Sync(connection) => connection.counters(),
            AnyConnection::Async(connection) => {
                let _entered = runtime().enter();
                connection.counters()
            }
        };
        HashMap::from([
            ("sent", c.sent),
            ("not_sent", c.not_sent),
            ("ok", c.ok),
            ("not_ok", c.not_ok),
            ("late_replies", c.late_replies),
            ("bad_replies", c.bad_replies),
            ("timed_out", c.timed_out),
            ("link_lost", c.link_lost),
            ("held_off", c.held_off),
            ("replies_dropped", c.replies_dropped),
            ("reconnects", c.reconnects),
        ])
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| match &self.0 {
            AnyConnection::Sync(connection) => connection.close(),
            AnyConnection::Async(connection) => runtime().block_on(connection.close()),
        });
    }
}

/// A blocking connection.
#[pyfunction]
#[pyo3(name = "SyncConnection")]
fn sync_connection(
    address: &str,
    client_id: &str,
    client_type: &str,
    options: &Bound<'_, PyDict>,
) -> PyResult<PyConnection> {
    let options = connection_options(address, client_id, client_type, options)?;
    Ok(PyConnection(AnyConnection::Sync(Connection::with_options(options).map_err(refused)?)))
}

/// A connection on tokio.
#[pyfunction]
#[pyo3(name = "AsyncConnection")]
fn async_connection(
    address: &str,
    client_id: &str,
    client_type: &str,
    options: &Bound<'_, PyDict>,
) -> PyResult<PyConnection> {
    let options = connection_options(address, client_id, client_type, options)?;
    let _entered = runtime().enter();
    Ok(PyConnection(AnyConnection::Async(AsyncConnection::with_options(options).map_err(refused)?)))
}

/// The SDK's decoder alone.
#[pyfunction]
fn decode<'py>(py: Python<'py>, envelope: Vec<u8>, frames: Vec<Vec<u8>>) -> PyResult<Option<Bound<'py, PyDict>>> {
    let message: Vec<_> = [Vec::new(), envelope].into_iter().chain(frames).map(Into::into).collect();
    let Ok(reply) = wire::decode_reply(&message) else {
        return Ok(None);
    };
    let Ok(tensors) = &reply.tensors else {
        return Ok(None);
    };
    let found = PyDict::new(py);
    found.set_item("request_id", reply.request_id)?;
    found.set_item("status", reply.status.code())?;
    found.set_item("metadata", &reply.metadata)?;
    found.set_item("tensors", tensors_to(py, tensors)?)?;
    Ok(Some(found))
}

/// The version of the SDK this module was built against.
#[pyfunction]
fn version() -> &'static str {
    env!("SDK_VERSION")
}

#[pymodule]
fn inferential_rust(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("CallError", module.py().get_type::<CallError>())?;
    module.add_class::<PyModel>()?;
    module.add_class::<PyConnection>()?;
    module.add_function(wrap_pyfunction!(sync_connection, module)?)?;
    module.add_function(wrap_pyfunction!(async_connection, module)?)?;
    module.add_function(wrap_pyfunction!(decode, module)?)?;
    module.add_function(wrap_pyfunction!(version, module)?)
}
