"""`specdecode probe temperature`: acceptance by temperature, measured with one's own prompts."""

from __future__ import annotations

import asyncio
import random
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from specdecode.cli.cluster import Context, Kubeconfig, Namespace, fail, one
from specdecode.cli.cluster import run as run_with_cluster
from specdecode.cli.status import DASH, ranged, share
from specdecode.cluster.kube import Kube
from specdecode.cluster.scrape import Scraper
from specdecode.probe import job as jobs
from specdecode.probe.acceptance import AtTemperature, Plan
from specdecode.probe.prompts import Prompt, PromptsError, read_prompts
from specdecode.probe.sweep import ProbeError, Sweep, SweepResult, Target, target

app = typer.Typer(help="Measurements with requests of your own.", no_args_is_help=True)

REQUEST_SECONDS = 300.0
"""For one answer, at most."""
PICTURES = (".svg", ".png")
FLOOR = 0.5
"""`guards.acceptance.disableBelow`, by default."""


class Output(StrEnum):
    """How the figures are printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@app.callback()
def _group() -> None:
    """Measurements with requests of your own."""


@app.command()
def temperature(
    endpoint: Annotated[str, typer.Option(metavar="URL", help="OpenAI API of a server that speculates.")],
    prompts: Annotated[Path, typer.Option(metavar="FILE", help="Prompts: a text line each, or JSON lines (.jsonl).")],
    temperatures: Annotated[str, typer.Option(help="Comma-separated.")] = "0,0.2,0.4,0.6,0.8,1.0",
    requests: Annotated[int, typer.Option(min=2, help="Requests at each temperature.")] = 20,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=2, help="Length of an answer, at most.")] = 200,
    metrics: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Metrics page; again for each server behind the endpoint. Default: its own."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Default: the first that the endpoint names.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Send plain prompts as messages of a user.")] = False,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Of the endpoint.")] = None,
    output: Annotated[
        Output, typer.Option("-o", "--output", help="How to print the figures; yaml: the Job, uncreated.")
    ] = Output.TABLE,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draws them into a .svg or .png file.")] = None,
    job: Annotated[
        str | None, typer.Option(metavar="POLICY", help="Probe from a Job in the namespace of this policy.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Image of the Job. Default: the operator's in the cluster.")] = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Measures acceptance and tokens per step at several temperatures, from the change of the server's counters."""
    plan = _plan(temperatures, requests, concurrency, max_tokens)
    text, asked = _prompts(prompts, chat)
    if plot is not None and plot.suffix not in PICTURES:
        raise fail(f"--plot {plot}: name a file that ends in {' or '.join(PICTURES)}")
    if output is Output.YAML and job is None:
        raise fail("-o yaml prints the Job of --job POLICY")
    aim = target(endpoint, metrics or (), model, api_key)
    if job is None:
        found = _here(aim, plan, asked)
    else:
        if api_key:
            raise fail("an API key would stand in the Job for everybody to read: probe the servers' own port, without")
        asked_for = jobs.Request(aim, plan, prompts.name, text, chat)
        made = run_with_cluster(
            _in_cluster(asked_for, job, image, namespace, kubeconfig, context, only_print=output is Output.YAML)
        )
        if isinstance(made, list):
            typer.echo(yaml.safe_dump_all(made, sort_keys=False), nl=False)
            return
        found = made
    if output is Output.JSON:
        typer.echo(found.to_json())
    else:
        show(found, Console())
    if plot is not None:
        _draw(found, plot)


def _plan(temperatures: str, requests: int, concurrency: int, max_tokens: int) -> Plan:
    try:
        degrees = tuple(float(t) for t in temperatures.split(","))
    except ValueError:
        raise fail(f"--temperatures {temperatures}: numbers between commas are expected, such as 0,0.5,1") from None
    if wrong := [t for t in degrees if not 0 <= t <= 2]:
        raise fail(f"--temperatures: {wrong[0]:g} is not between 0 and 2")
    if len(set(degrees)) < len(degrees):
        raise fail(f"--temperatures {temperatures}: one is named twice")
    if requests < 2 * concurrency:
        raise fail(
            f"{requests} requests, {concurrency} at a time, are one block: nothing tells how sure its figures are;"
            f" --requests {2 * concurrency} or more"
        )
    return Plan(degrees, requests, concurrency, max_tokens)


