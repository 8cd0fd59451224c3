"""What a decision says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from specdecode.model.cost import Option
from specdecode.model.estimate import Estimate


class Reason(StrEnum):
    """Why the operator does what it does: in status, Events, metrics and logs. One gate, one reason."""

    # May we judge?
    SUSPENDED = "Suspended"
    WORKLOAD_MISSING = "WorkloadMissing"
    NOT_MANAGEABLE = "NotManageable"
    FIELD_CONTESTED = "FieldContested"
    CHANGE_IN_PROGRESS = "ChangeInProgress"
    WORKLOAD_ROLLING = "WorkloadRolling"
    METRICS_MISSING = "MetricsMissing"
    METRICS_STALE = "MetricsStale"
    IDLE = "Idle"
    TOO_FEW_SAMPLES = "TooFewSamples"
    # Guards
    OVERLOADED = "Overloaded"
    MANIFEST_WAS_FASTER = "ManifestWasFaster"
    ACCEPTANCE_BELOW_FLOOR = "AcceptanceBelowFloor"
    KV_SQUEEZED = "KvSqueezed"
    TTFT_BOUND = "TtftBound"
    MODEL_MISFIT = "ModelMisfit"
    # What pays
    BATCH_ABOVE_BREAK_EVEN = "BatchAboveBreakEven"
    CHEAPER_PROFILE = "CheaperProfile"
    WORTH_A_CANARY = "WorthACanary"
    BETTER_THRESHOLD = "BetterThreshold"
    RESTART_RESTORES = "RestartRestores"
    NO_BASELINE = "NoBaseline"
    WORTH_A_PROBE = "WorthAProbe"
    LOAD_TOO_SHORT = "LoadTooShort"
    GAIN_TOO_SMALL = "GainTooSmall"
    BEST_ALREADY = "BestAlready"
    # Brakes
    STRATEGY_FORBIDS = "StrategyForbids"
    COOLING_DOWN = "CoolingDown"
    CHANGES_EXHAUSTED = "ChangesExhausted"
    TOO_FEW_REQUESTS = "TooFewRequests"


GETS_TO_RUN = (Reason.OVERLOADED, Reason.MANIFEST_WAS_FASTER)
"""Reasons to go back to what the manifest says for what users got: its canary has nothing to prove."""

PROBES = (Reason.WORTH_A_PROBE, Reason.NO_BASELINE)
"""Reasons to try an option that is not believed to be the better one."""


@dataclass(frozen=True)
class Decision:
    """The answer to one observation."""

    reason: Reason
    message: str
    """A sentence for the person on call: what was seen, what follows."""
    target: Option | None = None
    """What the operator would run. None: it cannot say."""
    change: bool = False
    """Whether the target is something else than what runs, and worth a change now."""
    gain: Estimate | None = None
    """How much faster tokens are expected to come: 0.25 is 25 % faster."""
    restart: bool = False
    """The target is what runs: its pods are to be replaced by fresh ones."""
    required_gain: float = 0.0
    """What the canary must show."""
    protect_tail: bool = False
    """Whether the canary must also keep the 99th percentile."""
    urgent: bool = False
    """A guard spoke, or requests pile up: only failures of the same profile hold it back."""
    held_back: tuple[Reason, str] | None = None
    """The brake that keeps a worthwhile change from being made now, and until when."""
