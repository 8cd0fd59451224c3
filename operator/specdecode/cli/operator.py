"""`specdecode operator run`: the operator itself, as its container runs it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

app = typer.Typer(help="The operator process.", no_args_is_help=True)


class LogFormat(StrEnum):
    """How log lines are written."""

    PLAIN = "plain"
    JSON = "json"


@app.callback()
def _group() -> None:
    """The operator process."""


@app.command()
def run(
    namespace: Annotated[
        list[str] | None,
        typer.Option(envvar="SPECDECODE_NAMESPACES", help="Namespace to watch; may be given again. Default: all."),
    ] = None,
    health_port: Annotated[int, typer.Option(help="Port of /healthz; 0: none.")] = 8080,
    metrics_port: Annotated[int, typer.Option(help="Port of the operator's own /metrics; 0: none.")] = 9090,
    host: Annotated[str, typer.Option(envvar="POD_IP", help="Address that both ports listen on.")] = "0.0.0.0",
    log_format: Annotated[LogFormat, typer.Option(help="How log lines are written.")] = LogFormat.PLAIN,
    verbose: Annotated[bool, typer.Option(help="Log what kopf does, too.")] = False,
) -> None:
    """Runs the operator until it is told to stop."""
    # Imported late: every other command starts faster without kopf.
    import logging

    import kopf

    from specdecode.controller.main import run as run_operator

    kopf.configure(
        verbose=verbose,
        log_format=kopf.LogFormat.JSON if log_format is LogFormat.JSON else kopf.LogFormat.PLAIN,
    )
    if not verbose:
        for name in ("kopf", "aiohttp.access", "httpx"):
            logging.getLogger(name).setLevel(logging.WARNING)
    run_operator(namespace or [], health_port, metrics_port, host)