def _prompts(file: Path, chat: bool) -> tuple[str, tuple[Prompt, ...]]:
    try:
        text = file.read_text(encoding="utf-8")
        return text, read_prompts(text, file.name, chat=chat)
    except PromptsError as e:
        raise fail(str(e)) from None
    except UnicodeDecodeError:
        raise fail(f"--prompts {file} is no text in UTF-8") from None
    except OSError as e:
        raise fail(f"--prompts {file}: {e.strerror}") from None


def _here(aim: Target, plan: Plan, prompts: tuple[Prompt, ...]) -> SweepResult:
    async def sweep() -> SweepResult:
        timeout = httpx.Timeout(REQUEST_SECONDS, connect=10.0)
        limits = httpx.Limits(max_connections=plan.concurrency)
        async with httpx.AsyncClient(timeout=timeout, limits=limits) as http, Scraper() as scraper:
            maker = Sweep(http, scraper, aim, time.monotonic, asyncio.sleep)
            with _progress() as progress:
                task = progress.add_task("requests", total=plan.total)
                # Always the same order: two sweeps of one server are then alike.
                return await maker.run(
                    plan, prompts, random.Random(0), lambda done: progress.update(task, completed=done)
                )

    try:
        return asyncio.run(sweep())
    except ProbeError as e:
        raise fail(str(e)) from None


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


async def _in_cluster(
    request: jobs.Request,
    policy: str,
    image: str | None,
    namespace: str | None,
    kubeconfig: str | None,
    context: str | None,
    *,
    only_print: bool,
) -> SweepResult | list[dict[str, Any]]:
    """The result of a Job, or what would be created."""
    home = (await one(kubeconfig, context, namespace, policy))["metadata"]["namespace"]
    async with await Kube.connect(kubeconfig, context) as kube:
        try:
            made = jobs.manifests(
                f"specdecode-probe-{int(time.time())}", home, image or await jobs.image(kube), request
            )
            if only_print:
                return list(made)
            typer.echo(f"Job {made[0]['metadata']['name']} in namespace {home}", err=True)
            return await jobs.run(kube, made, time.monotonic, asyncio.sleep)
        except ProbeError as e:
            raise fail(str(e)) from None


def show(result: SweepResult, console: Console) -> None:
    """The table."""
    if not console.is_terminal:
        console.width = 100
    version = f", vLLM {result.vllm_version}" if result.vllm_version else ""
    servers = f", {result.servers} servers" if result.servers > 1 else ""
    console.print(
        f"{result.model} at {result.endpoint}{version}{servers}: {result.prompts} prompts, answers of at most"
        f" {result.max_tokens} tokens, {result.concurrency} at a time",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("\nT", "\nACCEPTANCE", "ACCEPTED\nLENGTH", "TOKENS\nA STEP", "ACCEPTED\nBY POSITION"):
        table.add_column(heading)
    table.add_column("\nTOKENS", justify="right")
    for a in result.temperatures:
        table.add_row(
            f"{a.temperature:g}{' !' if a.disturbed else ''}",
            ranged(a.acceptance, share),
            ranged(a.accepted_length, share),
            ranged(a.tokens_per_step, share),
            " ".join(share(p) for p in a.per_position) or DASH,
            f"{a.tokens:,}",
        )
    console.print(table)
    console.print("in brackets: 90 % intervals", highlight=False)
    if (where := floor(result.temperatures)) is not None:
        console.print(f"Acceptance is surely below {FLOOR} from temperature {where:g} on.", highlight=False)
    for warning in result.warnings:
        console.print(f"Warning: {warning}.", style="yellow", highlight=False, markup=False)


def floor(found: list[AtTemperature]) -> float | None:
    """The lowest temperature from which acceptance is surely below the floor at which the operator turns drafts off."""
    start = None
    for a in found:
        below = a.acceptance is not None and a.acceptance.high < FLOOR
        start = (a.temperature if start is None else start) if below else None
    return start


def _draw(result: SweepResult, file: Path) -> None:
    try:
        from specdecode.cli.probe_plot import draw  # matplotlib takes a second to import: not before it is needed
    except ImportError:
        raise fail("a picture takes matplotlib: pip install 'specdecode[lab]'") from None
    try:
        draw(result, file)
    except OSError as e:
        raise fail(f"--plot {file}: {e.strerror}") from e
    typer.echo(f"\nThe picture is {file}.", err=True)
