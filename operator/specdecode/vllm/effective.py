"""What an engine really runs, against what its arguments say. vLLM drops and ignores some of them without a word.

Seen on the metrics page (the speculative families exist where vLLM has a speculative configuration, one position per
token of K: v1/spec_decode/metrics.py), in `/server_info` where the server has its development endpoints on, and in the
line in which an engine logs its configuration (v1/engine/core.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from specdecode.vllm.capabilities import Capabilities
from specdecode.vllm.metrics import Page
from specdecode.vllm.speculation import BatchRange, Speculation
from specdecode.vllm.version import Version


class Mismatch(StrEnum):
    """How an engine may differ from its arguments: reasons of the condition EngineAsConfigured."""

    SPECULATES_UNASKED = "SpeculatesUnasked"
    DOES_NOT_SPECULATE = "DoesNotSpeculate"
    OTHER_METHOD = "OtherMethod"
    OTHER_NUMBER_OF_TOKENS = "OtherNumberOfTokens"
    THRESHOLD_IGNORED = "ThresholdIgnored"
    SCHEDULE_DROPPED = "ScheduleDropped"


@dataclass(frozen=True)
class Disagreement:
    """One difference, and what to do about it."""

    reason: Mismatch
    message: str


@dataclass(frozen=True)
class Told:
    """What an engine itself says of its speculative configuration."""

    method: str | None
    """vLLM's name; None: no speculation."""
    num_speculative_tokens: int | None = None
    schedule: tuple[BatchRange, ...] | None = None
    """K by batch size, () where there is none; None: it does not say."""


_CONFIG = re.compile(r"\bspeculative_config=(None|SpeculativeConfig\(([^()]*)\))")
_METHOD = re.compile(r"\bmethod='([\w-]+)'")
_TOKENS = re.compile(r"\bnum_spec_tokens=(\d+)")


def read_text(text: str) -> Told | None:
    """What `speculative_config=…` in a log, or in the text of `/server_info`, says; None: it is not there."""
    found = _CONFIG.search(text)
    if found is None:
        return None
    if found[1] == "None":
        return Told(None)
    method, tokens = _METHOD.search(found[2]), _TOKENS.search(found[2])
    return Told(method[1] if method else None, int(tokens[1]) if tokens else None) if method else None


def read_server_info(body: bytes) -> Told | None:
    """What `/server_info?config_format=json` says; None: nothing about speculation that can be read."""
    try:
        config = json.loads(body)["vllm_config"]
        if isinstance(config, str):
            return read_text(config)
        speculative: Any = config["speculative_config"]
        if speculative is None:
            return Told(None)
        rows = speculative.get("num_speculative_tokens_per_batch_size") or ()
        schedule = tuple(BatchRange(int(a), int(b), int(k)) for a, b, k in rows)
        return Told(str(speculative["method"]), int(speculative["num_speculative_tokens"]), schedule)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def shows_drafts(page: Page) -> bool:
    """Whether there are series of speculation."""
    return any(e.draft_tokens is not None or e.draft_acceptance_gauge is not None for e in page.engines)


def shown_positions(page: Page) -> set[int]:
    """How many tokens engines draft, one position each; empty where none shows positions."""
    return {len(e.accepted_per_position) for e in page.engines} - {0}


def disagreements(
    speculation: Speculation | None,
    can: Capabilities,
    data_parallel_size: int | None,
    page: Page | None,
    told: Told | None,
) -> Iterator[Disagreement]:
    """How one engine differs from its arguments, the gravest first. `page` and `told` as far as they are known."""
    yield from _by_evidence(speculation, can, page, told)
    if speculation is None:
        return
    threshold = speculation.extra.get("disable_by_batch_size")
    if threshold is not None:
        way_out = "set K by batch size (batchSizeTuning.mode: Auto) or take it out"
        yield Disagreement(
            Mismatch.THRESHOLD_IGNORED,
            f"disable_by_batch_size={threshold} does nothing: vLLM {can.version} accepts it and ignores it;"
            f" {way_out if can.schedule else 'take it out'}",
        )
    if speculation.schedule and told is not None and told.method is not None and told.schedule == ():
        yield Disagreement(Mismatch.SCHEDULE_DROPPED, "the engine tells that it has no schedule of K by batch size")
    elif speculation.schedule and (why := _drops_schedule(speculation, can, data_parallel_size)):
        yield Disagreement(Mismatch.SCHEDULE_DROPPED, f"vLLM {can.version} drops K by batch size {why}; take it out")


def _drops_schedule(speculation: Speculation, can: Capabilities, data_parallel_size: int | None) -> str | None:
    if can.schedule_dropped_with_data_parallel and (data_parallel_size or 1) > 1:
        return f"with data parallelism (--data-parallel-size {data_parallel_size})"
    method = speculation.vllm_method
    return f"for the method {method}" if method and not can.schedule_method(method) else None


def _by_evidence(
    speculation: Speculation | None, can: Capabilities, page: Page | None, told: Told | None
) -> Iterator[Disagreement]:
    speculates = _speculates(page, can, told)
    if speculation is None:
        if speculates:
            yield Disagreement(
                Mismatch.SPECULATES_UNASKED,
                "the engine speculates, though no argument asks for it: the checkpoint brings a configuration of its"
                " own (speculators format), or a --config file does; write --speculative-config, so that it can be"
                " changed",
            )
        return
    if speculates is False:
        yield Disagreement(
            Mismatch.DOES_NOT_SPECULATE, "the arguments ask for speculation, and the engine does none: see its log"
        )
        return
    asked, method = speculation.num_speculative_tokens, speculation.vllm_method
    if told is not None and told.method is not None and method is not None and told.method != method:
        yield Disagreement(Mismatch.OTHER_METHOD, f"the engine runs the method {told.method}, not {method}")
    positions = shown_positions(page) if page else set()
    seen = told.num_speculative_tokens if told else next(iter(positions), None)
    if asked is not None and seen is not None and seen != asked:
        yield Disagreement(Mismatch.OTHER_NUMBER_OF_TOKENS, f"the engine drafts {seen} tokens a step, not {asked}")


def _speculates(page: Page | None, can: Capabilities, told: Told | None) -> bool | None:
    """None: it cannot be seen."""
    if told is not None:
        return told.method is not None
    if page is None:
        return None
    if shows_drafts(page):
        return True
    # The V0 engine shows them once it has drafted; V1 has them from 0.8.3.
    generated = any(e.generation_tokens for e in page.engines)
    return False if generated and can.version >= _COUNTED else None


_COUNTED = Version(0, 8, 3)
