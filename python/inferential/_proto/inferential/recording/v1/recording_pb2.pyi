from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Input(_message.Message):
    __slots__ = ("now_s", "submit", "cancel", "disconnect", "replica_up", "replica_down", "complete", "fail", "advance", "use_scheduler", "drain", "abort", "settle")
    NOW_S_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    DISCONNECT_FIELD_NUMBER: _ClassVar[int]
    REPLICA_UP_FIELD_NUMBER: _ClassVar[int]
    REPLICA_DOWN_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    FAIL_FIELD_NUMBER: _ClassVar[int]
    ADVANCE_FIELD_NUMBER: _ClassVar[int]
    USE_SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    SETTLE_FIELD_NUMBER: _ClassVar[int]
    now_s: float
    submit: Submit
    cancel: Request
    disconnect: bytes
    replica_up: Replica
    replica_down: ReplicaDown
    complete: Complete
    fail: Fail
    advance: Advance
    use_scheduler: UseScheduler
    drain: Drain
    abort: Abort
    settle: Settle
    def __init__(self, now_s: _Optional[float] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., cancel: _Optional[_Union[Request, _Mapping]] = ..., disconnect: _Optional[bytes] = ..., replica_up: _Optional[_Union[Replica, _Mapping]] = ..., replica_down: _Optional[_Union[ReplicaDown, _Mapping]] = ..., complete: _Optional[_Union[Complete, _Mapping]] = ..., fail: _Optional[_Union[Fail, _Mapping]] = ..., advance: _Optional[_Union[Advance, _Mapping]] = ..., use_scheduler: _Optional[_Union[UseScheduler, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., settle: _Optional[_Union[Settle, _Mapping]] = ...) -> None: ...

class Advance(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Drain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Abort(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Settle(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Request(_message.Message):
    __slots__ = ("connection", "request_id")
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    connection: bytes
    request_id: int
    def __init__(self, connection: _Optional[bytes] = ..., request_id: _Optional[int] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("connection", "arrival_s", "size_bytes", "frame_bytes")
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_S_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    connection: bytes
    arrival_s: float
    size_bytes: int
    frame_bytes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, connection: _Optional[bytes] = ..., arrival_s: _Optional[float] = ..., size_bytes: _Optional[int] = ..., frame_bytes: _Optional[_Iterable[int]] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, frames: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("id", "model", "slots", "max_batch_size", "path")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    slots: int
    max_batch_size: int
    path: str
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., slots: _Optional[int] = ..., max_batch_size: _Optional[int] = ..., path: _Optional[str] = ...) -> None: ...

class ReplicaDown(_message.Message):
    __slots__ = ("model", "replica", "reason", "drained")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    model: str
    replica: str
    reason: str
    drained: bool
    def __init__(self, model: _Optional[str] = ..., replica: _Optional[str] = ..., reason: _Optional[str] = ..., drained: bool = ...) -> None: ...

class Complete(_message.Message):
    __slots__ = ("call", "inference_s", "items", "ahead_s")
    CALL_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_S_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    AHEAD_S_FIELD_NUMBER: _ClassVar[int]
    call: int
    inference_s: float
    items: _containers.RepeatedCompositeFieldContainer[Item]
    ahead_s: float
    def __init__(self, call: _Optional[int] = ..., inference_s: _Optional[float] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., ahead_s: _Optional[float] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("error", "retryable")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    error: str
    retryable: bool
    def __init__(self, error: _Optional[str] = ..., retryable: bool = ...) -> None: ...

class Fail(_message.Message):
    __slots__ = ("call", "message", "retryable", "unavailable")
    CALL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    call: int
    message: str
    retryable: bool
    unavailable: bool
    def __init__(self, call: _Optional[int] = ..., message: _Optional[str] = ..., retryable: bool = ..., unavailable: bool = ...) -> None: ...

class UseScheduler(_message.Message):
    __slots__ = ("name", "options_json")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_JSON_FIELD_NUMBER: _ClassVar[int]
    name: str
    options_json: str
    def __init__(self, name: _Optional[str] = ..., options_json: _Optional[str] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("now_s", "dispatch", "outcome", "abandon")
    NOW_S_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ABANDON_FIELD_NUMBER: _ClassVar[int]
    now_s: float
    dispatch: Dispatch
    outcome: Outcome
    abandon: int
    def __init__(self, now_s: _Optional[float] = ..., dispatch: _Optional[_Union[Dispatch, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., abandon: _Optional[int] = ...) -> None: ...

class Dispatch(_message.Message):
    __slots__ = ("call", "model", "replica", "requests")
    CALL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    call: int
    model: str
    replica: str
    requests: _containers.RepeatedCompositeFieldContainer[Request]
    def __init__(self, call: _Optional[int] = ..., model: _Optional[str] = ..., replica: _Optional[str] = ..., requests: _Optional[_Iterable[_Union[Request, _Mapping]]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("request", "model", "client", "status", "reason", "error", "queue_ms", "inference_ms", "e2e_ms", "batch_size", "replica")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_MS_FIELD_NUMBER: _ClassVar[int]
    E2E_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    request: Request
    model: str
    client: str
    status: int
    reason: int
    error: str
    queue_ms: float
    inference_ms: float
    e2e_ms: float
    batch_size: int
    replica: str
    def __init__(self, request: _Optional[_Union[Request, _Mapping]] = ..., model: _Optional[str] = ..., client: _Optional[str] = ..., status: _Optional[int] = ..., reason: _Optional[int] = ..., error: _Optional[str] = ..., queue_ms: _Optional[float] = ..., inference_ms: _Optional[float] = ..., e2e_ms: _Optional[float] = ..., batch_size: _Optional[int] = ..., replica: _Optional[str] = ...) -> None: ...
