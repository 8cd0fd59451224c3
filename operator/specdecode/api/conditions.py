"""Conditions of a policy and the reasons that they, Events and metrics give. Constants, never ad-hoc strings."""

from __future__ import annotations

from enum import StrEnum


class ConditionType(StrEnum):
    """Types of a policy's conditions."""

    READY = "Ready"
    """The operator can manage the workload and does."""
    METRICS_AVAILABLE = "MetricsAvailable"
    """The pods answer and there is enough to judge."""
    PROGRESSING = "Progressing"
    """A change is being made."""
    RECOMMENDED = "Recommended"
    """The recommended configuration is what runs."""
    DEGRADED = "Degraded"
    """Something needs a person: another owner takes the fields back, changes keep failing."""
    MIXED_TRAFFIC = "MixedTraffic"
    """A real part of the traffic loses although the mean looks well."""
    MEMORY_USABLE = "MemoryUsable"
    """What was learnt is kept for the next process."""
    ENGINE_AS_CONFIGURED = "EngineAsConfigured"
    """The engines run what the arguments say."""
    LIVE_TUNING = "LiveTuning"
    """The pods follow another schedule without a restart. Only where the policy asks for it."""
