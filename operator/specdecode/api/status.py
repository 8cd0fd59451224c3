"""What the operator writes: the `status` of a `SpecDecodePolicy`.

A change under way, the history and the original command line are here, so that the operator may be restarted at any
moment. What it has learnt is not: only what people read of it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from specdecode.api.base import ApiModel, ShortText
from specdecode.api.quantities import Duration

Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
"""A moment as RFC 3339 writes it, `2026-11-22T17:00:00Z`."""

CommandLine = Annotated[
    list[Annotated[str, Field(max_length=65536)]],
    Field(max_length=512, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
]


class Condition(ApiModel):
    """A `metav1.Condition`."""

    type: Annotated[str, Field(max_length=316)] = Field(description="Type of the condition.")
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    reason: Annotated[
        str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    ] = Field(description="One word that says why.")
    message: Annotated[str, Field(max_length=32768)] = Field("", description="Why, in a sentence.")
    last_transition_time: Time = Field(description="When the status last changed.")
    observed_generation: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Generation of the policy that this is about."
    )


class Interval(ApiModel):
    """An estimate with its 90 % interval."""

    value: float = Field(description="The estimate.")
    low: float = Field(description="Lower end of the 90 % interval.")
    high: float = Field(description="Upper end of the 90 % interval.")


class BatchRangeStatus(ApiModel):
    """K for a range of batch sizes."""

    start: Annotated[int, Field(ge=1)] = Field(description="First batch size of the range.")
    end: Annotated[int, Field(ge=1)] = Field(description="Last batch size of the range.")
    k: Annotated[int, Field(ge=0)] = Field(description="Speculative tokens per step.")


class Configuration(ApiModel):
    """A profile, with the batch-size schedule that it runs."""

    profile: Annotated[str, Field(max_length=63)] = Field(description="Name of the profile.")
    schedule: list[BatchRangeStatus] = Field(
        default_factory=list,
        max_length=16,
        description="K by batch size; empty for a fixed K.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    disable_by_batch_size: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Batch size from which nothing is drafted, on versions that take it as one number."
    )


def _schedule(description: str) -> Any:
    return Field(max_length=16, description=description, json_schema_extra={"x-kubernetes-list-type": "atomic"})


class LiveSchedule(ApiModel):
    """What the file with the schedule says that the pods follow without a restart."""

    method: Annotated[str, Field(max_length=63)] = Field(description="vLLM's name of the method.")
    model: Annotated[str, Field(max_length=1024)] | None = Field(None, description="The draft model.")
    num_speculative_tokens: Annotated[int, Field(ge=1)] = Field(description="K at most.")
    started_with: list[BatchRangeStatus] = _schedule("K by batch size in the arguments of the servers it is about.")
    schedule: list[BatchRangeStatus] = _schedule("K by batch size in its stead.")
    canary: Annotated[str, Field(max_length=253)] | None = Field(None, description="Pod that tries another one.")
    canary_schedule: list[BatchRangeStatus] = Field(
        default_factory=list,
        max_length=16,
        description="K by batch size on that pod.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class TurningPointStatus(ApiModel):
    """What would make the operator choose otherwise, all else being as it is."""

    profile: Annotated[str, Field(max_length=63)] = Field(description="Profile that it would choose.")
    quantity: Literal["Acceptance", "Load", "Duration"] = Field(
        description="Share of the drafted tokens that is accepted; output tokens per second that users ask of a pod;"
        " seconds that loads like today's go on."
    )
    of: Annotated[str, Field(max_length=63)] | None = Field(None, description="Profile whose acceptance it is.")
    direction: Literal["Above", "Below"] = Field(description="On which side of `at` it would choose otherwise.")
    at: Interval = Field(description="Where its choice turns.")
    now: Interval = Field(description="What the quantity is taken to be now.")


class Recommendation(Configuration):
    """What the operator would run, and why."""

    gain: Interval | None = Field(
        None, description="How much faster tokens are expected to come than today: 0.25 is 25 % faster."
    )
    reason: Annotated[str, Field(max_length=64)] = Field(
        description="The rule that decided, or the brake that holds the change back."
    )
    rule: Annotated[str, Field(max_length=64)] | None = Field(None, description="The rule that decided, in any case.")
    message: ShortText = Field(description="Why, in a sentence.")
    payback: Duration | None = Field(None, description="Time after which the change has paid for itself.")
    load_lasts: Duration | None = Field(None, description="How much longer loads like today's are expected to go on.")
    turning_points: list[TurningPointStatus] = Field(
        default_factory=list,
        max_length=20,
        description="What would change the operator's mind.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class AcceptanceStatus(ApiModel):
    """Acceptance rate across pods and windows."""

    mean: float = Field(description="Accepted / drafted tokens.")
    p10: float = Field(description="10th percentile.")
    p50: float = Field(description="Median.")
    p90: float = Field(description="90th percentile.")


class BandStatus(ApiModel):
    """The batch sizes at which a profile's step costs less per token than one without speculation."""

    pays: bool = Field(description="Whether there are any.")
    start: Annotated[int, Field(ge=1)] | None = Field(None, description="The smallest.")
    end: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The largest; absent: as many as the server runs."
    )


