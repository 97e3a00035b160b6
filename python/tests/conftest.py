"""Fixtures for all tests: one embedded Ray with one Serve for the whole suite."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from inferential.config.schema import RayConfig

# The same examples in every run, and no verdicts on a machine's speed: a run fails for what was changed, not by chance.
hypothesis.settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")
# `make fuzz` takes this one: about a minute for the decoder. It looks further in the other tests too.
hypothesis.settings.register_profile("fuzz", max_examples=30_000, deadline=None)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray, started embedded with plenty of logical CPUs, and Serve without an HTTP proxy."""
    from inferential.backends import cluster

    assert cluster.join_or_start(RayConfig(address="local", num_cpus=16))
    yield
    cluster.leave()
