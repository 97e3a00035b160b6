"""JPEG and PNG tensors: headers, decoding, encoding.

Pure functions, thread-safe; the codecs are imported when first used.
Decoding takes milliseconds and releases the GIL: call it where the model runs, never on the event loop. Reading a
header takes microseconds.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inferential.errors import MissingDependencyError, ObservationError, WireError
from inferential.types import Buffer, EncodedImage, Encoding, TensorSpec

Image = npt.NDArray[np.uint8]

_JPEG_COLORSPACES = {1: "GRAY", 3: "RGB", 4: "CMYK"}
_PNG_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 6: 4}  # colour type -> channels; a palette reads as RGB
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers hold the size; C4, C8 and CC lie in their range and mean something else.
_JPEG_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})


def shape_in_header(data: memoryview, encoding: Encoding) -> tuple[int, int, int]:
    """(height, width, channels) as the image itself says, without decoding it.

    Raises:
        ValueError: no such image, or one of a kind that has no place here (16-bit or grey-with-alpha PNG).
    """
    return _png_shape(data) if encoding is Encoding.PNG else _jpeg_shape(data)


def _png_shape(data: memoryview) -> tuple[int, int, int]:
    if len(data) < 26 or bytes(data[:8]) != _PNG_SIGNATURE or bytes(data[12:16]) != b"IHDR":
        raise ValueError("is not a PNG image")
    depth, colour = data[24], data[25]
    channels = _PNG_CHANNELS.get(colour)
    if channels is None or depth > 8:
        raise ValueError("is a PNG image of a kind that is not read here; write 8-bit grey, RGB or RGBA")
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"), channels


def _jpeg_shape(data: memoryview) -> tuple[int, int, int]:
    if len(data) < 4 or data[0] != 0xFF or data[1] != 0xD8:
        raise ValueError("is not a JPEG image")
    at, end = 2, len(data)
    while at + 4 <= end:
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _JPEG_STANDALONE:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _JPEG_SOF:
            if at + 10 > end:
                break
            height = int.from_bytes(data[at + 5 : at + 7], "big")
            width = int.from_bytes(data[at + 7 : at + 9], "big")
            return height, width, data[at + 9]
        if marker == 0xDA or length < 2:  # the scan begins, and no size came before it
            break
        at += 2 + length
    raise ValueError("is a broken JPEG image: it has no size in its header")


def check_header(spec: TensorSpec, frames: Sequence[Buffer]) -> None:
    """Whether an image's own header agrees with the tensor's shape.

    Raises:
        WireError: it does not, or there is no such image.
    """
    data = memoryview(frames[spec.frame])[spec.byte_offset : spec.byte_offset + spec.byte_length]
    try:
        found = shape_in_header(data, spec.encoding)
    except ValueError as e:
        raise WireError(f"tensor {spec.key!r}", f"encoding is {spec.encoding.name}, but it {e}") from None
    if found != spec.shape:
        raise WireError(
            f"tensor {spec.key!r}",
            f"shape {list(spec.shape)}, but its {spec.encoding.name} image is {list(found)} (height, width, channels)",
        )


def decode(spec: TensorSpec, frames: Sequence[Buffer]) -> Image:
    """A JPEG or PNG tensor as a read-only uint8 array (height, width, channels).

    Raises:
        WireError: the header disagrees with the shape, or the data is broken.
        MissingDependencyError: the codec is not installed.
    """
    check_header(spec, frames)
    data = memoryview(frames[spec.frame])[spec.byte_offset : spec.byte_offset + spec.byte_length]
    array = _decode_jpeg(spec, data) if spec.encoding is Encoding.JPEG else _decode_png(spec, data)
    if array.shape != spec.shape:
        raise WireError(f"tensor {spec.key!r}", f"decodes to {list(array.shape)}, its shape is {list(spec.shape)}")
    array.flags.writeable = False
    return array


def _decode_jpeg(spec: TensorSpec, data: memoryview) -> Image:
    simplejpeg = _simplejpeg()
    try:
        array: Image = simplejpeg.decode_jpeg(data, colorspace=_JPEG_COLORSPACES[spec.shape[2]])
    except Exception as e:
        raise WireError(f"tensor {spec.key!r}", f"the JPEG data is broken: {e}") from None
    return array


def _decode_png(spec: TensorSpec, data: memoryview) -> Image:
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(data), formats=["PNG"]) as image:
            array = np.array(image.convert(_PNG_MODES[spec.shape[2]]), np.uint8)
    except Exception as e:  # pillow lets escape whatever its readers of chunks stumble over
        raise WireError(f"tensor {spec.key!r}", f"the PNG data is broken: {e}") from None
    return array.reshape(*array.shape[:2], -1)


def encode_jpeg(image: Any, quality: int = 90) -> EncodedImage:
    """A uint8 image (height, width[, 1 or 3]) as JPEG; `quality` 1..100.

    Raises:
        ObservationError: it is no such image.
        MissingDependencyError: simplejpeg is not installed.
    """
    array = _as_image(image, (1, 3), "JPEG")
    if not 1 <= quality <= 100:
        raise ObservationError(f"JPEG quality is 1..100, not {quality}")
    data = _simplejpeg().encode_jpeg(
        np.ascontiguousarray(array), quality=quality, colorspace=_JPEG_COLORSPACES[array.shape[2]]
    )
    return EncodedImage(data, array.shape, Encoding.JPEG)


def encode_png(image: Any, compress_level: int = 1) -> EncodedImage:
    """A uint8 image (height, width[, 1, 3 or 4]) as PNG, without loss; `compress_level` 0 (quick) to 9 (small).

    Raises:
        ObservationError: it is no such image.
        MissingDependencyError: pillow is not installed.
    """
    array = _as_image(image, (1, 3, 4), "PNG")
    if not 0 <= compress_level <= 9:
        raise ObservationError(f"PNG compress_level is 0..9, not {compress_level}")
    out = io.BytesIO()
    _pillow().fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(
        out, format="PNG", compress_level=compress_level
    )
    return EncodedImage(out.getvalue(), array.shape, Encoding.PNG)


def _as_image(image: Any, channels: tuple[int, ...], name: str) -> Any:
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in channels or 0 in array.shape:
        raise ObservationError(
            f"a {name} image is uint8 of shape (height, width, channels) with {' or '.join(map(str, channels))} "
            f"channels, not {array.dtype} of shape {list(array.shape)}"
        )
    return array


def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        raise MissingDependencyError("JPEG tensors need simplejpeg: pip install 'inferential[images]'") from None
    return simplejpeg


def _pillow() -> Any:
    try:
        from PIL import Image as pillow  # noqa: N813
    except ImportError:
        raise MissingDependencyError("PNG tensors need pillow: pip install 'inferential[images]'") from None
    return pillow