class ServiceStatus(ApiModel):
    """What users got while all pods ran a profile."""

    time_per_output_token: float = Field(description="Mean TPOT in seconds, over the tokens.")
    tokens_per_second: float = Field(
        description="Output tokens per second and pod that were asked for, as the mean token met it."
    )
    seconds: float = Field(description="Seconds of service that this is of.")


class ProfileStatus(ApiModel):
    """What is known about one profile on this workload, and what is predicted of it at today's load."""

    name: Annotated[str, Field(max_length=63)] = Field(description="Name of the profile.")
    measured_at: Time | None = Field(None, description="When it was last measured.")
    acceptance: AcceptanceStatus | None = Field(None, description="Acceptance rate, when last measured.")
    accepted_length: float | None = Field(None, description="Mean acceptance length, when last measured.")
    tokens_per_step: float | None = Field(None, description="Tokens that a request got per engine step.")
    time_per_output_token: float | None = Field(None, description="Measured mean TPOT in seconds.")
    in_service: ServiceStatus | None = Field(
        None, description="What users got while all pods ran it, queues included: the last hour of that within a day."
    )
    predicted: Interval | None = Field(None, description="Predicted TPOT in seconds at today's load.")
    headroom: Interval | None = Field(
        None, description="Capacity over today's load; below 1 the profile cannot carry it."
    )
    band: BandStatus | None = Field(None, description="Batch sizes at which it pays at its fixed K.")
    schedule: list[BatchRangeStatus] = Field(
        default_factory=list,
        max_length=16,
        description="K by batch size that it would get; the prediction is of it. Empty: a fixed K.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    disable_by_batch_size: Annotated[int, Field(ge=2)] | None = Field(
        None, description="The same on versions that take one batch size from which nothing is drafted."
    )


class ObservationStatus(ApiModel):
    """What the pods showed when the status was last written."""

    time: Time = Field(description="When.")
    pods: Annotated[int, Field(ge=0)] = Field(description="Pods that answered.")
    batch_size: float | None = Field(None, description="Mean requests running per pod.")
    waiting: float | None = Field(None, description="Mean requests waiting per pod.")
    acceptance_rate: float | None = Field(None, description="Accepted / drafted tokens.")
    accepted_length: float | None = Field(None, description="Mean acceptance length.")
    time_per_output_token: float | None = Field(None, description="Mean TPOT in seconds.")
    time_to_first_token: float | None = Field(None, description="Mean TTFT in seconds.")
    kv_cache_usage: float | None = Field(None, description="Share of the KV cache in use.")
    tokens_per_second: float | None = Field(None, description="Output tokens per second and pod.")
    prompt_tokens_per_second: float | None = Field(None, description="Prompt tokens computed per second and pod.")
    context: float | None = Field(None, description="Mean tokens of context of a running request.")


class RolloutPhase(StrEnum):
    """Where a change stands."""

    STARTING = "Starting"
    ANALYSING = "Analysing"
    PROMOTING = "Promoting"
    VERIFYING = "Verifying"
    ROLLING_BACK = "RollingBack"
    FINISHING = "Finishing"


class Outcome(StrEnum):
    """How a change ended (Argo Rollouts' four: measured bad is not the same as could not measure)."""

    SUCCESSFUL = "Successful"
    FAILED = "Failed"
    INCONCLUSIVE = "Inconclusive"
    ERROR = "Error"


