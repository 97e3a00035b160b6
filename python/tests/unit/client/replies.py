"""Replies as a server would send them, for the client's tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inferential import wire
from inferential.types import Reason, Status, Timing


def reply(
    request_id: int,
    *,
    model: str = "policy",
    status: Status | int = Status.OK,
    reason: Reason | int = Reason.NONE,
    error: str = "",
    retry_after_ms: float = 0.0,
    phase_shift_ms: float = 0.0,
    tensors: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[Any]:
    """The frames of a reply; without request_id as a v1 server sends them."""
    if tensors is None and status == Status.OK:
        tensors = {"actions": np.full(2, request_id, np.float32)}
    return wire.encode_response(
        client_id="robot",
        client_type="",
        model_id=model,
        response_id=f"r{request_id}",
        timestamp_ns=1,
        request_id=request_id,
        observation_timestamp_ns=7,
        body=wire.encode_body(tensors, several_frames=True) if tensors else None,
        status=status,  # type: ignore[arg-type]
        reason=reason,  # type: ignore[arg-type]
        error=error,
        retry_after_ms=retry_after_ms,
        phase_shift_ms=phase_shift_ms,
        timing=Timing(1.0, 2.0, 3.5, 4, "a"),
        metadata=metadata,
    )


def broken(request_id: int) -> list[Any]:
    """A reply whose tensor lies past the end of its frame; its request can be read."""
    frames = reply(request_id)
    return [*frames[:2], b"\0"]
