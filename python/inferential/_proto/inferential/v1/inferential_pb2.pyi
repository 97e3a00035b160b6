from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT16: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_FLOAT64: _ClassVar[DType]
    DTYPE_BFLOAT16: _ClassVar[DType]
    DTYPE_UINT8: _ClassVar[DType]
    DTYPE_INT32: _ClassVar[DType]
    DTYPE_INT64: _ClassVar[DType]
    DTYPE_BOOL: _ClassVar[DType]
    DTYPE_UINT16: _ClassVar[DType]
    DTYPE_INT8: _ClassVar[DType]
    DTYPE_INT16: _ClassVar[DType]
    DTYPE_UINT32: _ClassVar[DType]
    DTYPE_UINT64: _ClassVar[DType]
    DTYPE_FLOAT8_E4M3FN: _ClassVar[DType]
    DTYPE_FLOAT8_E5M2: _ClassVar[DType]

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_RAW: _ClassVar[Encoding]
    ENCODING_JPEG: _ClassVar[Encoding]
    ENCODING_PNG: _ClassVar[Encoding]

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_OBSERVE: _ClassVar[Kind]
    KIND_PING: _ClassVar[Kind]
    KIND_CANCEL: _ClassVar[Kind]

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_OK: _ClassVar[Status]
    STATUS_INVALID_OBSERVATION: _ClassVar[Status]
    STATUS_UNKNOWN_MODEL: _ClassVar[Status]
    STATUS_REJECTED: _ClassVar[Status]
    STATUS_EXPIRED: _ClassVar[Status]
    STATUS_SUPERSEDED: _ClassVar[Status]
    STATUS_MODEL_ERROR: _ClassVar[Status]
    STATUS_UNAVAILABLE: _ClassVar[Status]
    STATUS_SHUTTING_DOWN: _ClassVar[Status]
    STATUS_UNAUTHENTICATED: _ClassVar[Status]
    STATUS_CANCELLED: _ClassVar[Status]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_NONE: _ClassVar[Reason]
    REASON_QUEUE_FULL: _ClassVar[Reason]
    REASON_CANNOT_MEET_DEADLINE: _ClassVar[Reason]
    REASON_OVER_SHARE: _ClassVar[Reason]
    REASON_TOO_LARGE: _ClassVar[Reason]
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT16: DType
DTYPE_FLOAT32: DType
DTYPE_FLOAT64: DType
DTYPE_BFLOAT16: DType
DTYPE_UINT8: DType
DTYPE_INT32: DType
DTYPE_INT64: DType
DTYPE_BOOL: DType
DTYPE_UINT16: DType
DTYPE_INT8: DType
DTYPE_INT16: DType
DTYPE_UINT32: DType
DTYPE_UINT64: DType
DTYPE_FLOAT8_E4M3FN: DType
DTYPE_FLOAT8_E5M2: DType
ENCODING_UNSPECIFIED: Encoding
ENCODING_RAW: Encoding
ENCODING_JPEG: Encoding
ENCODING_PNG: Encoding
KIND_OBSERVE: Kind
KIND_PING: Kind
KIND_CANCEL: Kind
STATUS_OK: Status
STATUS_INVALID_OBSERVATION: Status
STATUS_UNKNOWN_MODEL: Status
STATUS_REJECTED: Status
STATUS_EXPIRED: Status
STATUS_SUPERSEDED: Status
STATUS_MODEL_ERROR: Status
STATUS_UNAVAILABLE: Status
STATUS_SHUTTING_DOWN: Status
STATUS_UNAUTHENTICATED: Status
STATUS_CANCELLED: Status
REASON_NONE: Reason
REASON_QUEUE_FULL: Reason
REASON_CANNOT_MEET_DEADLINE: Reason
REASON_OVER_SHARE: Reason
REASON_TOO_LARGE: Reason

class Client(_message.Message):
    __slots__ = ("id", "type")
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    id: str
    type: str
    def __init__(self, id: _Optional[str] = ..., type: _Optional[str] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("key", "dtype", "shape", "byte_offset", "byte_length", "timestamp_ns", "encoding", "frame")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BYTE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    BYTE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_NS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    key: str
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    byte_offset: int
    byte_length: int
    timestamp_ns: int
    encoding: Encoding
    frame: int
    def __init__(self, key: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., byte_offset: _Optional[int] = ..., byte_length: _Optional[int] = ..., timestamp_ns: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., frame: _Optional[int] = ...) -> None: ...

class Observation(_message.Message):
    __slots__ = ("client", "timestamp_ns", "urgency", "tensors", "model_id", "steps_remaining", "metadata", "priority", "request_id", "latency_budget_ms", "step_ms", "kind", "latest_only", "slot")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_NS_FIELD_NUMBER: _ClassVar[int]
    URGENCY_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    STEPS_REMAINING_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LATENCY_BUDGET_MS_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LATEST_ONLY_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    client: Client
    timestamp_ns: int
    urgency: float
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    model_id: str
    steps_remaining: int
    metadata: _containers.ScalarMap[str, str]
    priority: int
    request_id: int
    latency_budget_ms: float
    step_ms: float
    kind: Kind
    latest_only: bool
    slot: str
    def __init__(self, client: _Optional[_Union[Client, _Mapping]] = ..., timestamp_ns: _Optional[int] = ..., urgency: _Optional[float] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., model_id: _Optional[str] = ..., steps_remaining: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., priority: _Optional[int] = ..., request_id: _Optional[int] = ..., latency_budget_ms: _Optional[float] = ..., step_ms: _Optional[float] = ..., kind: _Optional[_Union[Kind, str]] = ..., latest_only: bool = ..., slot: _Optional[str] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ms", "inference_ms", "server_ms", "batch_size", "replica")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_MS_FIELD_NUMBER: _ClassVar[int]
    SERVER_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    inference_ms: float
    server_ms: float
    batch_size: int
    replica: str
    def __init__(self, queue_ms: _Optional[float] = ..., inference_ms: _Optional[float] = ..., server_ms: _Optional[float] = ..., batch_size: _Optional[int] = ..., replica: _Optional[str] = ...) -> None: ...

class ModelResponse(_message.Message):
    __slots__ = ("client", "response_id", "timestamp_ns", "tensors", "inference_latency_ms", "model_id", "metadata", "request_id", "status", "error", "retry_after_ms", "timing", "observation_timestamp_ns", "phase_shift_ms", "protocol_version", "reason")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_NS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_TIMESTAMP_NS_FIELD_NUMBER: _ClassVar[int]
    PHASE_SHIFT_MS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    client: Client
    response_id: str
    timestamp_ns: int
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    inference_latency_ms: float
    model_id: str
    metadata: _containers.ScalarMap[str, str]
    request_id: int
    status: Status
    error: str
    retry_after_ms: float
    timing: Timing
    observation_timestamp_ns: int
    phase_shift_ms: float
    protocol_version: int
    reason: Reason
    def __init__(self, client: _Optional[_Union[Client, _Mapping]] = ..., response_id: _Optional[str] = ..., timestamp_ns: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., inference_latency_ms: _Optional[float] = ..., model_id: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., request_id: _Optional[int] = ..., status: _Optional[_Union[Status, str]] = ..., error: _Optional[str] = ..., retry_after_ms: _Optional[float] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., observation_timestamp_ns: _Optional[int] = ..., phase_shift_ms: _Optional[float] = ..., protocol_version: _Optional[int] = ..., reason: _Optional[_Union[Reason, str]] = ...) -> None: ...
