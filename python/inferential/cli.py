"""The command `inferential`: serve, check-config, ping, replay, simulate, explain."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
except ImportError:
    typer = None  # type: ignore[assignment]

if typer is None:

    def main() -> None:
        """Says what is missing."""
        sys.exit("the command inferential needs the server's packages: pip install 'inferential[server]'")

else:
    from inferential._version import __version__
    from inferential.config.load import load_config
    from inferential.config.schema import InferentialConfig
    from inferential.errors import ConfigError, InferentialError
    from inferential.types import COMPILED

    app = typer.Typer(
        name="inferential",
        help="Serves many robots and game agents from a few shared models.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    def _version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"inferential {__version__}" + (", core compiled" if COMPILED else ""))
            raise typer.Exit

    @app.callback()
    def options(
        version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    ) -> None:
        """Serves many robots and game agents from a few shared models."""

    @app.command()
    def serve(
        apps: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[NAME=]MODULE:ATTRIBUTE...",
                help="Models to serve: Ray Serve applications, which are deployed, or callables, which run in this "
                "process. NAME is what clients ask for; the attribute's name where not given. "
                "A bare NAME is an application that is deployed already.",
            ),
        ] = None,
        config: Annotated[Path | None, typer.Option(help="Settings: a TOML, YAML or JSON file.")] = None,
        bind: Annotated[str | None, typer.Option(help="Endpoint, for example tcp://*:5555.")] = None,
        inline: Annotated[bool, typer.Option("--inline", help="Run callables on the event loop: quick ones.")] = False,
        record: Annotated[Path | None, typer.Option(help="Record what happens to this MCAP file.")] = None,
        record_payloads: Annotated[bool, typer.Option("--record-payloads", help="The tensors' bytes too.")] = False,
        log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    ) -> None:
        """Serve models until SIGINT or SIGTERM."""
        _log(log_level)
        settings = InferentialConfig() if config is None else load_config(config)
        models: dict[str, Any] = dict.fromkeys(settings.models.known)
        for argument in apps or ():
            name, model = _import(argument)
            if models.get(name) is not None:
                raise ConfigError(
                    f"{argument!r}: there is another model named {name!r} already; write NAME=MODULE:ATTRIBUTE"
                )
            models[name] = model
        from inferential.server import Server

        server = Server(
            settings, models=models, bind=bind, inline=inline, record=record, record_payloads=record_payloads
        )
        asyncio.run(server.run(lambda: typer.echo(f"serving {', '.join(server.models)} on {server.endpoint}")))

    @app.command("check-config")
    def check_config(file: Annotated[Path, typer.Argument(help="A TOML, YAML or JSON file.")]) -> None:
        """Check a settings file and show what it changes."""
        settings = load_config(file)
        _check_names(settings)
        for line in _lines(settings.model_dump(exclude_defaults=True)):
            typer.echo(line)
        typer.echo(f"{file}: good")

    @app.command()
    def ping(
        server: Annotated[str, typer.Argument(help="Address of the server.")] = "tcp://127.0.0.1:5555",
        count: Annotated[int, typer.Option(min=1, help="How often.")] = 4,
        timeout_ms: Annotated[
            float, typer.Option(min=1, max=1e9, help="How long to wait for the server, and for each answer.")
        ] = 1000.0,
    ) -> None:
        """Ask whether a server answers, how fast, and which models are ready. Exit code 1 without an answer."""
        from inferential.client.blocking import Connection

        result, answered = None, 0
        with Connection(server=server, client_id=f"ping-{os.getpid()}", client_type="cli") as connection:
            for _ in range(count):
                answer = connection.ping(timeout_ms) if connection.wait_until_up(timeout_ms) else None
                if answer is None:
                    typer.echo(f"no answer from {server} in {timeout_ms:g} ms")
                    continue
                result, answered = answer, answered + 1
                typer.echo(f"{server}: {answer.round_trip_ms:.3f} ms")
        if result is None:
            raise typer.Exit(1)
        typer.echo(f"{answered} of {count} answered, by inferential {result.server} (protocol {result.protocol})")
        for name, ready in sorted(result.models.items()):
            typer.echo(f"  {name}: {'ready' if ready else 'not ready'}")

    @app.command()
    def replay(
        file: Annotated[Path, typer.Argument(help="An MCAP file that serve --record wrote.")],
        strategy: Annotated[
            list[str] | None, typer.Option(help="Show what this strategy would have done instead (may be repeated).")
        ] = None,
    ) -> None:
        """Make a recording's decisions again and compare. Exit code 1 where they differ."""
        if strategy:
            from inferential.simulate_cli import table
            from inferential.simulator import Scenario, Variant, simulate

            variants = [Variant(name="simulated, as configured")]
            variants += [
                Variant(name=f"simulated, {name}", settings={"scheduling.strategy": name, "scheduling.options": {}})
                for name in dict.fromkeys(strategy)
            ]
            typer.echo(table(simulate(Scenario(name=file.name, recording=file, variants=variants))))
            return
        from inferential.replay import replay as replay_recording

        result = replay_recording(file)
        for line in result.differences:
            typer.echo(line)
        typer.echo(f"{result.inputs} inputs, {result.decisions} decisions, {result.different} different")
        if not result.same:
            raise typer.Exit(1)

    @app.command()
    def simulate(
        scenario: Annotated[Path, typer.Argument(help="What to simulate: a YAML or JSON file.")],
        json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here, as JSON.")] = None,
        plots: Annotated[Path | None, typer.Option(help="Draw the curves: a PNG, SVG or PDF file.")] = None,
    ) -> None:
        """Run the engine on a virtual clock with synthetic fleets; compare strategies side by side."""
        from inferential.simulate_cli import run

        typer.echo(run(scenario, json_file, plots))

    @app.command()
    def explain(
        client_id: Annotated[str, typer.Argument(help="The client's id.")],
        request_id: Annotated[int, typer.Argument(help="The request's id.")],
        server: Annotated[str, typer.Option(help="Address of the server.")] = "tcp://127.0.0.1:5555",
        timeout_ms: Annotated[float, typer.Option(min=1, max=1e9, help="How long to wait for the answer.")] = 2000.0,
    ) -> None:
        """Tell why a recent request waited, was batched, refused or superseded. Exit code 1 where it is not known."""
        from inferential.scheduling.journal import describe

        decisions = _ask_why(server, client_id, request_id, timeout_ms)
        if not decisions:
            typer.echo(f"request {request_id} of client {client_id!r} is not known to {server} (any more)")
            raise typer.Exit(1)
        start = decisions[0]["at"]
        for decision in decisions:
            typer.echo(f"+{(decision['at'] - start) * 1e3:9.1f} ms  {describe(decision)}")

    def _ask_why(server: str, client_id: str, request_id: int, timeout_ms: float) -> list[dict[str, Any]]:
        import zmq

        from inferential import wire
        from inferential.client.observation import check_name
        from inferential.client.options import Options
        from inferential.types import Kind, Observation

        options = Options(server, check_name("the client's id", client_id))
        question = Observation(
            f"explain-{os.getpid()}",
            "cli",
            "",
            request_id=1,
            kind=Kind.PING,
            metadata={"explain": f"{request_id} {client_id}"},
        )
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.IPV6, options.is_ipv6)
            try:
                socket.connect(options.server)
            except zmq.ZMQError as e:
                raise ConfigError(
                    f"--server is {server!r}: {e}; it must be an address as in 'tcp://localhost:5555'"
                ) from None
            socket.send_multipart([b"", wire.encode_observation(question), b""])
            if not socket.poll(int(timeout_ms)):
                raise InferentialError(f"no answer from {server} in {timeout_ms:g} ms")
            frames = socket.recv_multipart()
        story = wire.parse_response(frames[1], frames[2:]).metadata.get("explain")
        if story is None:
            raise InferentialError(
                f"{server} keeps no account of its decisions: it is no inferential server of 2.0 or later"
            )
        found: list[dict[str, Any]] = json.loads(story)
        return found

    def _log(level: str) -> None:
        if level not in ("debug", "info", "warning", "error"):
            raise ConfigError(f"--log-level is {level!r}; it may be debug, info, warning or error")
        logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def _import(argument: str) -> tuple[str, Any]:
        """(name, model) of [NAME=]MODULE:ATTRIBUTE; the model is None for a bare NAME."""
        name, equals, path = argument.rpartition("=")
        module, colon, attribute = path.partition(":")
        if not colon:
            if equals:
                raise ConfigError(f"{argument!r}: after the = comes MODULE:ATTRIBUTE")
            if path.endswith(".py") or "/" in path:
                module = path.removesuffix(".py").replace("/", ".").lstrip(".")
                raise ConfigError(f"{argument!r} is a file; write MODULE:ATTRIBUTE, as in {module}:app")
            return path, None
        if not module or not attribute:
            raise ConfigError(f"{argument!r}: write it as MODULE:ATTRIBUTE or NAME=MODULE:ATTRIBUTE")
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            model: Any = importlib.import_module(module)
            for part in attribute.split("."):
                model = getattr(model, part)
        except (ImportError, AttributeError) as e:
            raise ConfigError(f"{argument!r}: cannot import it: {e}") from None
        if model is None:
            raise ConfigError(f"{argument!r} is None")
        return name or attribute, model

    def _check_names(settings: InferentialConfig) -> None:
        """What the engine would refuse at start: unknown strategies, options and policies."""
        from inferential.engine import Engine
        from inferential.metrics.collector import MetricsCollector

        Engine(settings, list(settings.models.known), MetricsCollector(1))

    def _lines(settings: dict[str, Any], prefix: str = "") -> list[str]:
        """A line for each setting; a model or client without any has a line of its own."""
        lines: list[str] = []
        for key, value in settings.items():
            if isinstance(value, dict) and value:
                lines += _lines(value, f"{prefix}{key}.")
            else:
                lines.append(f"{prefix}{key}: defaults" if value == {} else f"{prefix}{key} = {value!r}")
        return lines

    def main() -> None:
        """The entry point of the command."""
        try:
            app()
        except InferentialError as e:
            typer.echo(f"error: {e}", err=True)
            sys.exit(2)


if __name__ == "__main__":
    main()
