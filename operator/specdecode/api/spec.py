"""What a user writes: the `spec` of a `SpecDecodePolicy`.

The descriptions are what `kubectl explain specdecodepolicy.spec` shows: they speak to the person who writes a policy.
Every list and string has a limit: the API server estimates the cost of the rules from them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from specdecode.api.base import DNS_LABEL, DNS_SUBDOMAIN, ApiModel, Fraction, ProfileName
from specdecode.api.cel import rule, rules
from specdecode.api.quantities import Duration, Percent, PositiveDuration, duration_rule

ArgumentValue = Annotated[str, Field(max_length=4096)]


class TargetRef(ApiModel):
    """The workload that runs vLLM."""

    # The workload's original command line is kept in the status: it must never be given back to another workload.
    # A container may be named later, for when the operator reports that it cannot tell which one runs vLLM.
    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.kind == oldSelf.kind && self.name == oldSelf.name",
                "a policy keeps its workload: delete this policy and make another one for the other workload",
            ),
            rule(
                "!has(oldSelf.container) || (has(self.container) && self.container == oldSelf.container)",
                "a policy keeps its container: delete this policy and make another one for the other container",
            ),
        )
    )

    api_version: Literal["apps/v1"] = Field("apps/v1", description="API version of the workload.")
    kind: Literal["Deployment"] = Field("Deployment", description="Kind of the workload; a Deployment for now.")
    name: Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)] = Field(
        description="Name of the workload, in the policy's own namespace. Cannot be changed later."
    )
    container: Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)] | None = Field(
        None,
        description="Name of the container that runs the vLLM server. May be left out when it is clear which one "
        "does. Cannot be changed once set.",
    )


class Mode(StrEnum):
    """What the operator may do."""

    OBSERVE = "Observe"
    RECOMMEND = "Recommend"
    AUTO = "Auto"


class ProfileMethod(StrEnum):
    """How a profile drafts tokens."""

    DRAFT_MODEL = "DraftModel"
    NGRAM = "NGram"
    DISABLED = "Disabled"


class DraftModel(ApiModel):
    """A small model that drafts tokens for the target model."""

    model: Annotated[str, Field(min_length=1, max_length=1024)] = Field(
        description="Name or path of the draft model, as vLLM takes it. It must share the target's vocabulary; "
        "of the same family and 8 to 12 times smaller is a good start."
    )
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None,
        description="GPUs that the draft model is split over. Left out: as vLLM decides. Recent versions ask for "
        "the target's own size.",
    )
    quantization: Annotated[str, Field(min_length=1, max_length=63)] | None = Field(
        None, description="Quantization of the draft model, e.g. fp8. Quantize the draft before the target."
    )
    max_model_len: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="Longest sequence, in tokens, that the draft model handles."
    )


class NGram(ApiModel):
    """Drafts are copied from the prompt where its last tokens occurred before. Costs no memory."""

    prompt_lookup_min: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Shortest run of tokens that counts as a match."
    )
    prompt_lookup_max: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Longest run of tokens that is looked up."
    )


class Profile(ApiModel):
    """One way to run the workload."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.method == 'DraftModel' ? has(self.draftModel) : !has(self.draftModel)",
                "draftModel belongs to method DraftModel, and that method needs it: "
                "give draftModel.model, or change the method",
            ),
            rule(
                "self.method == 'NGram' || !has(self.ngram)",
                "ngram belongs to method NGram: remove the block, or set method: NGram",
            ),
            rule(
                "self.method == 'Disabled' ? !has(self.numSpeculativeTokens) : has(self.numSpeculativeTokens)",
                "numSpeculativeTokens must be given for DraftModel and NGram (3 to 5 is usual) "
                "and left out for Disabled",
            ),
            rule(
                "!has(self.ngram) || !has(self.ngram.promptLookupMin) || !has(self.ngram.promptLookupMax)"
                " || self.ngram.promptLookupMin <= self.ngram.promptLookupMax",
                "ngram.promptLookupMin must not be larger than ngram.promptLookupMax: swap them, or leave one out",
            ),
            rule(
                "(self.name == 'disabled') == (self.method == 'Disabled')",
                "the name disabled and the method Disabled belong together: rename the profile",
            ),
            rule(
                "self.name != 'original'",
                "original is how the status names the workload's own arguments: rename the profile",
            ),
        )
    )

    name: ProfileName = Field(description="Name of the profile, shown in status, events and metrics.")
    method: ProfileMethod = Field(
        description="How tokens are drafted. DraftModel: by a small model. NGram: copied from the prompt where its "
        "last tokens occurred before. Disabled: not at all."
    )
    num_speculative_tokens: Annotated[int, Field(ge=1, le=128)] | None = Field(
        None, description="K: tokens drafted per step and request. 3 to 5 is usual. Left out for method Disabled."
    )
    draft_model: DraftModel | None = Field(None, description="The draft model of method DraftModel.")
    ngram: NGram | None = Field(None, description="Look-up lengths of method NGram. Left out: vLLM's own.")
    args: dict[str, ArgumentValue] = Field(
        default_factory=dict,
        max_length=32,
        description="Other vLLM arguments that belong to this profile, e.g. {max-num-batched-tokens: '8192'}. "
        "An empty value is a flag without value. Speculative arguments are not accepted here.",
        json_schema_extra=rules(
            rule(
                "self.all(key, key.matches('^(--)?[a-z0-9][-A-Za-z0-9_.]*$'))",
                "args takes names of vLLM flags, such as max-num-batched-tokens: put the value behind the colon",
            ),
            rule(
                "!self.exists(key, key.matches('^(--)?(spec|num[-_]spec|ngram[-_]prompt)'))",
                "speculative arguments are not accepted in args: "
                "use method, numSpeculativeTokens, draftModel and ngram",
            ),
        ),
    )
    env: dict[str, ArgumentValue] = Field(
        default_factory=dict,
        max_length=32,
        description="Environment variables that belong to this profile.",
        json_schema_extra=rules(
            rule(
                "self.all(key, key.matches('^[A-Za-z_][A-Za-z0-9_]*$'))",
                "env takes names of environment variables: letters, digits and _, not starting with a digit",
            ),
            rule(
                "!('SPECDECODE_CONFIG' in self) && !('SPECDECODE_RESTARTED_AT' in self)",
                "SPECDECODE_CONFIG and SPECDECODE_RESTARTED_AT are written by the operator: remove them from env",
            ),
        ),
    )


