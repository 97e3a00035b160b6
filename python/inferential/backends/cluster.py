"""Ray as this package uses it: joining or starting it, what Serve runs, and a small shared store.

The one place with calls outside Ray's stable API, each with a fallback. Everything blocks: call it in a thread.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from inferential.config.schema import RayConfig
from inferential.errors import ConfigError, MissingDependencyError

logger = logging.getLogger("inferential.ray")

NAMESPACE = "inferential"
"""Of the keys in Ray's own key-value store."""
START_ATTEMPTS = 3
MAX_MESSAGE = 500  # characters of what Serve says of an application

# Most is read by Ray Serve when it is imported, here and in the replicas of an embedded Ray. That handles run their router in the
# caller's loop is asked for handle by handle: set for everything, it would break sync models that call other deployments.
_SERVE_ENVIRONMENT = {
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 * 1024 * 1024),
    "RAY_USAGE_STATS_ENABLED": "0",
    # A call that comes after the server has left Ray is to fail, not to start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Read by Ray itself when a process joins. Its own handler of SIGTERM would abort a server that is still starting; a crash
    # leaves a trace without it too, by Python's faulthandler, which Ray turns on.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    # Read by an embedded Ray. Its default of 15 has replicas wait for all else on the machine (ADR 6).
    "RAY_worker_niceness": "0",
}


def prepare_environment() -> None:
    """Sets the environment of Ray and Ray Serve where the user has not; call it before either is imported."""
    for name, value in _SERVE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def join_or_start(config: RayConfig) -> bool:
    """Connects this process to Ray, and makes sure that Serve runs there.

    Returns:
        Whether Ray was started by this call (and dies with this process).

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: there is no cluster at `config.address`, or Ray cannot be started.
    """
    prepare_environment()
    try:
        import ray
        from ray import serve
    except ImportError as e:
        raise MissingDependencyError(f"Ray Serve models need Ray: pip install 'inferential[server]' ({e})") from None
    started = False
    if not ray.is_initialized():
        options: dict[str, Any] = {"namespace": config.namespace, "log_to_driver": False, "logging_level": "error"}
        address = config.address or os.environ.get("RAY_ADDRESS") or _cluster_on_this_machine() or "local"
        if address == "local":
            _start({"include_dashboard": False, "num_cpus": config.num_cpus, **options})
            started = True
        else:
            try:
                ray.init(address=address, **options)
            except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as e:
                raise ConfigError(
                    f"ray.address: cannot use {address!r} ({e}); give the address of a running cluster, or 'local'. Where the "
                    "cluster asks for Ray's token, set RAY_AUTH_MODE=token and see that this process has it"
                ) from e
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # what it does step by step is no news of a server
    # Handles need no HTTP proxy; where Serve already runs this changes nothing.
    serve.start(proxy_location="Disabled")
    return started


def _start(options: dict[str, Any]) -> None:
    import ray

    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(address="local", **options)
            return
        except Exception as e:  # Ray raises a bare Exception where its processes took more than 30 s
            ray.shutdown()
            if attempt == START_ATTEMPTS - 1:
                raise ConfigError(f"ray: cannot start Ray in this process: {e}") from e
            logger.warning("Ray did not start (%s); trying again", e)


def leave() -> None:
    """Disconnects from Ray. One that was started embedded ends at once, with all that runs in it."""
    import ray

    ray.shutdown()


def _cluster_on_this_machine() -> str | None:
    """Address of a cluster that `ray start` began here, if it still runs."""
    from ray._private.utils import read_ray_address

    try:
        address: str | None = read_ray_address(None)
    except Exception:
        return None
    if not address:
        return None
    import socket

    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except (OSError, ValueError):
        return None  # left over from a cluster that is gone
    return address


@dataclass(frozen=True, slots=True)
class Node:
    """Where this process is in the cluster."""

    id: str
    ip: str
    alone: bool
    """Whether the cluster has no other node."""


def this_node() -> Node:
    """Where this process is in the cluster, now."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    alive = [n for n in ray.nodes() if n.get("Alive")]
    ip = next((n["NodeManagerAddress"] for n in alive if n["NodeID"] == here), "127.0.0.1")
    return Node(here, ip, len(alive) <= 1)


# --- what Serve is to run ---------------------------------------------------------------------------------------------


def is_application(model: Any) -> bool:
    """Whether this is a bound Ray Serve application. Does not import Ray: without it there can be none."""
    serve_module = sys.modules.get("ray.serve")
    return serve_module is not None and isinstance(model, serve_module.Application)


def deploy(name: str, application: Any, leaving: threading.Event) -> None:
    """Deploys a bound application and returns once it runs, or `leaving` is set.

    Raises:
        Exception: what Serve raises, or says of an application that it could not deploy.
    """
    from ray import serve
    from ray.serve import api

    # serve.run waits until the application runs, however long that takes, and no thread may be inside Ray when we leave it.
    if not hasattr(api, "_run"):
        serve.run(application, name=name, route_prefix=None)
        return
    api._run(application, name=name, route_prefix=None, _blocking=False)
    while not leaving.wait(0.25):
        found = serve.status().applications.get(name)
        status = "" if found is None else _text(found.status)
        if status == "RUNNING":
            return
        if found is not None and status == "DEPLOY_FAILED":
            reasons = [found.message, *(d.message for d in found.deployments.values())]
            raise RuntimeError(" ".join(filter(None, reasons)))


# --- what Serve runs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Application:
    """A Serve application as its controller sees it."""

    name: str
    deployment: str
    """Its ingress deployment: the model."""
    status: str
    deployed_at: float
    """Wall clock of its last deployment; tells one deployment from the next."""
    replicas: int
    """Running replicas of the ingress deployment."""
    max_ongoing_requests: int
    may_be_zero: bool
    """It is scaled down to no replica at all where there is no load: then a call through the handle starts one."""
    message: str
    """What Serve says of a state that is not as it should be."""


def applications(names: Iterable[str]) -> dict[str, Application]:
    """The Serve applications with these names, as far as they exist."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return {}
    details = client.get_serve_details().get("applications", {})
    found: dict[str, Application] = {}
    for name in names:
        app = details.get(name)
        if app is None:
            continue
        deployments = app.get("deployments", {})
        ingress = _ingress(client, name, deployments)
        deployment = deployments.get(ingress)
        if deployment is None:
            continue
        settings = deployment.get("deployment_config") or {}
        running = sum(1 for r in deployment.get("replicas", ()) if _text(r.get("state")) == "RUNNING")
        found[name] = Application(
            name=name,
            deployment=ingress,
            status=_text(app.get("status")),
            deployed_at=float(app.get("last_deployed_time_s") or 0.0),
            replicas=running,
            max_ongoing_requests=int(settings.get("max_ongoing_requests") or 5),
            may_be_zero=(settings.get("autoscaling_config") or {}).get("min_replicas") == 0,
            message=_brief(_text(deployment.get("message") or app.get("message") or "")),
        )
    return found


