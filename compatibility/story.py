"""A little traffic whose figures are known, for a release's own loggers to count: what a reader must find on the page.

Two requests with prompts of 100 tokens and 20 decode steps of 30 ms. Where drafts are made, the first request gets 3 of
4 tokens accepted at every step; for the second one n-gram never finds a match: Model Runner V1 then drafts nothing, V2
drafts 4 tokens that are never accepted.
"""

from __future__ import annotations

K = 4
STEPS = 20
STEP_SECONDS = 0.03
TTFT_SECONDS = 0.2
QUEUE_SECONDS = 0.05
PROMPT = 100
RUNNING, WAITING = 2, 1
KV_USAGE = 0.25
BLOCKS, BLOCK_SIZE = 4096, 16


def tokens(speculates: bool) -> tuple[int, int]:
    """Tokens that each request gets at a decode step."""
    return (4, 1) if speculates else (1, 1)


def lengths(speculates: bool) -> tuple[int, int]:
    """Output tokens of each request."""
    first, second = tokens(speculates)
    return 1 + STEPS * first, 1 + STEPS * second


def tpots(speculates: bool) -> tuple[float, float]:
    """Seconds per output token of each request."""
    seconds = STEPS * STEP_SECONDS
    first, second = lengths(speculates)
    return seconds / (first - 1), seconds / (second - 1)


def drafts(padded: bool) -> tuple[tuple[int, int], ...]:
    """The drafts of a step: tokens drafted and accepted."""
    return ((K, 3), (K, 0)) if padded else ((K, 3),)