class BatchSizeTuningMode(StrEnum):
    """Whether the operator sets the batch size from which nothing is drafted."""

    OFF = "Off"
    AUTO = "Auto"


class BatchSizeTuningApply(StrEnum):
    """How another schedule of what runs comes into force."""

    ROLL = "Roll"
    LIVE = "Live"


class BatchSizeTuning(ApiModel):
    """The batch size above which speculation stops inside the engine, where the vLLM version has such a thing."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.apply == 'Roll' || self.mode == 'Auto'",
                "apply: Live says how the operator's schedules come into force: set mode: Auto, or leave apply out",
            )
        )
    )

    mode: BatchSizeTuningMode = Field(
        BatchSizeTuningMode.OFF,
        description="Auto: the operator sets the threshold from the measured break-even (disable_by_batch_size up "
        "to the last version that honours it, num_speculative_tokens_per_batch_size from vLLM 0.24). "
        "Off: profiles run at a fixed K.",
    )
    apply: BatchSizeTuningApply = Field(
        BatchSizeTuningApply.ROLL,
        description="How another schedule of the profile that runs comes into force. Roll: with new pods. Live: "
        "without a restart, where the pods have the plugin specdecode-vllm; the condition LiveTuning says where not, "
        "and then it is a roll.",
    )


class Percentile(ApiModel):
    """An upper limit."""

    p99: PositiveDuration = Field(description="Limit of the 99th percentile, e.g. 60ms.")


class Slo(ApiModel):
    """What users were promised."""

    time_per_output_token: Percentile | None = Field(
        None, description="Limit of the time per output token (TPOT): the time from one token of a stream to the next."
    )
    time_to_first_token: Percentile | None = Field(
        None, description="Limit of the time to first token (TTFT): how long a user waits for the stream to begin."
    )


class Objective(ApiModel):
    """What is worth a change."""

    minimum_gain: Percent = Field(
        0.05,
        description="A change must make tokens come at least this much faster to be worth it; to switch speculation "
        "off, half as much is enough. A gain that is not sure to reach it is not acted on.",
    )
    slo: Slo = Field(default_factory=Slo, description="Limits that no change may break.")


class AcceptanceGuard(ApiModel):
    """Floors of the acceptance rate (accepted / drafted tokens)."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.disableBelow <= self.reviewBelow",
                "disableBelow must not be larger than reviewBelow: raise reviewBelow or lower disableBelow",
            )
        )
    )

    disable_below: Fraction = Field(
        0.5, description="Mean acceptance below this turns speculation off. 0 leaves it to the measured cost alone."
    )
    review_below: Fraction = Field(
        0.65,
        description="Between disableBelow and this, a change to the profile also has to keep the 99th percentile of "
        "TPOT on the canary.",
    )
    p10_below: Fraction = Field(
        0.5,
        description="When the 10th percentile across pods and windows is below this, the status warns of mixed "
        "traffic: a part of it loses although the mean looks well.",
    )


class Guards(ApiModel):
    """When speculation is off limits whatever the mean says."""

    acceptance: AcceptanceGuard = Field(default_factory=AcceptanceGuard, description="Floors of the acceptance rate.")


class Analysis(ApiModel):
    """How a canary is judged."""

    minimum_requests: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        200,
        description="Requests that must finish on the canary, and on the pods it is compared with, before it is "
        "judged.",
    )
    duration: PositiveDuration = Field(
        600.0,
        description="How long canary and baseline are measured side by side. After twice this time without a clear "
        "answer the change is taken back.",
    )
    warmup: Duration = Field(
        30.0, description="Time after the canary became ready that is not measured: empty caches are not its fault."
    )

    @property
    def longest(self) -> float:
        """Seconds of measuring after which there is a verdict, be it that there is no clear answer."""
        return 2 * self.duration


