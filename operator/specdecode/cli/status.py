"""`specdecode status` and `specdecode explain`: what runs, what is recommended, and why."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from specdecode.api.quantities import format_duration, format_minutes
from specdecode.api.v1alpha1 import (
    BandStatus,
    Configuration,
    HistoryEntry,
    Outcome,
    ProfileStatus,
    RolloutStatus,
    ServiceStatus,
    SpecDecodePolicySpec,
    SpecDecodePolicyStatus,
    TurningPointStatus,
)
from specdecode.cli.cluster import Context, Kubeconfig, Namespace, one, parsed, policies, run
from specdecode.cli.sketch import picture
from specdecode.model.estimate import Ranged, percent
from specdecode.policy.clock import seconds_of

DASH = "-"
EXACT = 600
"""Seconds of age from which those beyond the minute do not matter."""


def status(namespace: Namespace = None, kubeconfig: Kubeconfig = None, context: Context = None) -> None:
    """Shows every policy in one line: what runs, what is recommended, what is going on."""
    found = run(policies(kubeconfig, context, namespace))
    console = Console()
    if not console.is_terminal:
        console.width = 250  # in a pipe every policy is one line
    if not found:
        console.print(f"No policies in {f'namespace {namespace}' if namespace else 'any namespace'}.")
        return
    table = Table(
        "NAMESPACE", "NAME", "MODE", "ACTIVE", "RECOMMENDED", "GAIN", "ACCEPT", "BATCH", "TPOT", "STATE", box=None
    )
    for policy in found:
        table.add_row(policy["metadata"]["namespace"], policy["metadata"]["name"], *_line(*parsed(policy)))
    console.print(table)


def _line(spec: SpecDecodePolicySpec, s: SpecDecodePolicyStatus) -> list[RenderableType]:
    summary, seen = s.summary, s.observation
    return [
        "suspended" if spec.suspend else spec.mode.value,
        s.active_profile or DASH,
        s.recommendation.profile if s.recommendation else DASH,
        (summary and summary.gain) or DASH,
        (summary and summary.acceptance) or DASH,
        (summary and summary.batch_size) or DASH,
        milliseconds(seen.time_per_output_token if seen else None),
        _state(s),
    ]


def _state(s: SpecDecodePolicyStatus) -> Text:
    conditions = {c.type: c for c in s.conditions}
    if s.rollout is not None:
        return Text(f"{s.rollout.phase.value} {s.rollout.target.profile}", style="cyan")
    for type_, bad in (("Ready", "False"), ("Degraded", "True"), ("MetricsAvailable", "False")):
        if type_ in conditions and conditions[type_].status == bad:
            return Text(conditions[type_].reason, style="red")
    if "Recommended" in conditions:
        return Text(conditions["Recommended"].reason)
    return Text("not looked at yet", style="dim")


def explain(
    name: Annotated[str, typer.Argument(help="Name of the policy.")],
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draws predicted TPOT over load into a .svg or .png file.")
    ] = None,
) -> None:
    """Explains one policy: what the operator sees, what each profile costs, what it did and why, what comes next."""
    policy = run(one(kubeconfig, context, namespace, name))
    spec, s = parsed(policy)
    title = f"{policy['metadata']['namespace']}/{name}"
    console = Console()
    if not console.is_terminal:
        console.width = 100
    console.print(explanation(title, spec, s, datetime.now(UTC).timestamp()))
    if plot is not None:
        picture(policy, plot, kubeconfig, context)
        typer.echo(f"\nThe picture is {plot}.")


def explanation(title: str, spec: SpecDecodePolicySpec, s: SpecDecodePolicyStatus, now: float) -> Group:
    """The whole answer of `explain`."""
    parts: list[RenderableType] = [
        Text(f"{title}: {spec.target_ref.kind} {spec.target_ref.name}, mode {spec.mode.value}", style="bold")
    ]
    if not s.conditions:
        return Group(*parts, _indented("The operator has not looked at this policy yet. Is it running?"))
    parts += [_heading("Runs"), _indented(_runs(s))]
    if s.rollout is None:
        parts += [_heading("Decision"), _indented(_decision(s))]
    else:
        parts += [_heading("Change under way"), _indented(_change(s.rollout, now))]
    if s.rollout is None and s.recommendation is not None and s.recommendation.turning_points:
        parts += [_heading("It would change its mind"), _indented(_turning_points(s.recommendation.turning_points, s))]
    parts += [_heading("Seen"), _indented(_seen(spec, s, now))]
    if s.profiles:
        parts += [_heading(_profiles_title(s)), _indented(_profiles(s, now)), _indented(_notes(s))]
    problems = [c for c in s.conditions if _is_problem(c.type, c.status)]
    if problems:
        parts += [_heading("Problems"), *(_indented(f"{c.type}: {c.reason}. {c.message}") for c in problems)]
    if s.history:
        parts += [_heading("Changes made"), _indented(_history(s.history, now))]
    return Group(*parts)


def _is_problem(type_: str, status: str) -> bool:
    return (type_, status) in {
        ("Ready", "False"),
        ("MetricsAvailable", "False"),
        ("Degraded", "True"),
        ("MixedTraffic", "True"),
        ("MemoryUsable", "False"),
        ("EngineAsConfigured", "False"),
        ("LiveTuning", "False"),
    }


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _indented(content: RenderableType) -> Padding:
    # Messages quote command lines: what is in brackets there is no markup.
    return Padding(Text(content) if isinstance(content, str) else content, (0, 0, 0, 2))


def _runs(s: SpecDecodePolicyStatus) -> str:
    version = f" on vLLM {s.vllm_version}" if s.vllm_version else ""
    return f"{configured(s.active)}{version}"


def configured(c: Configuration | None) -> str:
    """A profile and its schedule in words."""
    if c is None:
        return "unknown"
    if c.disable_by_batch_size is not None:
        return f"{c.profile}, off from batch size {c.disable_by_batch_size}"
    ranges = ", ".join(f"K={r.k} for {r.start} to {r.end} requests" for r in c.schedule)
    return f"{c.profile} ({ranges})" if ranges else c.profile


def _decision(s: SpecDecodePolicyStatus) -> str:
    r = s.recommendation
    if r is None:
        reason = next((c for c in s.conditions if c.type == "Recommended"), None)
        return f"none. {reason.reason}: {reason.message}" if reason else "none"
    gain = f", expected gain {percent(r.gain)}" if r.gain else ""
    stays = s.active is not None and configured(r) == configured(s.active) and r.gain is None
    rule = f"{r.rule}, held back by {r.reason}" if r.rule not in (None, r.reason) else r.reason
    lines = [f"{'keep' if stays else 'run'} {configured(r)}{gain}", f"{rule}: {r.message}"]
    if r.payback is not None and r.load_lasts is not None:
        payback, lasts = (format_duration(t) for t in (r.payback, r.load_lasts))
        if payback not in r.message:
            lines.append(f"paid back after about {payback}; loads like this are expected to go on for about {lasts}")
    return "\n".join(lines)


def _turning_points(points: list[TurningPointStatus], s: SpecDecodePolicyStatus) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for p in points:
        table.add_row(_otherwise(p, s), _condition(p))
    return table


def _otherwise(p: TurningPointStatus, s: SpecDecodePolicyStatus) -> Text:
    recommended = s.recommendation is not None and s.recommendation.profile == p.profile
    match p.profile == s.active_profile, recommended:
        case True, True:
            return Text(f"run {p.profile} with another schedule")
        case True, False:
            return Text(f"stay with {p.profile}")
        case False, True:
            return Text(f"run {p.profile} outright")
        case _:
            return Text(f"run {p.profile}")


def _condition(p: TurningPointStatus) -> Text:
    move = "rose above" if p.direction == "Above" else "fell below"
    match p.quantity:
        case "Acceptance":
            return Text(f"if acceptance of {p.of} {move} {ranged(p.at, share)}; now {ranged(p.now, share)}")
        case "Load":
            return Text(f"if the load {move} {ranged(p.at, number)} tokens/s per pod; now {number(p.now.value)}")
        case _:
            at, now = (format_minutes(t) for t in (p.at.value, p.now.value))
            return Text(f"if loads like this were to go on for {at}; {now} is expected")


def _change(r: RolloutStatus, now: float) -> str:
    phase, whole = (format_duration(max(0, round(now - seconds_of(t)))) for t in (r.phase_started_at, r.started_at))
    gain = f"\ncanary's gain {percent(r.gain)}" if r.gain else ""
    return (
        f"{configured(r.source)} to {configured(r.target)}, {r.phase.value} for {phase}, begun {whole} ago ({r.reason})"
        f"\n{r.message}{gain}"
    )


def _seen(spec: SpecDecodePolicySpec, s: SpecDecodePolicyStatus, now: float) -> str:
    o = s.observation
    if o is None:
        return "nothing yet"
    age = format_duration(max(0, round(now - seconds_of(o.time))))
    lines = [
        f"{o.pods} pods, {number(o.tokens_per_second)} tokens/s each, {number(o.batch_size)} requests per step,"
        f" {number(o.waiting)} waiting, KV cache {number(o.kv_cache_usage, percent=True)} full",
        f"TPOT {milliseconds(o.time_per_output_token)}, TTFT {milliseconds(o.time_to_first_token)},"
        f" acceptance {number(o.acceptance_rate)}, accepted length {number(o.accepted_length)}",
        f"written {age} ago; looks every {format_duration(spec.metrics.interval)},"
        f" {format_duration(spec.metrics.window)} back",
    ]
    return "\n".join(lines)


def _profiles_title(s: SpecDecodePolicyStatus) -> str:
    load = s.observation.tokens_per_second if s.observation else None
    return f"Profiles at {number(load)} tokens/s per pod" if load else "Profiles"


def _profiles(s: SpecDecodePolicyStatus, now: float) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("\n PROFILE", overflow="fold")
    for header in _COLUMNS:
        table.add_column(header)  # in a narrow terminal an interval goes below its value
    wanted = s.recommendation.profile if s.recommendation else None
    for p in s.profiles:
        mark = "*" if p.name == s.active_profile else ">" if p.name == wanted else " "
        table.add_row(f"{mark}{p.name}", *_figures(p), _age(p.measured_at, now))
    return table


_COLUMNS = (
    "PREDICTED\nTPOT, ms",
    "\nHEADROOM",
    "PAYS AT\nBATCH",
    "MEASURED\nTPOT, ms",
    "TOKENS\nA STEP",
    "ACCEPTANCE\nP10  P50  P90",
    "\nAGO",
)


def _figures(p: ProfileStatus) -> list[str]:
    a = p.acceptance
    return [
        ranged(p.predicted, lambda seconds: digits(seconds * 1e3)),
        ranged(p.headroom, lambda times: f"{times:.1f}", "x"),
        _band(p.band),
        DASH if p.time_per_output_token is None else f"{p.time_per_output_token * 1e3:.1f}",
        DASH if p.tokens_per_step is None else f"{p.tokens_per_step:.2f}",
        f"{a.p10:.2f} {a.p50:.2f} {a.p90:.2f}" if a else DASH,
    ]


def _band(band: BandStatus | None) -> str:
    if band is None:
        return DASH
    if not band.pays:
        return "none"
    if band.end is None:
        return "all" if band.start in (None, 1) else f"from {band.start}"
    return f"{band.start} to {band.end}"


def _notes(s: SpecDecodePolicyStatus) -> str:
    """What the table does not say by itself."""
    forms = [
        Configuration(profile=p.name, schedule=p.schedule, disable_by_batch_size=p.disable_by_batch_size)
        for p in s.profiles
    ]
    scheduled = [configured(f) for f in forms if f.schedule or f.disable_by_batch_size]
    lines = ["* runs, > would run; in brackets: 90 % intervals"]
    if scheduled:
        lines.append(f"predicted as {'; '.join(scheduled)}")
    served = [f"{p.name} {_served(p.in_service)}" for p in s.profiles if p.in_service is not None]
    if served:
        lines.append(f"users got, while it ran: {'; '.join(served)}")
    return "\n".join(lines)


def _served(service: ServiceStatus) -> str:
    lasted = format_minutes(max(60, service.seconds))
    tpot = milliseconds(service.time_per_output_token)
    return f"{tpot} a token at {number(service.tokens_per_second)} tokens/s per pod, over {lasted}"


def _history(entries: list[HistoryEntry], now: float) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for h in entries:
        style = "green" if h.outcome is Outcome.SUCCESSFUL else "yellow"
        gain = f", canary's gain {percent(h.gain)}" if h.gain else ""
        told = Text.assemble(
            f"{h.source.profile} to {configured(h.target)}: ",
            (h.outcome.value, style),
            f"{gain}\n{h.reason}; {h.message}",
        )
        table.add_row(f"{_age(h.finished_at, now)} ago", told)
    return table


def _age(time: str | None, now: float) -> str:
    if time is None:
        return DASH
    age = max(0, round(now - seconds_of(time)))
    return format_duration(age) if age < EXACT else format_minutes(age)


def milliseconds(seconds: float | None) -> str:
    """`18.3 ms`."""
    return DASH if seconds is None else f"{seconds * 1e3:.1f} ms"


def number(value: float | None, *, percent: bool = False) -> str:
    """Three digits, or a percentage."""
    if value is None:
        return DASH
    if percent:
        return f"{value:.0%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def digits(value: float) -> str:
    """Three digits, zeros included: `9.80`, `25.0`, `153`."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def share(value: float) -> str:
    """`0.70`."""
    return f"{value:.2f}"


def ranged(e: Ranged | None, form: Callable[[float], str], unit: str = "") -> str:
    """`18.3 (17.1-19.6)`, of what is never negative."""
    return DASH if e is None else f"{form(e.value)}{unit} ({form(e.low)}-{form(e.high)})"
