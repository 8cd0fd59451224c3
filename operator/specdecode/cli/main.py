"""The `specdecode` command; as `kubectl-specdecode` on the PATH it is `kubectl specdecode`."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="specdecode",
    help="Speculative decoding for vLLM on Kubernetes that runs itself.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