def _brief(message: str) -> str:
    """A message of Serve's without its traceback: what it says first, and last, which is the exception."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    brief = " ".join(lines if len(lines) < 3 else [lines[0], "...", lines[-1]])
    return brief if len(brief) <= MAX_MESSAGE else brief[: MAX_MESSAGE - 3] + "..."


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _ingress(client: Any, app: str, deployments: dict[str, Any]) -> str:
    if len(deployments) == 1:
        return next(iter(deployments))
    import ray

    try:
        return str(ray.get(client._controller.get_ingress_deployment_name.remote(app), timeout=5.0) or "")
    except Exception as e:
        logger.debug("ingress of %s: %s", app, e)
        return ""


def ingress_deployment(app: str) -> str:
    """Name of the application's ingress deployment, empty where this Ray cannot tell."""
    import ray
    from ray.serve.context import _get_global_client

    controller = _get_global_client()._controller
    if not hasattr(controller, "get_ingress_deployment_name"):
        return ""
    return str(ray.get(controller.get_ingress_deployment_name.remote(app), timeout=5.0) or "")


@dataclass(frozen=True, slots=True)
class Signature:
    """How a deployment's class wants to be called."""

    servable: bool
    """Whether it was decorated with inferential.serving.servable."""
    method: str
    takes_context: bool
    is_async: bool


def signature(app: Application, leaving: threading.Event) -> Signature | None:
    """Looks at a deployment's class, in a Ray task, so that what it imports stays out of this process.

    Returns:
        None where the class could not be loaded, or once `leaving` is set.
    """
    import ray
    from ray.serve.context import _get_global_client
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    try:
        client = _get_global_client()
        route = ray.get(client._controller.get_deployment_info.remote(app.deployment, app.name), timeout=10.0)
        task = ray.remote(num_cpus=0, max_retries=0)(_signature).options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True)
        )
        looking, until_s = task.remote(route), time.monotonic() + 60.0
        while not ray.wait([looking], timeout=0.2)[0]:
            if leaving.is_set():
                return None
            if time.monotonic() > until_s:
                raise TimeoutError("loading it took over 60 s")
        found = ray.get(looking)
    except Exception as e:
        logger.warning("cannot look at the class of model %r (%s): calling infer(obs)", app.name, e)
        return None
    return Signature(*found)


def _signature(route: bytes) -> tuple[bool, str, bool, bool]:
    import inspect

    from ray.serve._private.deployment_info import DeploymentInfo
    from ray.serve.generated.serve_pb2 import DeploymentRoute

    from inferential.model_call import is_async, takes_context

    info = DeploymentInfo.from_proto(DeploymentRoute.FromString(route).deployment_info)
    target = info.replica_config.deployment_def
    if isinstance(target, str):
        from ray._common.utils import import_attr

        target = import_attr(target)
    if not inspect.isclass(target):
        return False, "__call__", takes_context(target), is_async(target)
    name = "infer" if hasattr(target, "infer") else "__call__"
    method = inspect.getattr_static(target, name, None)
    # Looked up on the class, a method still has its `self`: bind it to nothing in particular.
    bound = method.__get__(object()) if hasattr(method, "__get__") else method
    servable = bool(getattr(target, "__inferential_servable__", False))
    return servable, name, callable(bound) and takes_context(bound), is_async(bound)


# --- a small shared store --------------------------------------------------------------------------------------------


def put(key: str, value: bytes) -> None:
    """Writes a key for the whole cluster to read."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, value, overwrite=True, namespace=NAMESPACE)


def get(key: str) -> bytes | None:
    """Reads a key, None where there is none."""
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = _internal_kv_get(key, namespace=NAMESPACE)
    return value


def delete(key: str) -> None:
    """Removes a key."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key, namespace=NAMESPACE)


def keys(prefix: str) -> list[str]:
    """All keys that begin so."""
    from ray.experimental.internal_kv import _internal_kv_list

    return [k.decode() for k in _internal_kv_list(prefix, namespace=NAMESPACE)]
