"""A cluster of two nodes, both on this machine: each with a raylet, an object store and an id of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TWO_NODES = """
import asyncio
from inferential.backends import cluster
cluster.prepare_environment()
import ray
from ray import serve
from ray.cluster_utils import Cluster
from inferential.config.schema import RayConfig
from inferential.serving import servable
from tests.integration.ray_driver import driving

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
nodes.add_node(num_cpus=2, resources={"far": 1})
cluster.join_or_start(RayConfig(address=nodes.address))

@serve.deployment(ray_actor_options={"num_cpus": 0.1, "resources": {"far": 0.1}})
@servable
class Far:
    def infer(self, obs):
        return {"y": obs["x"] + 1, "node": ray.get_runtime_context().get_node_id()}

async def main():
    async with driving(["far"], address=nodes.address) as driver:
        await driver.replica("far", "direct")
        got = await driver.infer("far", x=1.0)
        print("got", float(got["y"]), "near" if got["node"] == cluster.this_node().id else "far")

serve.run(Far.bind(), name="far", route_prefix=None)
asyncio.run(main())
serve.shutdown()
ray.shutdown()
nodes.shutdown()
"""


@pytest.mark.timeout(240)
def test_replica_on_another_node() -> None:
    """It finds the server by the address that the server binds once its cluster has a second node."""
    result = subprocess.run(
        [sys.executable, "-c", TWO_NODES],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "got 2.0 far" in result.stdout, result.stdout + result.stderr
