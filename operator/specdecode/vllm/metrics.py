"""Reads the `/metrics` page of a vLLM server: one pass over the bytes that picks the families the operator uses.

Names and labels of vLLM 0.8 to 0.33 (vllm/v1/metrics/loggers.py, vllm/v1/spec_decode/metrics.py), in the Prometheus
text format 0.0.4. Where a family was renamed, the new name wins. The counters of the V0 engine's speculation are not
read: V0 adds the running total at each log interval, so they grow quadratically; its acceptance gauge is sound.

The text format has no end mark, so a page cut short by a dying server is told by what it lacks: see `read_page`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from operator import le
from types import MappingProxyType
from typing import Any, NamedTuple

from specdecode.vllm.exposition import PageError as PageError
from specdecode.vllm.exposition import Sample, check_end, parse_series, pick
from specdecode.vllm.figures import COUNTERS
from specdecode.vllm.figures import EngineSample as EngineSample
from specdecode.vllm.figures import Histogram as Histogram
from specdecode.vllm.figures import Page as Page
from specdecode.vllm.live_schedule import METRIC, read_report


class _Kind(NamedTuple):
    """How the samples of one name are read."""

    field: str
    label: str = ""
    """The label that tells the samples of one field and engine apart."""
    part: str = ""
    """bucket, sum or count of a histogram."""
    rank: int = 0
    """Where a page has a field under several names, the highest rank wins: the newest name."""


_HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": ("ttft", 0),
    "vllm:time_per_output_token_seconds": ("inter_token", 0),  # the old name; per step, too
    "vllm:inter_token_latency_seconds": ("inter_token", 1),  # since 0.10.2
    "vllm:request_time_per_output_token_seconds": ("tpot", 0),  # since 0.11
    "vllm:iteration_tokens_total": ("iteration_tokens", 0),
    "vllm:request_queue_time_seconds": ("queue_time", 0),
    "vllm:request_prompt_tokens": ("prompt_length", 0),
    "vllm:request_generation_tokens": ("output_length", 0),
}
_KINDS: dict[bytes, _Kind] = {
    b"vllm:num_requests_running": _Kind("running"),
    b"vllm:num_requests_waiting": _Kind("waiting"),
    b"vllm:gpu_cache_usage_perc": _Kind("kv_usage"),  # the old name
    b"vllm:kv_cache_usage_perc": _Kind("kv_usage", rank=1),  # since 0.9.2
    b"vllm:num_preemptions_total": _Kind("preemptions"),
    b"vllm:prompt_tokens_total": _Kind("prompt_tokens"),
    b"vllm:generation_tokens_total": _Kind("generation_tokens"),
    b"vllm:request_success_total": _Kind("requests", "finished_reason"),
    b"vllm:spec_decode_num_drafts_total": _Kind("drafts"),
    b"vllm:spec_decode_num_draft_tokens_total": _Kind("draft_tokens"),
    b"vllm:spec_decode_num_accepted_tokens_total": _Kind("accepted_tokens"),
    b"vllm:spec_decode_num_accepted_tokens_per_pos_total": _Kind("accepted_per_position", "position"),
    b"vllm:spec_decode_draft_acceptance_rate": _Kind("draft_acceptance_gauge"),
    b"vllm:spec_decode_num_emitted_tokens_total": _Kind("emitted_tokens"),  # read only because it gives V0 away
    **{
        f"{name}_{part}".encode(): _Kind(into, "le" if part == "bucket" else "", part, rank)
        for name, (into, rank) in _HISTOGRAMS.items()
        for part in ("bucket", "sum", "count")
    },
    # Samples of the page rather than of a model's engine.
    b"vllm:cache_config_info": _Kind("cache_config"),
    METRIC.encode(): _Kind("live_schedule"),
    b"http_requests_total": _Kind("http_requests"),
    b"process_start_time_seconds": _Kind("process_start"),
}
_GAUGES = ("running", "waiting", "kv_usage", "draft_acceptance_gauge")
_DRAFT_COUNTERS = ("drafts", "draft_tokens", "accepted_tokens")
_GENERATING = ("/completions", "/responses", "/messages", "/generate")
"""Ends of the HTTP paths that generate text."""
_NOTHING: Mapping[Any, float] = MappingProxyType({})

_Values = dict[_Kind, dict[Any, float]]
"""The values of one engine by kind, and by what tells the samples of a kind apart: a bound, a position, a reason, …"""


def read_page(text: bytes) -> Page:
    """The figures on a page.

    A page is taken for whole if it ends with a line feed and not after a HELP line; if every histogram has its buckets
    up to +Inf, a count equal to that bucket, and a sum; if drafted and accepted tokens come together; and if the last
    family, should it be one that is read here, is there for every engine of its model and, if it is the accepted
    tokens by position, adds up. A cut exactly between two families cannot be seen: such a page says the truth about
    the families that it has, and a series that vanishes from one page to the next makes the pair unmeasurable.

    Raises:
        PageError: the text is no page of vLLM, was cut short, holds a malformed sample in a family that is used here,
            or gives one series two values. Families that are not used are skipped unread.
    """
    samples, ends_in_ours = pick(text, _KINDS)
    page: dict[str, dict[Any, float]] = {}
    engines: dict[tuple[str, str], _Values] = defaultdict(lambda: defaultdict(dict))
    for series, value, line in samples:
        try:
            engine, kind, detail = _slot(series)
        except ValueError as error:
            raise PageError(f"line {line}: {_name(series)}: {error}") from None
        of_kind = engines[engine][kind] if engine else page.setdefault(kind.field, {})
        known = of_kind.setdefault(detail, value)
        if known != value and not (math.isnan(known) and math.isnan(value)):
            raise PageError(f"line {line}: {_name(series)} has two values, {known:g} and {value:g}")
    if not engines:
        raise PageError(_not_vllm(text))
    check_end(text)
    cache_tokens = dict(page.get("cache_config", {}).keys())  # the details are pairs of engine and size
    read = tuple(_engine(key, engines[key], cache_tokens) for key in sorted(engines))
    if ends_in_ours:
        _check_last_family(samples[-1], engines, read)
    return Page(
        engines=read,
        process_start=_finite(page.get("process_start", {}).get("")),
        schedule=next(iter(page.get("live_schedule", _NOTHING)), None),
        http_requests={
            (path, status): count
            for (path, method, status), count in page.get("http_requests", {}).items()
            if method == "POST" and path.endswith(_GENERATING) and math.isfinite(count)
        },
    )


@lru_cache(maxsize=16_384)  # a server repeats its series on every page, and the pods of a workload share them
def _slot(series: bytes) -> tuple[tuple[str, str] | None, _Kind, Any]:
    """Engine (none for a sample of the page), kind, and what tells the samples of the kind apart."""
    name, labels = parse_series(series)
    kind = _KINDS[name]
    if kind.field == "process_start":
        return None, kind, ""
    if kind.field == "live_schedule":
        return None, kind, read_report(labels)
    if kind.field == "http_requests":
        return None, kind, (labels.get("handler", ""), labels.get("method", "POST"), labels.get("status", ""))
    if kind.field == "cache_config":
        return None, kind, (labels.get("engine"), _cache_tokens(labels))
    detail: Any = ""
    if kind.label:
        if kind.label not in labels:
            raise ValueError(f"the label {kind.label} is missing")
        detail = _DETAIL.get(kind.label, str)(labels[kind.label])
    return (labels.get("model_name", ""), labels.get("engine", "0")), kind, detail


_DETAIL: Mapping[str, Callable[[str], Any]] = {"le": float, "position": int}


def _cache_tokens(labels: Mapping[str, str]) -> float | None:
    """Tokens that the KV cache holds: vLLM's own figure (hybrid models share blocks), else blocks times their size."""
    if (size := labels.get("kv_cache_size_tokens", "")).isdecimal():
        return float(size)
    blocks, block_size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
    return float(blocks) * float(block_size) if blocks.isdecimal() and block_size.isdecimal() else None


