"""The settings, validated. Every setting does something; unknown ones are errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MillisecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, Field(ge=1, le=2**60)]


class Settings(BaseModel):
    """Base of all settings: unknown names and values of another type are errors, assignments are validated."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, strict=True)


class TransportConfig(Settings):
    """The socket that clients reach."""

    bind: str = "tcp://127.0.0.1:5555"
    """Endpoint, of which `tcp://` may be left out; port 0 or * picks a free one (`server.endpoint` tells which)."""
    max_message_bytes: Bytes = 256 * 1024 * 1024
    """A larger frame costs its sender the connection, more in several a refusal once they are read; bounds decoded images too."""
    outbound_queue_messages: Count = 10_000
    """Replies waiting for one client whose link is full; past that they are counted `send_errors` and dropped."""
    outbound_queue_bytes: Bytes = 64 * 1024 * 1024
    """The same in bytes; a single reply may be larger."""
    idle_client_timeout_s: Seconds = 300.0
    """A connection from which nothing came for this long is evicted and its state freed."""


class PipelineDispatchConfig(Settings):
    """Which slots calls take."""

    enabled: bool = False
    """False: calls of all models share `max_concurrent_dispatch` slots. True: each model has `max_inflight` of its own."""


class SchedulingConfig(Settings):
    """Order, deadlines and admission. Formulas: docs/scheduling.md."""

    strategy: str = "deadline_aware"
    """deadline_aware, model_deadline, batch_optimized, priority_tiered, round_robin, or one of register_scheduler."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the strategy."""
    policy: str = "deadline"
    """Scoring policy of the strategies that order by one (see register_policy)."""
    pipeline_dispatch: PipelineDispatchConfig = Field(default_factory=PipelineDispatchConfig)
    max_concurrent_dispatch: Count = 8
    """Calls of all models at the same time, without pipeline dispatch."""
    default_latency_budget_ms: Milliseconds = 1000.0
    """For requests that carry no budget, where neither client nor model has one."""
    default_step_ms: Milliseconds = 20.0
    """How long one action lasts, for requests that say how many steps remain but not how long a step is."""
    urgency_weight_ms: MillisecondsOrZero = 20.0
    """How much earlier urgency 1 moves a request."""
    overdue_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """How much of the time that a client is overdue moves its request earlier."""
    overdue_cap_ms: MillisecondsOrZero = 50.0
    """The most that being overdue moves a request."""
    overrun_ms: MillisecondsOrZero = 1000.0
    """How long after its expiry a request that already runs may still be answered OK."""
    min_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the served requests that lower priority levels are guaranteed, when not all can be in time."""
    priority_window_ms: MillisecondsOrZero = 100.0
    """When all can be in time: a better level goes ahead of keys that are earlier by at most this."""
    contention_hold_ms: MillisecondsOrZero = 1000.0
    """For so long after a request missed its deadline in the queue, or was predicted to, a model counts as contended."""
    batch_window: Literal["off", "deadline"] = "deadline"
    """deadline: a batch waits for expected observations while that pays and all its deadlines hold; off: it leaves."""
    deadline_margin_ms: MillisecondsOrZero = 1.0
    """What is kept free between the predicted end of a call and a deadline, for the reply's way to the client."""
    explain_records: Annotated[int, Field(ge=0, le=1_000_000)] = 20_000
    """How many recent decisions are kept for `explain`, in some 150 bytes each; 0: none, 1,000,000 at most."""
    early_refusal: Literal["off", "predictive"] = "off"
    """predictive: a request that cannot make its deadline is REJECTED as soon as that is known."""
    phase_shift: Literal["off", "spread"] = "off"
    """spread: clients of a fleet that send at the same moment are asked to come at different ones (the hint `phase_shift_ms`)."""


class QueueConfig(Settings):
    """Bounds of what waits. Overflow of any bound is handled by `overflow`."""

    request_ttl_ms: Milliseconds = 5000.0
    """No deadline is later than this after arrival."""
    max_requests: Count = 100_000
    """Requests that wait, of all models together."""
    max_requests_per_model: Count = 10_000
    """Requests that wait for one model."""
    max_bytes: Bytes = 2 * 1024**3
    """Bytes of all that wait."""
    max_bytes_per_model: Bytes = 1024**3
    """Bytes of what waits for one model."""
    overflow: Literal["drop_oldest", "reject_newest"] = "drop_oldest"
    """Who is REJECTED when a queue is full: the oldest in it, or the newest that would enter."""


