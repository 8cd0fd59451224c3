"""What the operator reads from a release's pages, against the traffic that its loggers counted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from compatibility import story
from specdecode.model.measure import Measurement, Unmeasured, measure
from specdecode.vllm.metrics import read_page

SECONDS = 1.0
"""Between the two pages; the traffic has no clock of its own."""


def observation(before: str, after: str) -> Measurement:
    """What two pages say. Raises ValueError for pages that cannot be measured."""
    measured = measure(read_page(before.encode()), read_page(after.encode()), SECONDS)
    if isinstance(measured, Unmeasured):
        raise ValueError(str(measured))
    return measured


def expected(speculates: bool, padded: bool) -> Mapping[str, float]:
    """The true figures of the traffic, by the field of `Measurement`."""
    lengths = story.lengths(speculates)
    figures = {
        "batch_size": story.RUNNING,
        "waiting": story.WAITING,
        "kv_usage": story.KV_USAGE,
        "kv_cache_tokens": story.BLOCKS * story.BLOCK_SIZE,
        "preemptions": 0,
        "prompt_tokens_per_second": 2 * story.PROMPT / SECONDS,
        "generation_tokens_per_second": sum(lengths) / SECONDS,
        "tokens_per_step": sum(story.tokens(speculates)) / 2,
        "step_seconds": story.STEP_SECONDS,
        "tpot_seconds": sum(story.tpots(speculates)) / 2,
        "ttft_seconds": story.TTFT_SECONDS,
        "queue_seconds": story.QUEUE_SECONDS,
        "prompt_length": story.PROMPT,
        "output_length": sum(lengths) / 2,
        "finished": 2,
        "request_steps": 2 * story.STEPS,
        # A page of V0 has no count of steps before 0.7.
        "steps": story.STEPS + 1,
    }
    if speculates:
        made = story.drafts(padded)
        drafted, accepted = sum(k for k, _ in made), sum(a for _, a in made)
        figures |= {
            "acceptance_rate": accepted / drafted,
            "accepted_length": 1 + accepted / len(made),
            "drafts": story.STEPS * len(made),
            "draft_tokens": story.STEPS * drafted,
            "accepted_tokens": story.STEPS * accepted,
        }
    return figures


def observed(before: str, after: str, speculates: bool, padded: bool) -> dict[str, str]:
    """Each figure: "right", "missing", or what was read instead."""
    measured = observation(before, after)
    answer = {}
    for name, true in expected(speculates, padded).items():
        value = getattr(measured, name)
        right = value is not None and math.isclose(value, true, rel_tol=1e-9)
        answer[name] = "missing" if value is None else "right" if right else f"{value:g}"
    return answer


def families(page: str) -> list[str]:
    """The families of vLLM's on a page, with their kinds."""
    return sorted(" ".join(found) for found in re.findall(r"^# TYPE (vllm:\S+) (\w+)$", page, re.MULTILINE))
