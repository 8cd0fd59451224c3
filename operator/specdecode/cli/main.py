"""The `specdecode` command; as `kubectl-specdecode` on the PATH it is `kubectl specdecode`."""

from __future__ import annotations

from typing import Annotated

import typer

import specdecode
from specdecode.cli import crd, demo, lab, operator, probe, replay, simulate, status

app = typer.Typer(
    name="specdecode",
    help="Speculative decoding for vLLM on Kubernetes that runs itself.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"specdecode {specdecode.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Speculative decoding for vLLM on Kubernetes that runs itself."""


app.command()(status.status)
app.command()(status.explain)
app.command()(replay.replay)
app.command()(simulate.simulate)
app.command()(crd.crd)
app.command()(demo.demo)
app.add_typer(probe.app, name="probe")
app.add_typer(operator.app, name="operator")
app.add_typer(lab.app, name="lab")