def _engine(key: tuple[str, str], values: _Values, cache_tokens: Mapping[str | None, float | None]) -> EngineSample:
    model_name, engine = key
    plain: dict[str, Mapping[Any, float]] = {}
    parts: dict[tuple[str, int], dict[str, Mapping[Any, float]]] = defaultdict(dict)
    for kind in sorted(values, key=lambda kind: kind.rank):
        if kind.part:
            parts[kind.field, kind.rank][kind.part] = values[kind]
        else:
            plain[kind.field] = values[kind]
    if plain.keys() & {"draft_acceptance_gauge", "emitted_tokens"}:  # V0, whose counters cannot be used
        plain = {name: plain[name] for name in plain.keys() - {*_DRAFT_COUNTERS, "accepted_per_position"}}
    where = f"of model {model_name!r}, engine {engine}"
    drafting = plain.keys() & {*_DRAFT_COUNTERS, "accepted_per_position"}
    if drafting and (missing := {"draft_tokens", "accepted_tokens"} - drafting):
        raise PageError(f"half-written: {', '.join(sorted(drafting))} without {', '.join(sorted(missing))} {where}")
    figures: dict[str, Any] = {name: _finite(plain[name][""]) for name in _GAUGES if name in plain}
    figures |= {name: _counted(plain[name][""]) for name in COUNTERS if name in plain}
    figures |= {name: _histogram(name, of, where) for (name, _), of in parts.items()}
    return EngineSample(
        model_name=model_name,
        engine=engine,
        kv_cache_tokens=cache_tokens.get(engine, cache_tokens.get(None)),
        requests={reason: n for reason, n in plain.get("requests", _NOTHING).items() if _counted(n) is not None},
        accepted_per_position=_by_position(plain.get("accepted_per_position", _NOTHING), where),
        **figures,
    )