class Rollout(ApiModel):
    """How a change is made."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            duration_rule(
                ("progressDeadline", "analysis.warmup", "analysis.duration"),
                "duration(self.progressDeadline) >= duration(self.analysis.warmup)"
                " + duration(self.analysis.duration) + duration(self.analysis.duration)",
                "progressDeadline must be at least analysis.warmup plus twice analysis.duration, or an analysis could "
                "be given up before it has an answer: raise progressDeadline or shorten analysis.duration",
            )
        )
    )

    analysis: Analysis = Field(default_factory=Analysis, description="How the canary is judged.")
    cooldown: Duration = Field(
        1800.0, description="Rest after a change. Doubles after each change that had to be taken back."
    )
    max_changes_per_day: Annotated[int, Field(ge=1, le=20)] = Field(
        6,
        description="Changes that may be started in 24 hours, at most half of them in vain to find out what pays; the "
        "last two are kept for the way back, to no speculation or to what the manifest says, and the very last for "
        "pods that have long fallen behind, where the highest load of the day would be too much for what runs (of "
        "fewer than 4, one for the way back). No more than the history remembers.",
    )
    progress_deadline: PositiveDuration = Field(
        1800.0,
        description="A phase of the change that takes longer than this without progress is given up and taken back. "
        "Leave room for the slowest start of the model.",
    )
    allow_unavailable: bool = Field(
        False,
        description="Where no GPU is free for an additional pod, give up one running pod for the canary, if the others "
        "carry the load without it and the change could be taken back. Otherwise the change is not made.",
    )


class Metrics(ApiModel):
    """Where and how often the pods are measured."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            duration_rule(
                ("window", "interval"),
                "duration(self.window) >= duration(self.interval) + duration(self.interval)",
                "window must be at least twice the interval: a rate needs two measurements",
            ),
            duration_rule(("interval",), "duration(self.interval) >= duration('1s')", "interval must be at least 1s"),
        )
    )

    port: int | Annotated[str, Field(min_length=1, max_length=15)] | None = Field(
        None,
        description="Port of /metrics: number or name of a container port. Left out: the port that the server's "
        "arguments say (8000 by default).",
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "maxLength": 15,
            **rules(
                rule(
                    "type(self) == int ? self >= 1 && self <= 65535"
                    " : string(self).matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && string(self).matches('[a-z]')",
                    "port must be a number from 1 to 65535 or the name of a container port, such as http",
                )
            ),
        },
    )
    path: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^/")] = Field(
        "/metrics", description="Path of the metrics page."
    )
    interval: PositiveDuration = Field(15.0, description="Time between two measurements.")
    window: PositiveDuration = Field(300.0, description="Time that a decision looks back.")


class DeletionPolicy(StrEnum):
    """What happens to the workload when its policy is deleted."""

    RESTORE = "Restore"
    KEEP = "Keep"


class SpecDecodePolicySpec(ApiModel):
    """What the operator may do to a workload, and when."""

    target_ref: TargetRef = Field(description="The workload that runs vLLM.")
    mode: Mode = Field(
        Mode.RECOMMEND,
        description="Observe measures. Recommend also says what it would do. Auto does it: canary, verification, "
        "roll-back.",
    )
    suspend: bool = Field(False, description="Stops everything but a running change, which is finished first.")
    vllm_version: Annotated[str, Field(max_length=63, pattern=r"^v?[0-9]+\.[0-9]+\.[0-9]+.*$")] | None = Field(
        None,
        description="vLLM's version, e.g. 0.24.0, for images whose tag does not say it and servers that do not "
        "answer /version.",
    )
    profiles: list[Profile] = Field(
        min_length=1,
        max_length=16,
        description="The ways to run the workload that the operator may choose from. A profile named disabled, "
        "without speculation, is always there; write it only to give it args or env.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            **rules(
                rule(
                    "self.exists(profile, profile.method != 'Disabled')",
                    "give at least one profile that speculates, such as {name: ngram, method: NGram, "
                    "numSpeculativeTokens: 5}; disabled is always there",
                )
            ),
        },
    )
    batch_size_tuning: BatchSizeTuning = Field(
        default_factory=BatchSizeTuning, description="The batch size above which speculation stops."
    )
    objective: Objective = Field(default_factory=Objective, description="What is worth a change.")
    guards: Guards = Field(
        default_factory=Guards, description="When speculation is off limits whatever the mean gain says."
    )
    rollout: Rollout = Field(default_factory=Rollout, description="How a change is made.")
    metrics: Metrics = Field(default_factory=Metrics, description="Where and how often the pods are measured.")
    deletion_policy: DeletionPolicy = Field(
        DeletionPolicy.RESTORE,
        description="When the policy is deleted: Restore gives the workload its original arguments back, Keep leaves "
        "what runs.",
    )
