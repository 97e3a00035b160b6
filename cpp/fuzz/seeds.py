"""seeds.py FOLDER: the golden replies as inputs of decode_fuzz."""

import pathlib
import struct
import sys

vectors = pathlib.Path(__file__).resolve().parents[2] / "conformance" / "vectors"
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for line in (vectors / "manifest.tsv").read_text().splitlines():
    name, message, _, frames = line.split("\t")[:4]
    if message != "ModelResponse":
        continue
    payload = [
        (vectors / f"{name}.payload{f'.{i}' if i else ''}").read_bytes()
        for i in range(int(frames))
    ]
    sizes = b"".join(struct.pack("<H", len(p)) for p in payload)
    envelope = (vectors / f"{name}.envelope").read_bytes()
    (folder / name.replace("/", "-")).write_bytes(
        bytes([len(payload)]) + sizes + b"".join(payload) + envelope
    )
