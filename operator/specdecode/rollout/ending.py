"""How changes end: one word for each way, in the history, Events and metrics."""

from __future__ import annotations

from enum import StrEnum


class Ending(StrEnum):
    """The reason of an outcome."""

    # Successful
    PROMOTED = "Promoted"
    # Failed: it was measured, or seen, to be bad
    CANARY_CRASH_LOOPING = "CanaryCrashLooping"
    CANARY_NOT_READY = "CanaryNotReady"
    NOT_IN_FORCE = "NotInForce"
    REQUESTS_FAIL = "RequestsFail"
    SLOWER = "Slower"
    TAIL_WORSE = "TailWorse"
    GAIN_TOO_SMALL = "GainTooSmall"
    CRASH_LOOPING = "CrashLooping"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    # Inconclusive: it was measured, and does not tell
    TOO_FEW_REQUESTS = "TooFewRequests"
    UNEQUAL_LOAD = "UnequalLoad"
    NOT_SURE = "NotSure"
    POD_MISSED = "PodMissed"
    # Error: it could not be measured
    NO_CAPACITY = "NoCapacity"
    NOT_MEASURED = "NotMeasured"
    ANALYSIS_OVERDUE = "AnalysisOverdue"
    POLICY_CHANGED = "PolicyChanged"
    SUPERSEDED = "Superseded"
