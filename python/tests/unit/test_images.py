from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from inferential import images
from inferential.errors import ObservationError, WireError
from inferential.types import DType, EncodedImage, Encoding, TensorSpec

rng = np.random.default_rng(0)
SMOOTH = np.linspace(0, 255, 20 * 30 * 3).reshape(20, 30, 3).astype(np.uint8)


def spec(image: EncodedImage, shape: tuple[int, ...] | None = None) -> TensorSpec:
    return TensorSpec("cam", DType.UINT8, shape or image.shape, 5, len(image.data), 0, image.encoding)


def decoded(image: EncodedImage) -> Any:
    return images.decode(spec(image), [b"12345" + image.data])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_is_lossless(channels: int) -> None:
    array = rng.integers(0, 256, (7, 9, channels), np.uint8)
    found = decoded(images.encode_png(array))
    assert np.array_equal(found, array)
    assert not found.flags.writeable


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_close(channels: int) -> None:
    array = SMOOTH[:, :, :channels]
    found = decoded(images.encode_jpeg(array, quality=95))
    assert found.shape == array.shape
    assert np.abs(found.astype(int) - array).mean() < 8


def test_a_grey_image_needs_no_third_dimension() -> None:
    assert images.encode_png(SMOOTH[:, :, 0]).shape == (20, 30, 1)
    assert images.encode_jpeg(SMOOTH[:, :, 0]).shape == (20, 30, 1)


@pytest.mark.parametrize("encode", [images.encode_jpeg, images.encode_png])
def test_header_is_checked_before_decoding(encode: Callable[[Any], EncodedImage]) -> None:
    image = encode(SMOOTH)
    with pytest.raises(WireError, match=r"tensor 'cam': shape \[20, 31, 3\], but its .* is \[20, 30, 3\]"):
        images.check_header(spec(image, (20, 31, 3)), [b"12345" + image.data])


@pytest.mark.parametrize("encode", [images.encode_jpeg, images.encode_png])
def test_broken_data_is_an_error_that_names_the_tensor(encode: Callable[[Any], EncodedImage]) -> None:
    image = encode(rng.integers(0, 256, (20, 30, 3), np.uint8))
    cut = EncodedImage(image.data[:-400], image.shape, image.encoding)
    with pytest.raises(WireError, match=r"tensor .cam.*broken"):
        decoded(cut)


def test_a_chunk_that_the_codec_stumbles_over_is_broken_data() -> None:
    """An empty colour profile after the pixels: pillow raises IndexError."""
    image = images.encode_png(rng.integers(0, 256, (20, 30, 3), np.uint8))
    end = image.data.rindex(b"IEND") - 4
    empty = b"\0\0\0\0iCCP" + zlib.crc32(b"iCCP").to_bytes(4, "big")
    with contextlib.suppress(WireError):  # a version that does not stumble is welcome
        decoded(EncodedImage(image.data[:end] + empty + image.data[end:], image.shape, image.encoding))


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x00", b"\xff\xd8\xff\xda\x00\x04", b"x" * 40]
)
@pytest.mark.parametrize("encoding", [Encoding.JPEG, Encoding.PNG])
def test_what_is_no_image(data: bytes, encoding: Encoding) -> None:
    with pytest.raises(ValueError, match="image"):
        images.shape_in_header(memoryview(data), encoding)


def test_progressive_jpeg_with_metadata_has_its_size_found() -> None:
    out = io.BytesIO()
    Image.fromarray(SMOOTH).save(
        out, format="JPEG", progressive=True, comment=b"x" * 3000, exif=b"Exif\0\0" + b"y" * 500
    )
    assert images.shape_in_header(memoryview(out.getvalue()), Encoding.JPEG) == (20, 30, 3)


def test_a_palette_png_reads_as_rgb() -> None:
    out = io.BytesIO()
    Image.fromarray(SMOOTH).quantize(8).save(out, format="PNG")
    assert decoded(EncodedImage(out.getvalue(), (20, 30, 3), Encoding.PNG)).shape == (20, 30, 3)


def test_png_kinds_that_would_lose_data_are_refused() -> None:
    out = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.uint16)).save(out, format="PNG")
    with pytest.raises(ValueError, match="8-bit"):
        images.shape_in_header(memoryview(out.getvalue()), Encoding.PNG)


def test_cmyk_jpeg() -> None:
    array = np.full((4, 6, 4), 100, np.uint8)
    data = simplejpeg.encode_jpeg(array, colorspace="CMYK")
    assert decoded(EncodedImage(data, (4, 6, 4), Encoding.JPEG)).shape == (4, 6, 4)


@pytest.mark.parametrize(
    "array", [np.ones((4, 4, 3)), np.ones((4, 4, 2), np.uint8), np.ones(4, np.uint8), np.ones((0, 4, 3), np.uint8)]
)
def test_only_images_are_encoded(array: Any) -> None:
    for encode in (images.encode_jpeg, images.encode_png):
        with pytest.raises(ObservationError, match="uint8 of shape"):
            encode(array)


def test_encoder_settings_are_checked() -> None:
    with pytest.raises(ObservationError, match=r"1\.\.100"):
        images.encode_jpeg(SMOOTH, quality=0)
    with pytest.raises(ObservationError, match=r"0\.\.9"):
        images.encode_png(SMOOTH, compress_level=10)
