"""Fixtures for all tests: one embedded Ray with one Serve for the whole suite."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from inferential.config.schema import RayConfig

# `make fuzz` takes this one: about a minute for the decoder.
hypothesis.settings.register_profile("fuzz", max_examples=30_000, deadline=None)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray, started embedded with plenty of logical CPUs, and Serve without an HTTP proxy."""
    from inferential.backends import cluster

    assert cluster.join_or_start(RayConfig(address="local", num_cpus=16))
    yield
    cluster.leave()
