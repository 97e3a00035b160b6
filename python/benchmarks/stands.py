"""The servers that are measured, each a process of its own: `python stands.py NAME [options]`.

Prints one line of JSON when it is ready (where it listens), then serves until it is terminated. Runs in this project's
environment and, for the names that begin with `peer`, in that of the released 1.4.0, of which it uses the public interface only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zmq

# The options that make a Serve handle quick, for the driver; replicas get theirs with the deployment (TUNED_REPLICA).
TUNED_DRIVER = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
TUNED_REPLICA = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 1024 * 1024),
}


def ready(**facts: Any) -> None:
    """Tells the process that started this one where to reach it."""
    print(json.dumps({"ready": True, **facts}), flush=True)


def free_endpoint() -> str:
    """An endpoint on a port that was free a moment ago (for servers that can't tell which port they chose)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def raw_echo(copy: bool) -> None:
    """One hop: a ROUTER that sends back what it gets."""
    router = zmq.Context.instance().socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    router.set_hwm(100_000)
    ready(endpoint=f"tcp://127.0.0.1:{port}")
    while True:
        router.send_multipart(router.recv_multipart(copy=copy), copy=copy)


def raw_worker(endpoint: str, copy: bool) -> None:
    """The far end of the two hops."""
    dealer = zmq.Context.instance().socket(zmq.DEALER)
    dealer.set_hwm(100_000)
    dealer.connect(endpoint)
    dealer.send(b"ready")
    ready()
    while True:
        dealer.send_multipart(dealer.recv_multipart(copy=copy), copy=copy)


def raw_broker(copy: bool) -> None:
    """Two hops: clients - ROUTER - this loop - ROUTER - a worker."""
    context = zmq.Context.instance()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    for side in (front, back):
        side.set_hwm(100_000)
    ports = [side.bind_to_random_port("tcp://127.0.0.1") for side in (front, back)]
    ready(endpoint=f"tcp://127.0.0.1:{ports[0]}", back=f"tcp://127.0.0.1:{ports[1]}")
    worker = back.recv_multipart()[0]
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    while True:
        for side, _ in poller.poll():
            if side is front:
                back.send_multipart([worker, *front.recv_multipart(copy=copy)], copy=copy)
            else:
                front.send_multipart(back.recv_multipart(copy=copy)[1:], copy=copy)


def cluster(names: list[str], replicas: int) -> None:
    """An embedded Ray with echo applications: default, tuned (for handles), servable (for the direct path; so many replicas of it)."""
    import ray
    from ray import serve

    from inferential.serving import servable

    ray.init(address="local", num_cpus=16, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})

    class Echo:
        async def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            return {"actions": obs["x"]}

    class Servable:
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            return {"actions": obs["x"]}

    echoes: dict[str, tuple[type, int, dict[str, str]]] = {
        "default": (Echo, 1, {}),
        "tuned": (Echo, 1, TUNED_REPLICA),
        "servable": (servable(Servable), replicas, {}),
    }
    for name in names:
        model, count, env = echoes[name]
        options = {"num_cpus": 0.1, "runtime_env": {"env_vars": env}}
        wrapped = serve.deployment(num_replicas=count, max_ongoing_requests=64, ray_actor_options=options)(model)
        serve.run(wrapped.bind(), name=name, route_prefix=None)
    ready(address=ray.get_runtime_context().gcs_address)
    while True:
        time.sleep(3600)


