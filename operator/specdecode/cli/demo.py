"""`specdecode demo`: the main job on this machine, in four minutes on simulated vLLM and eight on real vLLM."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from specdecode.cli.crd import find_repository
from specdecode.cli.status import configured, milliseconds, number
from specdecode.lab.demo import MANAGED, TITLES, Cast, Figures, Run, Verdict, figures, judge, play
from specdecode.lab.errors import LabError
from specdecode.lab.realvllm import installation
from specdecode.lab.simulated_cast import SimulatedCast
from specdecode.model.estimate import percent

RECENT = 6.0
"""Seconds that the live figures look back."""


class Vllm(StrEnum):
    """What the pods run."""

    AUTO = "auto"
    REAL = "real"
    SIM = "sim"


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the timeline and the figures.")] = Path("demo-output"),
    vllm: Annotated[
        Vllm, typer.Option(help="real: on this processor. sim: simulated. auto: real where it is installed or can be.")
    ] = Vllm.AUTO,
) -> None:
    """Runs the operator on a local control plane with vLLM pods, real or simulated, and shows what it saves.

    Exits with 1 when the loop did not do its job.
    """
    # A log is read in a wide window; a terminal says how wide it is.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    repository = find_repository(Path.cwd())
    if repository is None:
        console.print("specdecode demo: run it inside the repository: it installs the operator from its chart")
        raise typer.Exit(1)
    try:
        run = Run(_cast(vllm, console))
        asyncio.run(_shown(run, repository, console))
    except LabError as e:
        console.print(f"specdecode demo: {e}", style="red", markup=False)
        raise typer.Exit(1) from e
    verdict = judge(run)
    output.mkdir(parents=True, exist_ok=True)
    from specdecode.lab.timeline import draw  # matplotlib takes a second to import: not before it is needed

    draw(run, output / "timeline.png")
    (output / "summary.json").write_text(json.dumps(_as_json(verdict), indent=2) + "\n")
    console.print(_summary(verdict))
    console.print(f"\nThe timeline is {output / 'timeline.png'}, the figures {output / 'summary.json'}.")
    for complaint in verdict.complaints:
        console.print(f"[red]The demo failed:[/red] {complaint}")
    if verdict.complaints:
        raise typer.Exit(1)


def _cast(vllm: Vllm, console: Console) -> Cast:
    """Says what runs, and why; installs what that needs."""
    problem = installation.obstacle()
    if vllm is Vllm.SIM or (vllm is Vllm.AUTO and problem):
        why = f"real vLLM cannot run here: {problem}" if vllm is Vllm.AUTO else "as asked for"
        return _simulated(why, console)
    from specdecode.lab.realvllm.cast import RealCast  # the operator's image has no `openai`

    try:
        for step in installation.install():
            console.print(f"[dim]installing real vLLM: {step.title}[/dim]", soft_wrap=True)
    except LabError as e:
        if vllm is Vllm.REAL:
            raise
        console.print(str(e), soft_wrap=True, markup=False)
        return _simulated("real vLLM could not be installed, see above", console)
    why = "as asked for" if vllm is Vllm.REAL else "this machine can; `make demo VLLM=sim` simulates it"
    console.print(f"vLLM {installation.VERSION} is real, on this processor ({why})", soft_wrap=True)
    return RealCast(installation.find())


def _simulated(why: str, console: Console) -> Cast:
    console.print(f"vLLM is simulated ({why})", soft_wrap=True, markup=False)
    return SimulatedCast()


async def _shown(run: Run, repository: Path, console: Console) -> None:
    playing = asyncio.create_task(
        play(run, repository, lambda text: console.print(f"[dim]{text}[/dim]", soft_wrap=True))
    )
    while not run.started and not playing.done():
        await asyncio.sleep(0.1)
    if console.is_terminal:
        with Live(_view(run), console=console, refresh_per_second=2) as live:
            while not playing.done():
                live.update(_view(run))
                await asyncio.sleep(0.5)
    else:
        said = ""
        while not playing.done():
            # A log wants a line when something changes, not a picture, and not whenever a figure does.
            news, figures_of_it = _line(run)
            if news != said:
                console.print(f"{run.elapsed():5.0f} s  {news}{figures_of_it}", soft_wrap=True, highlight=False)
                said = news
            await asyncio.sleep(1)
    await playing


def _line(run: Run) -> tuple[str, str]:
    """The act, what runs, and what the operator does or why it does nothing; then what it says of the latter."""
    s = run.status
    news = f"{run.phase} | runs {configured(s.active)}"
    if s.rollout is not None:
        return f"{news} | {s.rollout.phase.value} {s.rollout.target.profile}: {s.rollout.message}", ""
    if s.recommendation is None:
        return news, ""
    return f"{news} | {s.recommendation.reason}", f" | {s.recommendation.message}"


def _view(run: Run) -> RenderableType:
    now = run.elapsed()
    clients = Table("CLIENTS MEASURE", "TPOT NOW", "TTFT NOW", "TPOT SO FAR", "REQUESTS", "FAILED", box=None)
    for name, title in TITLES.items():
        records = run.records[name]
        recent, all_ = figures([r for r in records if r.end > now - RECENT]), figures(records)
        style = "bold" if name == MANAGED else ""
        clients.add_row(
            title, _ms(recent.tpot), _ms(recent.ttft), _ms(all_.tpot), str(all_.requests), str(all_.failed), style=style
        )
    s = run.status
    o, r = s.observation, s.recommendation
    sees = (
        f"{number(o.batch_size)} requests per step, {number(o.tokens_per_second)} tokens/s a pod,"
        f" acceptance {number(o.acceptance_rate)}, TPOT {milliseconds(o.time_per_output_token)}"
        if o
        else "nothing yet"
    )
    operator = Table.grid(padding=(0, 2))
    operator.add_row("sees", sees)
    operator.add_row("thinks", f"{r.reason}: {r.message}" if r else "-")
    operator.add_row(
        "does", f"{s.rollout.phase.value} {s.rollout.target.profile}" if s.rollout else f"runs {configured(s.active)}"
    )
    return Group(
        f"[bold]{run.phase}[/bold]  {now:.0f} s",
        Panel(operator, title="the operator", title_align="left"),
        clients,
    )


def _summary(v: Verdict) -> RenderableType:
    changes = Table(
        "CHANGE",
        "WHY",
        "OUTCOME",
        "CANARY'S GAIN",
        "HOW IT ENDED",
        box=None,
        title="Changes made",
        title_justify="left",
    )
    for h in v.changes:
        changes.add_row(
            f"{h.source.profile} to {configured(h.target)}",
            h.reason,
            h.outcome.value,
            percent(h.gain) if h.gain else "-",
            h.message,
        )
    table = Table("", *TITLES.values(), box=None, title="Mean TPOT as clients measured it", title_justify="left")
    for phase, by_name in v.phases.items():
        table.add_row(phase, *(_ms(by_name[n].tpot) for n in TITLES))
    table.add_row("all", *(_ms(v.total[n].tpot) for n in TITLES), style="bold")
    table.add_row("P99", *(_ms(v.total[n].tpot_p99) for n in TITLES))
    table.add_row("TTFT", *(_ms(v.total[n].ttft) for n in TITLES))
    table.add_row("requests failed", *(f"{v.total[n].failed} of {v.total[n].requests}" for n in TITLES))
    return Group("", changes, "", table)


def _as_json(v: Verdict) -> dict[str, object]:
    def clean(f: Figures) -> dict[str, float | None]:
        return {k: None if isinstance(x, float) and math.isnan(x) else x for k, x in asdict(f).items()}

    return {
        "complaints": list(v.complaints),
        "changes": [h.model_dump(mode="json", by_alias=True, exclude_none=True) for h in v.changes],
        "total": {name: clean(f) for name, f in v.total.items()},
        "phases": {phase: {name: clean(f) for name, f in by.items()} for phase, by in v.phases.items()},
    }


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else milliseconds(seconds)
