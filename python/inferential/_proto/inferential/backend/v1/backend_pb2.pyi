from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ToServer(_message.Message):
    __slots__ = ("hello", "proof", "credits", "drain", "goodbye", "results", "shared")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    proof: Proof
    credits: Credits
    drain: Drain
    goodbye: Goodbye
    results: _containers.RepeatedCompositeFieldContainer[Result]
    shared: Shared
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., proof: _Optional[_Union[Proof, _Mapping]] = ..., credits: _Optional[_Union[Credits, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ..., shared: _Optional[_Union[Shared, _Mapping]] = ...) -> None: ...

class ToReplica(_message.Message):
    __slots__ = ("challenge", "welcome", "cancel", "load", "drained", "farewell", "refused", "calls", "shared")
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    FAREWELL_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    challenge: Challenge
    welcome: Welcome
    cancel: Cancel
    load: Load
    drained: Drained
    farewell: Farewell
    refused: Refused
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    shared: Shared
    def __init__(self, challenge: _Optional[_Union[Challenge, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., drained: _Optional[_Union[Drained, _Mapping]] = ..., farewell: _Optional[_Union[Farewell, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ..., shared: _Optional[_Union[Shared, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "replica", "model", "credits", "max_batch_size", "nonce")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    version: int
    replica: str
    model: str
    credits: int
    max_batch_size: int
    nonce: bytes
    def __init__(self, version: _Optional[int] = ..., replica: _Optional[str] = ..., model: _Optional[str] = ..., credits: _Optional[int] = ..., max_batch_size: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("version", "server", "nonce", "proof")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    version: int
    server: str
    nonce: bytes
    proof: bytes
    def __init__(self, version: _Optional[int] = ..., server: _Optional[str] = ..., nonce: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("proof",)
    PROOF_FIELD_NUMBER: _ClassVar[int]
    proof: bytes
    def __init__(self, proof: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("max_frame_bytes", "unix_name", "unix_key")
    MAX_FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNIX_NAME_FIELD_NUMBER: _ClassVar[int]
    UNIX_KEY_FIELD_NUMBER: _ClassVar[int]
    max_frame_bytes: int
    unix_name: str
    unix_key: bytes
    def __init__(self, max_frame_bytes: _Optional[int] = ..., unix_name: _Optional[str] = ..., unix_key: _Optional[bytes] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Credits(_message.Message):
    __slots__ = ("credits",)
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    credits: int
    def __init__(self, credits: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("id", "items")
    ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    id: int
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, id: _Optional[int] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("envelope", "frames", "remaining_ms", "attempt", "payload")
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    REMAINING_MS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    envelope: bytes
    frames: int
    remaining_ms: float
    attempt: int
    payload: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, envelope: _Optional[bytes] = ..., frames: _Optional[int] = ..., remaining_ms: _Optional[float] = ..., attempt: _Optional[int] = ..., payload: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("id", "inference_ms", "items", "ahead_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_MS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    AHEAD_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    inference_ms: float
    items: _containers.RepeatedCompositeFieldContainer[ItemResult]
    ahead_ms: float
    def __init__(self, id: _Optional[int] = ..., inference_ms: _Optional[float] = ..., items: _Optional[_Iterable[_Union[ItemResult, _Mapping]]] = ..., ahead_ms: _Optional[float] = ...) -> None: ...

class ItemResult(_message.Message):
    __slots__ = ("envelope", "frames", "failed", "error", "expired", "payload")
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    envelope: bytes
    frames: int
    failed: bool
    error: str
    expired: bool
    payload: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, envelope: _Optional[bytes] = ..., frames: _Optional[int] = ..., failed: bool = ..., error: _Optional[str] = ..., expired: bool = ..., payload: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("waiting", "replicas")
    WAITING_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    waiting: int
    replicas: int
    def __init__(self, waiting: _Optional[int] = ..., replicas: _Optional[int] = ...) -> None: ...

class Shared(_message.Message):
    __slots__ = ("at", "bytes", "read")
    AT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    at: int
    bytes: _containers.RepeatedScalarFieldContainer[int]
    read: int
    def __init__(self, at: _Optional[int] = ..., bytes: _Optional[_Iterable[int]] = ..., read: _Optional[int] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("grace_ms",)
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    grace_ms: int
    def __init__(self, grace_ms: _Optional[int] = ...) -> None: ...

class Drained(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Farewell(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
