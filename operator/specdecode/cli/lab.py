"""`specdecode lab`: a Kubernetes cluster on this machine, for tests, demos and trying things out."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import time
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from specdecode.lab import binaries, logs, paths, supervisor
from specdecode.lab.errors import LabError
from specdecode.lab.realnodes import products
from specdecode.lab.realvllm import installation

app = typer.Typer(help="A Kubernetes cluster on this machine whose pods run as local processes.", no_args_is_help=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Name = Annotated[str, typer.Option(help="The lab's name; several can be up side by side.")]


@contextmanager
def _errors_end_the_command() -> Iterator[None]:
    try:
        yield
    except LabError as e:
        err.print(f"[red]error:[/red] {escape(str(e))}")
        raise typer.Exit(1) from None


@app.command()
def build(
    helm: Annotated[bool, typer.Option("--helm", help="Build Helm, too.")] = False,
    nodes: Annotated[
        bool, typer.Option("--nodes", help="Build what real nodes run, too, and the images that they have.")
    ] = False,
) -> None:
    """Builds the control plane with Go; does nothing when it is up to date."""
    with _errors_end_the_command():
        folder = paths.binaries()
        wanted = [binaries.control_plane_build(paths.module_source(), folder)]
        wanted += [binaries.helm_build(folder)] if helm else []
        wanted += [binaries.node_build(paths.node_source(), paths.node_binaries())] if nodes else []
        for item in wanted:
            if item.is_current():
                err.print(f"{item.program} is up to date")
                continue
            go = binaries.find_go()
            err.print(f"building {item.program} ({item.expectation})")
            with _progress(item.program.name):
                item.run(go)
        if nodes:
            with _progress("images"):
                archive = products.build()
            err.print(f"{archive} is up to date")


@contextmanager
def _progress(what: str) -> Iterator[None]:
    with _spinner() as progress:
        progress.add_task(what)
        yield


def _spinner() -> Progress:
    return Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=err)


@app.command()
def vllm() -> None:
    """Installs real vLLM for the CPU and small models, for `make demo` and `make test-vllm`; minutes the first time."""
    with _errors_end_the_command():
        with _spinner() as progress:
            running: TaskID | None = None
            for step in installation.install():
                if running is not None:
                    progress.stop_task(running)
                running = progress.add_task(step.title)
        err.print(f"real vLLM is in {installation.find().folder}")


@app.command()
def up(
    name: Name = "default",
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that each node advertises.")] = 4,
    nodes: Annotated[
        int, typer.Option(min=0, max=100, help="So many real nodes, which need root, instead of a process node.")
    ] = 0,
    detach: Annotated[
        bool, typer.Option("--detach/--foreground", help="Leave the lab running, or keep it in this terminal.")
    ] = True,
) -> None:
    """Starts a lab and prints the line that points kubectl at it: `eval "$(specdecode lab up)"`."""
    with _errors_end_the_command():
        if detach:
            _announce(supervisor.detach(name, gpus, nodes))
            err.print(f"lab {name} is up; `specdecode lab down --name {name}` ends it")
        else:
            asyncio.run(supervisor.serve(name, gpus, nodes, _announce))
            err.print(f"lab {name} has ended")


def _announce(state: supervisor.LabState) -> None:
    print(f"export KUBECONFIG={state.kubeconfig}", flush=True)


@app.command()
def down(name: Name = "default") -> None:
    """Ends a lab with all that runs in it."""
    with _errors_end_the_command():
        supervisor.stop(name)
        err.print(f"lab {name} has ended")


@app.command()
def status() -> None:
    """Lists the labs that are up."""
    labs = supervisor.all_up()
    if not labs:
        err.print("no lab is up: `specdecode lab up` starts one")
        return
    table = Table("NAME", "GPUS", "NODES", "UP FOR", "PROCESS", "KUBECONFIG", box=None, pad_edge=False)
    for lab in labs:
        age = timedelta(seconds=int(time() - lab.since))
        table.add_row(lab.name, str(lab.gpus), str(lab.nodes or "process"), str(age), str(lab.pid), lab.kubeconfig)
    Console(soft_wrap=True).print(table)


@app.command(name="logs")
def show_logs(
    pod: Annotated[str, typer.Argument(help="The pod's name.")],
    name: Name = "default",
    namespace: Annotated[str, typer.Option("--namespace", "-n")] = "default",
    container: Annotated[str | None, typer.Option("--container", "-c", help="Needed where there are several.")] = None,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="The run before the last restart.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
) -> None:
    """Shows what a container has written, also after its pod is gone."""
    with _errors_end_the_command():
        if (state := supervisor.find(name)) is not None and state.nodes:
            raise LabError(f"lab {name} has real nodes: `kubectl logs --namespace {namespace} {pod}` shows it")
        found = logs.container_logs(paths.lab_folder(name), namespace, pod, container)
        if len(found) <= previous:
            raise LabError(f"the container of {pod} has no {'previous ' * previous}run yet")
        log = found[-2 if previous else -1]
    _print(log, follow)


def _print(log: Path, follow: bool) -> None:
    if follow:
        os.execvp("tail", ["tail", "-n", "+1", "-F", str(log)])
    sys.stdout.buffer.write(log.read_bytes())