class CommandFields(ApiModel):
    """What the operator may change in a container: its command line and environment."""

    container: Annotated[str, Field(max_length=63)] = Field(description="Name of the container.")
    command: CommandLine | None = Field(None, description="The container's command.")
    args: CommandLine | None = Field(None, description="The container's args.")
    env: list[dict[str, Any]] | None = Field(
        None,
        max_length=512,
        description="The container's environment.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class RollingParameters(ApiModel):
    """Fields of the Deployment that a change borrows and gives back."""

    strategy: dict[str, Any] = Field(
        default_factory=dict,
        description="The Deployment's spec.strategy.",
    )
    min_ready_seconds: int | None = Field(None, description="The Deployment's spec.minReadySeconds.")
    paused: bool | None = Field(None, description="The Deployment's spec.paused.")


class RolloutStatus(ApiModel):
    """The change that is being made."""

    id: Annotated[str, Field(max_length=63)] = Field(description="Identity of the change.")
    policy_generation: Annotated[int, Field(ge=0)] = Field(description="Generation of the policy that asked for it.")
    phase: RolloutPhase = Field(description="Where it stands.")
    source: Configuration = Field(description="What ran before.")
    target: Configuration = Field(description="What shall run.")
    reason: Annotated[str, Field(max_length=64)] = Field(description="The rule that asked for the change.")
    message: ShortText = Field("", description="What is going on, in a sentence.")
    required_gain: float = Field(description="Gain that the canary must show.")
    protect_tail: bool = Field(False, description="Whether the canary must also keep the 99th percentile of TPOT.")
    before: float | None = Field(
        None,
        description="What the canary is compared by, as it was before there was one: mean TPOT in seconds as a rule.",
    )
    asked_before: float | None = Field(
        None, description="Output tokens per second that users asked of all pods while that was measured."
    )
    load_correction: float = Field(
        0.0,
        description="What the measured gain is corrected by, as a log: the canary takes a part of the load, which "
        "comes back after the promotion.",
    )
    started_at: Time = Field(description="When the change began.")
    phase_started_at: Time = Field(description="When the phase began.")
    canary_ready_at: Time | None = Field(None, description="When the canary became ready.")
    live_canary: Annotated[str, Field(max_length=253)] | None = Field(
        None, description="The pod that tries another schedule without a restart; absent: the change is a roll."
    )
    give_up_one: bool = Field(False, description="A running pod is given up for the canary: no GPU was free.")
    source_fields: CommandFields = Field(description="The container before the change.")
    target_fields: CommandFields = Field(description="The container that the change writes.")
    borrowed: RollingParameters = Field(description="What the Deployment had before, to be given back.")
    template: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Fingerprint of the rest of the pod template, which a canary must share with the other pods."
    )
    outcome: Outcome | None = Field(None, description="How the change is going to end, once known.")
    outcome_reason: Annotated[str, Field(max_length=64)] | None = Field(None, description="One word for the outcome.")
    gain: Interval | None = Field(None, description="Gain that the canary showed.")


class HistoryEntry(ApiModel):
    """A change that was made."""

    id: Annotated[str, Field(max_length=63)] = Field(description="Identity of the change.")
    policy_generation: Annotated[int, Field(ge=0)] = Field(description="Generation of the policy that asked for it.")
    source: Configuration = Field(description="What ran before.")
    target: Configuration = Field(description="What was to run.")
    reason: Annotated[str, Field(max_length=64)] = Field(description="The rule that asked for the change.")
    live: bool = Field(False, description="Whether it was made without a restart.")
    outcome: Outcome = Field(description="How it ended.")
    outcome_reason: Annotated[str, Field(max_length=64)] = Field(description="One word for the outcome.")
    message: ShortText = Field("", description="How it ended, in a sentence.")
    gain: Interval | None = Field(None, description="Gain that the canary showed.")
    give_up_one: bool = Field(False, description="A running pod was given up for the canary: no GPU was free.")
    started_at: Time = Field(description="When it began.")
    finished_at: Time = Field(description="When it ended.")


class Original(CommandFields):
    """The container's command line before the operator changed it, to be given back."""

    adopted_at: Time = Field(description="When it was seen: at first, and whenever somebody else changed it.")


class Summary(ApiModel):
    """Figures for `kubectl get`, whose columns cannot format numbers."""

    gain: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="How much faster tokens would come with the recommended profile, e.g. +25 %."
    )
    acceptance: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="Accepted / drafted tokens, e.g. 0.72; absent while nothing is drafted."
    )
    batch_size: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="Mean requests running per pod, e.g. 12.4."
    )


class SpecDecodePolicyStatus(ApiModel):
    """What the operator saw, thinks and does."""

    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=32,
        description="Ready, MetricsAvailable, Progressing, Degraded, Recommended, MixedTraffic, MemoryUsable, "
        "EngineAsConfigured, LiveTuning.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    observed_generation: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Generation of the policy that was last acted on."
    )
    vllm_version: Annotated[str, Field(max_length=63)] | None = Field(None, description="Version of vLLM that runs.")
    active_profile: Annotated[str, Field(max_length=63)] | None = Field(None, description="Profile that the pods run.")
    summary: Summary | None = Field(None, description="The figures that kubectl get shows.")
    active: Configuration | None = Field(None, description="Profile and schedule that the pods run.")
    recommendation: Recommendation | None = Field(None, description="What the operator would run, and why.")
    observation: ObservationStatus | None = Field(None, description="What the pods showed.")
    profiles: list[ProfileStatus] = Field(
        default_factory=list,
        max_length=17,
        description="What is known about each profile.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    rollout: RolloutStatus | None = Field(None, description="The change that is being made.")
    live_schedule: LiveSchedule | None = Field(
        None, description="What the ConfigMap with the live schedule says, written there after it was written here."
    )
    history: list[HistoryEntry] = Field(
        default_factory=list,
        max_length=20,
        description="The last changes, newest first.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    applied: Annotated[str, Field(max_length=64)] | None = Field(
        None,
        description="Fingerprint of the command line that the operator wrote last, to tell it from other people's.",
    )
    original: Original | None = Field(None, description="The command line before the operator changed it.")
