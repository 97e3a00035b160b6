"""Reads the golden vectors (formats: vectors/README.md)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parents[1] / "vectors"


@dataclass(frozen=True)
class TensorLine:
    """A tensor as NAME.txt tells it."""

    key: str
    dtype: int
    encoding: int
    frame: int
    byte_offset: int
    byte_length: int
    timestamp_ns: int
    shape: tuple[int, ...]

    def bytes_in(self, frames: list[bytes]) -> bytes:
        return frames[self.frame][self.byte_offset : self.byte_offset + self.byte_length]


@dataclass(frozen=True)
class Vector:
    """A line of the manifest."""

    name: str
    message: str
    verdict: str
    frames: int
    status: int
    request_id: int
    key: str
    field: str
    note: str

    @property
    def envelope(self) -> bytes:
        return (VECTORS / f"{self.name}.envelope").read_bytes()

    @property
    def payload(self) -> list[bytes]:
        return [(VECTORS / (f"{self.name}.payload" + (f".{i}" if i else ""))).read_bytes() for i in range(self.frames)]

    def contents(self) -> tuple[dict[str, Any], dict[str, str], list[TensorLine]]:
        """NAME.txt: (fields, metadata, tensors); floats as the wire's 32 bits, everything else as text."""
        fields: dict[str, Any] = {}
        metadata: dict[str, str] = {}
        tensors: list[TensorLine] = []
        for line in (VECTORS / f"{self.name}.txt").read_text().split("\n")[:-1]:
            name, *rest = line.split("\t")
            if name == "metadata":
                metadata[rest[0]] = rest[1]
            elif name == "tensor":
                key, *numbers, shape, _ = rest
                dims = tuple(int(n) for n in shape.split(",")) if shape else ()
                dtype, encoding, frame, offset, length, timestamp = map(int, numbers)
                tensors.append(TensorLine(key, dtype, encoding or 1, frame, offset, length, timestamp, dims))
            else:
                is_float = len(rest) == 2
                fields[name] = struct.unpack("<f", struct.pack("<I", int(rest[0], 16)))[0] if is_float else rest[0]
        return fields, metadata, tensors


def load() -> list[Vector]:
    """All of them."""
    found = []
    for line in (VECTORS / "manifest.tsv").read_text().split("\n")[:-1]:
        name, message, verdict, frames, status, request_id, key, field, note = line.split("\t")
        found.append(Vector(name, message, verdict, int(frames), int(status), int(request_id), key, field, note))
    return found