def _histogram(name: str, parts: Mapping[str, Mapping[Any, float]], where: str) -> Histogram | None:
    """None when its sum is not a finite number (an observation was not)."""
    if missing := {"bucket", "sum", "count"} - parts.keys():
        raise PageError(f"half-written: {name} {where} has no {', no '.join(sorted(missing))}")
    bounds, counts = zip(*sorted(parts["bucket"].items()), strict=True)
    count, total = parts["count"][""], parts["sum"][""]
    if bounds[-1] != math.inf:
        raise PageError(f"half-written: {name} {where} has no +Inf bucket")
    if counts[-1] != count:
        raise PageError(f"{name} {where} contradicts itself: {count:g} observations, {counts[-1]:g} in its buckets")
    if not (counts[0] >= 0 and math.isfinite(count) and all(map(le, counts, counts[1:]))):
        raise PageError(f"{name} {where} contradicts itself: its buckets do not rise")
    return Histogram(_one(bounds), counts, total, count) if math.isfinite(total) else None


@lru_cache(maxsize=256)
def _one(bounds: tuple[float, ...]) -> tuple[float, ...]:
    """The bounds of a family are one object on all pages: thousands of pages are kept, and compared."""
    return bounds


def _by_position(counts: Mapping[int, float], where: str) -> tuple[float, ...]:
    if counts.keys() != set(range(len(counts))):
        raise PageError(f"accepted tokens by position {where} skip a position: {sorted(counts)}")
    ordered = tuple(counts[i] for i in range(len(counts)))
    return ordered if all(_counted(n) is not None for n in ordered) else ()


def _check_last_family(last: Sample, engines: Mapping[tuple[str, str], _Values], read: Iterable[EngineSample]) -> None:
    """Raises PageError when the page stops in the middle of a family: engines or positions are still to come."""
    series, *_ = last
    key, kind, _ = _slot(series)
    if key is None:
        return
    for sample in read:
        where = f"at {_name(series)}, model {sample.model_name!r}, engine {sample.engine}"
        if sample.model_name == key[0] and kind not in engines[sample.model_name, sample.engine]:
            raise PageError(f"half-written: it stops {where}")
        positions, accepted = sample.accepted_per_position, sample.accepted_tokens
        if kind.field == "accepted_per_position" and positions and sum(positions) != accepted:
            raise PageError(
                f"half-written: it stops {where}, where positions add up to {sum(positions):g} of {accepted} tokens"
            )


def _name(series: bytes) -> str:
    return series.partition(b"{")[0].strip().decode()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _counted(value: float) -> float | None:
    return value if math.isfinite(value) and value >= 0 else None


def _not_vllm(text: bytes) -> str:
    start = text.lstrip()[:60]
    if not start:
        return "the page is empty"
    if start.startswith((b"<", b"{")):
        return f"no metrics page but {start.decode(errors='replace')!r}…: check the port and the path"
    return "no vLLM metrics on the page: another server's port, or vLLM started with --disable-log-stats"
