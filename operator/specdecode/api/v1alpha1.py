"""`SpecDecodePolicy`, API group `specdecode.dev`, version `v1alpha1`."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from specdecode.api.base import ApiModel
from specdecode.api.cel import rule, rules
from specdecode.api.spec import (
    AcceptanceGuard,
    Analysis,
    BatchSizeTuning,
    BatchSizeTuningApply,
    BatchSizeTuningMode,
    DeletionPolicy,
    DraftModel,
    Guards,
    Metrics,
    Mode,
    NGram,
    Objective,
    Percentile,
    Profile,
    ProfileMethod,
    Rollout,
    Slo,
    SpecDecodePolicySpec,
    TargetRef,
)
from specdecode.api.status import (
    AcceptanceStatus,
    BandStatus,
    BatchRangeStatus,
    CommandFields,
    Condition,
    Configuration,
    HistoryEntry,
    Interval,
    LiveSchedule,
    ObservationStatus,
    Original,
    Outcome,
    ProfileStatus,
    Recommendation,
    RollingParameters,
    RolloutPhase,
    RolloutStatus,
    ServiceStatus,
    SpecDecodePolicyStatus,
    Summary,
    Time,
    TurningPointStatus,
)

__all__ = [
    "API_VERSION",
    "DISABLED",
    "GROUP",
    "KIND",
    "PLURAL",
    "VERSION",
    "AcceptanceGuard",
    "AcceptanceStatus",
    "Analysis",
    "ApiModel",
    "BandStatus",
    "BatchRangeStatus",
    "BatchSizeTuning",
    "BatchSizeTuningApply",
    "BatchSizeTuningMode",
    "CommandFields",
    "Condition",
    "Configuration",
    "DeletionPolicy",
    "DraftModel",
    "Guards",
    "HistoryEntry",
    "Interval",
    "LiveSchedule",
    "Metrics",
    "Mode",
    "NGram",
    "Objective",
    "ObservationStatus",
    "Original",
    "Outcome",
    "Percentile",
    "Profile",
    "ProfileMethod",
    "ProfileStatus",
    "Recommendation",
    "RollingParameters",
    "Rollout",
    "RolloutPhase",
    "RolloutStatus",
    "ServiceStatus",
    "Slo",
    "SpecDecodePolicy",
    "SpecDecodePolicySpec",
    "SpecDecodePolicyStatus",
    "Summary",
    "TargetRef",
    "Time",
    "TurningPointStatus",
]

GROUP = "specdecode.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "SpecDecodePolicy"
PLURAL = "specdecodepolicies"

DISABLED = "disabled"
"""The name of the profile that is always there: no speculation."""


class SpecDecodePolicy(ApiModel):
    """Runs speculative decoding on one vLLM workload by itself."""

    # A container that is named late must be the one whose command line was changed already.
    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(oldSelf.status) || !has(oldSelf.status.original) || !has(self.spec.targetRef.container)"
                " || self.spec.targetRef.container == oldSelf.status.original.container",
                "the operator has changed another container: name that one (status.original.container), "
                "or delete this policy and make another one",
            )
        )
    )

    spec: SpecDecodePolicySpec
    status: SpecDecodePolicyStatus = Field(default_factory=SpecDecodePolicyStatus)