class DispatchConfig(Settings):
    """Calls to models."""

    max_retries: Annotated[int, Field(ge=0, le=10)] = 0
    """How often a failed call may run again, within its deadline, on another replica where there is one."""
    call_timeout_ms: Milliseconds = 30_000.0
    """A call without an answer for this long is given up, whatever its requests' deadlines."""
    staging: bool = True
    """Send one further call to a replica on the direct path just before the running one is predicted to end."""
    retry_after_ms: Milliseconds = 250.0
    """The hint that goes with UNAVAILABLE."""
    health_timeout_ms: Milliseconds = 1000.0
    """A replica on the direct path that says nothing for this long is taken for dead."""


class CadenceConfig(Settings):
    """Learning how often a client sends."""

    alpha: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Weight of the newest interval in the moving average."""
    forget_after_s: Seconds = 300.0
    """What was learned of a client at a model is forgotten when nothing came from it for this long."""


class MetricsConfig(Settings):
    """What is kept and exported."""

    ring_size: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Points kept of each metric, in some 50 bytes each; 1,000,000 at most."""
    prometheus_port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    """HTTP port for Prometheus; None: no export, 0: a free port."""
    prometheus_bind: str = "127.0.0.1"
    """Address that port listens on."""
    prometheus_client_label: bool = False
    """Give series a client label; a large fleet makes many series of it."""


class RayConfig(Settings):
    """How the server meets Ray."""

    enabled: bool = True
    """False: no Ray; models must be local callables."""
    address: str | None = None
    """None: join a running cluster (RAY_ADDRESS, or one on this machine), else start one. `local`: always start one."""
    namespace: str = "serve"
    """Ray's namespace that this server joins."""
    num_cpus: Count | None = None
    """Logical CPUs of an embedded Ray."""
    direct_path: bool = True
    """Exchange tensors with @servable replicas over ZMQ; False: always through Serve handles."""
    poll_s: Seconds = 0.5
    """How often deployments are looked up."""


class ClientConfig(Settings):
    """Settings for one client id."""

    latency_budget_ms: Milliseconds | None = None
    """For its requests that carry none."""
    share: Annotated[float, Field(ge=0.01, allow_inf_nan=False)] = 1.0
    """Weight in the fair sharing between clients of one level, 0.01 or more."""


class ModelConfig(Settings):
    """Settings for one model."""

    max_inflight: Count = 1
    """Calls (a batch is one) at the same time, over all replicas."""
    latency_budget_ms: Milliseconds | None = None
    """For its requests that carry none, where the client has none either."""
    max_batch_size: Count | None = None
    """None: what the deployment says (1 without infer_batch)."""
    latest_only: bool = False
    """A newer observation of the same connection, model and slot replaces the queued one (v2 clients)."""
    device: str | None = None
    """Models with the same device name share it."""
    affinity: Literal["none", "client"] = "none"
    """client: a client stays on its replica while that lives."""
    call_ms: MillisecondsOrZero = 0.0
    """Declared prior: fixed time of a call; learned from then on."""
    item_ms: MillisecondsOrZero = 0.0
    """Declared prior: time for each request of a call."""


class ModelsConfig(Settings):
    """The models."""

    known: dict[str, ModelConfig] = Field(default_factory=dict)
    """Settings by model name; also the models to serve where none are named otherwise."""
    default: ModelConfig = Field(default_factory=ModelConfig)
    """For models without an entry of their own."""

    def of(self, model: str) -> ModelConfig:
        """The settings of a model."""
        return self.known.get(model, self.default)


class CpuConfig(Settings):
    """The machine's processors."""

    max_wakeup_latency_us: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """While there are requests, processors enter only sleep states that they leave within this; 0: they do not sleep; None: any."""


class LifecycleConfig(Settings):
    """Stopping."""

    grace_period_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """On SIGINT or SIGTERM: how long what was accepted may still be answered."""


class InferentialConfig(Settings):
    """All settings."""

    transport: TransportConfig = Field(default_factory=TransportConfig)
    scheduling: SchedulingConfig = Field(default_factory=SchedulingConfig)
    queue: QueueConfig = Field(default_factory=QueueConfig)
    dispatch: DispatchConfig = Field(default_factory=DispatchConfig)
    cadence: CadenceConfig = Field(default_factory=CadenceConfig)
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    ray: RayConfig = Field(default_factory=RayConfig)
    cpu: CpuConfig = Field(default_factory=CpuConfig)
    lifecycle: LifecycleConfig = Field(default_factory=LifecycleConfig)
    models: ModelsConfig = Field(default_factory=ModelsConfig)
    clients: dict[str, ClientConfig] = Field(default_factory=dict)
