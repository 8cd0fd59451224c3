"""`specdecode status` and `specdecode explain`: what runs, what is recommended, and why."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from specdecode.api.quantities import format_duration
from specdecode.api.v1alpha1 import (
    Configuration,
    HistoryEntry,
    Outcome,
    ProfileStatus,
    RolloutStatus,
    SpecDecodePolicySpec,
    SpecDecodePolicyStatus,
)
from specdecode.cli.cluster import Context, Kubeconfig, Namespace, one, parsed, policies, run
from specdecode.model.estimate import percent
from specdecode.policy.clock import seconds_of

DASH = "-"


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
) -> None:
    """Explains one policy: what the operator sees, what each profile costs, what it did and why, what comes next."""
    policy = run(one(kubeconfig, context, namespace, name))
    spec, s = parsed(policy)
    Console().print(explanation(f"{policy['metadata']['namespace']}/{name}", spec, s, datetime.now(UTC).timestamp()))


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
    parts += [_heading("Seen"), _indented(_seen(spec, s, now)), _heading("Profiles"), _indented(_profiles(s, now))]
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
    return f"run {configured(r)}{gain}\n{r.reason}: {r.message}"


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


def _profiles(s: SpecDecodePolicyStatus, now: float) -> Table:
    headers = (
        "PROFILE",
        "PREDICTED MS",
        "HEADROOM",
        "BREAK-EVEN",
        "MEASURED MS",
        "TOK/STEP",
        "ACCEPT P10/50/90",
        "AGE",
    )
    table = Table(*headers, box=None, padding=(0, 1, 0, 0))
    for p in s.profiles:
        mark = "*" if s.active_profile == p.name else " "
        table.add_row(f"{mark}{p.name}", *_figures(p), _age(p.measured_at, now))
    return table


def _figures(p: ProfileStatus) -> list[str]:
    a, e = p.acceptance, p.predicted
    return [
        f"{e.value * 1e3:.1f} ({e.low * 1e3:.1f}-{e.high * 1e3:.1f})" if e else DASH,
        f"{p.headroom:.1f}x" if p.headroom is not None else DASH,
        number(p.break_even_batch_size),
        DASH if p.time_per_output_token is None else f"{p.time_per_output_token * 1e3:.1f}",
        number(p.tokens_per_step),
        f"{a.p10:.2f} {a.p50:.2f} {a.p90:.2f}" if a else DASH,
    ]


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
    return DASH if time is None else format_duration(max(0, round(now - seconds_of(time))))


def milliseconds(seconds: float | None) -> str:
    """`18.3 ms`."""
    return DASH if seconds is None else f"{seconds * 1e3:.1f} ms"


def number(value: float | None, *, percent: bool = False) -> str:
    """Three digits, or a percentage."""
    if value is None:
        return DASH
    return f"{value:.0%}" if percent else f"{value:.3g}"