class SimulatedGpu:
    """10 ms + 0.5 ms per request, one call at a time. Sends back what it got."""

    max_batch_size = 64

    def __init__(self) -> None:
        self._busy = threading.Lock()

    def occupy(self, requests: int) -> None:
        """Takes as long as a call of so many requests."""
        with self._busy:
            time.sleep(0.010 + 0.0005 * requests)

    def warm_up(self) -> None:
        """There is nothing to load."""

    def run(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A call."""
        self.occupy(len(batch))
        return [{"actions": obs["x"], "seq": obs["seq"]} for obs in batch]


def deploy_on_gpu(models: dict[str, tuple[type, int]], num_gpus: float = 0.0, **facts: Any) -> None:
    """An embedded Ray with one replica of each model (name: class, max_ongoing_requests); runs until it is ended."""
    import ray
    from ray import serve

    ray.init(address="local", num_cpus=16, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
    for name, (model, ongoing) in models.items():
        options = {"num_cpus": 0.1, "num_gpus": num_gpus}
        wrapped = serve.deployment(num_replicas=1, max_ongoing_requests=ongoing, ray_actor_options=options)(model)
        serve.run(wrapped.bind(), name=name, route_prefix=None)
    ready(address=ray.get_runtime_context().gcs_address, **facts)
    while True:
        time.sleep(3600)


def workers_import_from(folder: Path) -> None:
    """Ray's workers inherit this process's environment; what is pickled by name they import from there."""
    sys.path.append(str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def fleets_gpu(device: type, models: list[str]) -> dict[str, tuple[type, int]]:
    """A GPU as a servable, as a model of 1.4.0 and behind @serve.batch: those of `models`.

    Each calls it from one thread, which has warmed it up.
    """
    from ray import serve

    from inferential.serving import servable

    class Gpu(device):  # type: ignore[misc]
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            return self.run([obs])[0]  # type: ignore[no-any-return]

        def infer_batch(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return self.run(batch)  # type: ignore[no-any-return]

    class GpuInAsyncModel(device):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._thread = ThreadPoolExecutor(1)
            self._thread.submit(self.warm_up).result()

        async def run_there(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self.run, batch)

    class GpuBehindServeBatch(GpuInAsyncModel):
        @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.005)
        async def _batched(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return await self.run_there(batch)

        async def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            return await self._batched(obs)  # type: ignore[no-any-return]

    class GpuOneByOne(GpuInAsyncModel):
        async def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            return (await self.run_there([obs]))[0]

    ways: dict[str, tuple[type, int]] = {
        "gpu": (servable(Gpu), 1),
        "gpu-one-by-one": (GpuOneByOne, 5),
        "gpu-serve-batch": (GpuBehindServeBatch, 512),
    }
    return {name: ways[name] for name in models}


def simulated_gpu(models: list[str]) -> None:
    """The simulated GPU, in one or more of three ways."""
    deploy_on_gpu(fleets_gpu(SimulatedGpu, models), name="simulated", call_ms=10.0, item_ms=0.5)


def cuda_gpu(models: list[str]) -> None:
    """The same with a policy on a real GPU. First what its calls take by themselves, in a process that is gone before the others begin."""
    workers_import_from(Path(__file__).parent)
    code = "import json, gpu_policy; print(json.dumps(gpu_policy.measured_curve()))"
    found = json.loads(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout)
    from gpu_policy import CudaGpu

    deploy_on_gpu(fleets_gpu(CudaGpu, models), num_gpus=1.0, **found)


def balancing_gpu() -> None:
    """The demo's regulator on the simulated GPU, as a servable and as a model of 1.4.0."""
    workers_import_from(Path(__file__).parent.parent / "examples" / "fleet_demo")
    from models import Regulator

    from inferential.serving import servable

    class Balance(SimulatedGpu, Regulator):
        def __init__(self) -> None:
            SimulatedGpu.__init__(self)
            Regulator.__init__(self, "cart-pole")

        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            return self.infer_batch([obs])[0]

        def infer_batch(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
            self.occupy(len(batch))
            return [Regulator.infer(self, obs) for obs in batch]

    class BalanceOneByOne(Balance):
        async def infer(self, obs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
            return await asyncio.to_thread(Balance.infer, self, obs)

    deploy_on_gpu({"balance": (servable(Balance), 1), "balance-one-by-one": (BalanceOneByOne, 5)})


def ours(args: argparse.Namespace) -> None:
    """This project's server: an inline local model, or the applications of a cluster."""
    from inferential import Server
    from inferential.config.schema import InferentialConfig

    config = InferentialConfig.model_validate(json.loads(args.config))
    config.transport.bind = "tcp://127.0.0.1:0"

    async def main() -> None:
        if args.address is None:
            config.ray.enabled = False
            server = Server(config=config, models={"echo": lambda obs: {"actions": obs["x"]}}, inline=True)
        else:
            config.ray.address = args.address
            server = Server(config=config, models=args.models.split(","))
        running = asyncio.create_task(server.run())
        while not server.endpoint:
            await asyncio.sleep(0.01)
        ready(endpoint=server.endpoint, pid=os.getpid())
        await running

    asyncio.run(main())


def peer(args: argparse.Namespace) -> None:
    """The released 1.4.0: its own in-process model, or the applications of a cluster."""
    from inferential import LocalDispatcher, Server  # type: ignore[attr-defined]
    from inferential.config.schema import InferentialConfig

    endpoint = free_endpoint()
    models = args.models.split(",")
    settings: dict[str, Any] = {
        "transport": {"bind": endpoint},
        "scheduling": {"pipeline_dispatch": {"enabled": True}},
        "models": {"default_max_inflight": args.max_inflight},
    }
    if args.address is not None:
        import ray

        ray.init(address=args.address, namespace="serve", logging_level="ERROR", log_to_driver=False)
    config = InferentialConfig.model_validate(settings)
    if args.address is None:
        echo = {name: lambda obs: {"actions": np.asarray(obs["x"])} for name in models}
        server = Server(models=models, config=config, dispatcher=LocalDispatcher(echo))
    else:
        server = Server(models=models, config=config)
    ready(endpoint=endpoint, pid=os.getpid())
    asyncio.run(server.run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stand")
    parser.add_argument("--copy", type=int, default=1, help="raw stands: copy frames (quicker when small)")
    parser.add_argument("--endpoint", help="raw-worker: where the broker listens for it")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--address", help="of a running cluster")
    parser.add_argument("--models", default="echo")
    parser.add_argument("--config", default="{}", help="settings of this project's server, JSON")
    parser.add_argument("--max-inflight", type=int, default=32)
    args = parser.parse_args()
    match args.stand:
        case "raw-echo":
            raw_echo(bool(args.copy))
        case "raw-broker":
            raw_broker(bool(args.copy))
        case "raw-worker":
            raw_worker(args.endpoint, bool(args.copy))
        case "cluster":
            cluster(args.models.split(","), args.replicas)
        case "simulated-gpu":
            simulated_gpu(args.models.split(","))
        case "cuda-gpu":
            cuda_gpu(args.models.split(","))
        case "balancing-gpu":
            balancing_gpu()
        case "ours":
            os.environ.update(TUNED_DRIVER)
            ours(args)
        case "peer":
            peer(args)
        case other:
            parser.error(f"no stand {other!r}")


if __name__ == "__main__":
    main()
