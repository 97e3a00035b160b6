"""Every golden reply through every client, as bytes on its socket."""

from __future__ import annotations

from inferential._proto.inferential.v1 import inferential_pb2 as pb

from adapters.base import NAMES
from suite.client import Connection, Model
from suite.standin import StandIn
from suite.vectors import load

VALID = [v for v in load() if (v.message, v.verdict) == ("ModelResponse", "valid")]
# Without any payload frame it is no reply at all: test_receiving.py has that.
MALFORMED = [v for v in load() if (v.message, v.verdict) == ("ModelResponse", "malformed") and v.frames]
MODEL_ERROR = 6


def addressed(request_id: int, model_id: str = "") -> bytes:
    """Appended to an envelope it makes it the reply to that request: of a repeated number the last one counts."""
    return bytes(pb.ModelResponse(request_id=request_id, model_id=model_id).SerializeToString())


def test_valid_replies_are_read_field_by_field(connection: Connection, model: Model, stand_in: StandIn) -> None:
    for vector in VALID:
        fields, metadata, tensors = vector.contents()
        if any(t.encoding != 1 for t in tensors):
            continue  # images are handed out decoded, by codecs of their own
        sent = connection.model(vector.name).send()
        got = stand_in.receive()
        frames = vector.payload
        stand_in.send(got, vector.envelope + addressed(sent), frames)
        r = connection.model(vector.name).reply()
        where = vector.name
        assert r.request_id == sent, where
        assert r.status == int(fields["status"]), where
        assert r.reason == int(fields["reason"]), where
        assert r.error == fields["error"], where
        assert r.retry_after_ms == fields["retry_after_ms"], where
        assert r.phase_shift_ms == fields["phase_shift_ms"], where
        assert r.timestamp_ns == int(fields["timestamp_ns"]), where
        assert r.metadata == metadata, where
        if fields["timing.server_ms"]:
            assert (r.queue_ms, r.inference_ms, r.server_ms) == (1.5, 4.25, 6.125), where
            assert (r.batch_size, r.replica) == (8, "policy#1"), where
        assert list(r.tensors) == [t.key for t in tensors], where
        for t in tensors:
            data = t.bytes_in(frames)
            found = r.tensors[t.key]
            assert (found.dtype, found.shape) == (NAMES[t.dtype], t.shape), f"{where} {t.key}"
            if found.dtype == "BOOL":  # any byte but 0 is true, whether it is handed out as it came or as 1
                assert [b != 0 for b in found.data] == [b != 0 for b in data], f"{where} {t.key}"
            else:
                assert found.data == data, f"{where} {t.key}"


def test_malformed_replies_end_their_request_and_harm_nothing(
    connection: Connection, model: Model, stand_in: StandIn
) -> None:
    bad = 0
    for vector in MALFORMED:
        sent = model.send()
        got = stand_in.receive()
        where = vector.name
        if vector.request_id:
            stand_in.send(got, vector.envelope + addressed(sent, "policy"), vector.payload)
            r = model.reply()
            assert (r.request_id, r.status, r.local) == (sent, MODEL_ERROR, True), where
            assert vector.key in r.error, f"{where}: {r.error}"
            assert vector.field in r.error, f"{where}: {r.error}"
            assert not r.tensors, where
        else:
            stand_in.send(got, vector.envelope, vector.payload)
            bad += 1
            connection.wait_for_counter("bad_replies", bad)
            stand_in.answer(got)
            assert model.ok().request_id == sent, where
    assert connection.counters()["late_replies"] == 0
