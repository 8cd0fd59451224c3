"""What is simulated: the schema of a scenario file (`docs/reference/scenario.md`)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from specdecode.api.quantities import Duration, PositiveDuration
from specdecode.api.v1alpha1 import DISABLED, SpecDecodePolicySpec
from specdecode.sim.workload import DEFAULT_LENGTHS, LENGTHS
from specdecode.vllm.speculation import Method
from specdecode.vllm.version import Version


class ScenarioError(ValueError):
    """A scenario that cannot be run: the file, the field, and what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid", arbitrary_types_allowed=True
    )


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Chance = Annotated[float, Field(ge=0, le=1)]


def _range_of(value: object) -> object:
    return (value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Tokens = Annotated[tuple[Positive, Positive], BeforeValidator(_range_of)]
"""A number of tokens, or from and to (uniform)."""


class SurfaceSource(_Part):
    """Where the step times come from: a file, with what its rows do not say."""

    file: str
    context: Positive | None = None
    graph_limit_tokens: Annotated[int, Field(ge=1)] | None = None
    prompt_token_micros: NotNegative | None = None
    kv_token_micros: NotNegative | None = None


class AcceptanceRow(_Part):
    """The chances of a typical request at one temperature."""

    temperature: NotNegative = 0.0
    accept: Annotated[tuple[Chance, ...], Field(min_length=1)]
    match: Chance = 1.0
    spread: NotNegative = 0.0


Rows = Annotated[tuple[AcceptanceRow, ...], Field(min_length=1)]


class AcceptanceChange(_Part):
    """How acceptance departs from the table: from a moment on, or with the uptime of a pod."""

    at: Duration = 0.0
    method: Method | None = None
    profile: str | None = None
    kind: str | None = None
    factor: NotNegative | None = None
    rows: Rows | None = None
    half_life: PositiveDuration | None = None

    @model_validator(mode="after")
    def _one_thing(self) -> AcceptanceChange:
        if (self.method is None) == (self.profile is None):
            raise ValueError("name the method or the profile whose drafts change, one of the two")
        if sum(x is not None for x in (self.factor, self.rows, self.half_life)) != 1:
            raise ValueError("give one of factor, rows and halfLife")
        if self.half_life is not None and (self.at or self.kind):
            raise ValueError(
                "halfLife counts from the start of each pod and holds for all kinds: leave out at and kind"
            )
        return self


class AcceptanceSource(_Part):
    """How many drafted tokens are accepted."""

    table: str | None = None
    kinds: Mapping[str, Mapping[Method, Rows]] | None = None
    changes: tuple[AcceptanceChange, ...] = ()

    @model_validator(mode="after")
    def _one_table(self) -> AcceptanceSource:
        if self.table is not None and self.kinds is not None:
            raise ValueError("give a table (a file) or kinds (inline), not both")
        return self


class RateStep(_Part):
    """A rate from a moment on."""

    at: Duration
    rate: NotNegative


class Diurnal(_Part):
    """A sine over the day: `mean` + `amplitude` at `peak_at` after the start of the scenario."""

    mean: Positive
    amplitude: NotNegative
    peak_at: Duration = 50_400.0
    period: PositiveDuration = 86_400.0


class Bursts(_Part):
    """Stretches of higher load, one at the end of each `every`."""

    every: PositiveDuration
    length: PositiveDuration
    factor: NotNegative

    @model_validator(mode="after")
    def _fits(self) -> Bursts:
        if self.length > self.every:
            raise ValueError("length must not be longer than every")
        return self


class Trace(_Part):
    """Recorded arrivals: CSV of TIMESTAMP,ContextTokens,GeneratedTokens, plain or gzipped."""

    file: str = "azure-2023-code"
    scale: Positive = 1.0
    repeat: bool = True
    time_scale: Positive = 1.0


class Temperatures(_Part):
    """A temperature that moves in a straight line over the piece."""

    from_: Annotated[NotNegative, Field(alias="from")]
    to: NotNegative


def _temperatures(value: object) -> object:
    return {"from": value, "to": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Arrivals(_Part):
    """A piece of the timeline: how many requests come, and what they ask."""

    from_: Annotated[Duration, Field(alias="from")] = 0.0
    to: PositiveDuration | None = None
    requests_per_second: NotNegative | None = None
    steps: Annotated[tuple[RateStep, ...], Field(min_length=1)] | None = None
    diurnal: Diurnal | None = None
    trace: Trace | None = None
    bursts: Bursts | None = None
    mix: Annotated[dict[str, Positive], Field(min_length=1)] | None = None
    temperature: Annotated[Temperatures, BeforeValidator(_temperatures)] = Temperatures.model_construct(
        from_=0.0, to=0.0
    )
    prompt_tokens: Tokens | None = None
    output_tokens: Tokens | None = None

    @model_validator(mode="after")
    def _one_rate(self) -> Arrivals:
        given = [self.requests_per_second, self.steps, self.diurnal, self.trace]
        if sum(x is not None for x in given) != 1:
            raise ValueError("give one of requestsPerSecond, steps, diurnal and trace")
        if self.to is not None and self.to <= self.from_:
            raise ValueError("to must be later than from")
        return self

    @property
    def kinds(self) -> Mapping[str, float]:
        """Kind of request -> share; the shares add up to 1."""
        mix = self.mix or {"code" if self.trace else "chat": 1.0}
        return {kind: weight / sum(mix.values()) for kind, weight in mix.items()}

    def lengths(self, kind: str) -> tuple[float, float]:
        """Mean prompt and output tokens of a kind of request."""
        prompt, output = LENGTHS.get(kind, DEFAULT_LENGTHS)
        return sum(self.prompt_tokens or prompt) / 2, sum(self.output_tokens or output) / 2


class ReplicaStep(_Part):
    """A number of pods from a moment on."""

    at: Duration
    count: Annotated[int, Field(ge=1, le=512)]


class Autoscaler(_Part):
    """A HorizontalPodAutoscaler on requests per second and pod."""

    minimum: Annotated[int, Field(ge=1, le=512)]
    maximum: Annotated[int, Field(ge=1, le=512)]
    requests_per_second_per_pod: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaler:
        if self.minimum > self.maximum:
            raise ValueError("minimum must not be larger than maximum")
        return self


Replicas = Annotated[int, Field(ge=1, le=512)] | Annotated[tuple[ReplicaStep, ...], Field(min_length=1)] | Autoscaler
"""A number, numbers over time, or an autoscaler."""


class Scenario(_Part):
    """A service, its traffic over time, and the policy that looks after it."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    duration: PositiveDuration = 86_400.0
    seed: Annotated[int, Field(ge=0)] = 0
    surface: str | SurfaceSource = "h200-llama32b-draft1b"
    vllm_version: str = "0.24.0"
    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] = 256
    start: str = DISABLED
    replicas: Replicas = 1
    pod_weights: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    roll_time: PositiveDuration = 120.0
    spare_gpus: Annotated[int, Field(ge=0, le=512)] = 1
    acceptance: AcceptanceSource = AcceptanceSource()
    arrivals: Annotated[tuple[Arrivals, ...], Field(min_length=1)]
    policy: SpecDecodePolicySpec
    baselines: tuple[str, ...] | None = None
    folder: Annotated[Path, Field(exclude=True)] = Path()
    """Where relative paths start."""

    @field_validator("vllm_version")
    @classmethod
    def _is_version(cls, text: str) -> str:
        if Version.parse(text) is None:
            raise ValueError("this is no version: write for example 0.24.0")
        return text

    @field_validator("policy", mode="before")
    @classmethod
    def _complete(cls, policy: Any) -> Any:
        if not isinstance(policy, Mapping):
            return policy
        if unknown := _unknown(SpecDecodePolicySpec, policy):
            raise ValueError(
                f"unknown field {unknown}: correct or remove it (see kubectl explain specdecodepolicy.spec)"
            )
        return {"targetRef": {"name": "service"}, "mode": "Auto", **policy}

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        names = [DISABLED, *(p.name for p in self.policy.profiles)]
        if self.start not in names:
            raise ValueError(f"start: no profile {self.start!r}; profiles are {', '.join(names)}")
        for change in self.acceptance.changes:
            if change.profile is not None and change.profile not in names:
                raise ValueError(f"acceptance.changes: no profile {change.profile!r}; profiles are {', '.join(names)}")
        ordered = sorted(self.arrivals, key=lambda a: a.from_)
        for a, b in itertools.pairwise(ordered):
            if a.to is not None and a.to > b.from_:
                raise ValueError("arrivals: pieces overlap; a piece without `to` ends where the next begins")
        return self

    @property
    def version(self) -> Version:
        """vLLM's version."""
        return Version.parse(self.vllm_version) or Version(0, 24, 0)


def _unknown(model: type[BaseModel], data: Mapping[str, Any], where: str = "policy") -> str | None:
    """The first field that the API does not have; there it would be pruned without a word."""
    by_name = {f.alias or name: f.annotation for name, f in model.model_fields.items()}
    for key, value in data.items():
        if key not in by_name:
            return f"{where}.{key}"
        inner = _model_in(by_name[key])
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            if inner is not None and isinstance(item, Mapping):
                path = f"{where}.{key}[{i}]" if isinstance(value, list) else f"{where}.{key}"
                if found := _unknown(inner, item, path):
                    return found
    return None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((m for a in getattr(annotation, "__args__", ()) if (m := _model_in(a)) is not None), None)


def parse_scenario(text: str, source: str = "scenario", folder: Path | None = None) -> Scenario:
    """Read a scenario from YAML. Raises ScenarioError that names the source, the field and the reason."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScenarioError(f"{source}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ScenarioError(f"{source}: expected a mapping with the fields name, arrivals and policy")
    try:
        return Scenario.model_validate({**data, "folder": folder or Path()})
    except ValidationError as error:
        problems = [f"  {_place(e['loc'])}: {_advice(e)}" for e in error.errors()]
        raise ScenarioError("\n".join([f"{source} cannot be run:", *problems])) from error


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file. Raises ScenarioError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read: {error}") from error
    return parse_scenario(text, str(path), path.parent)


def _place(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "scenario"


def _advice(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown field: correct or remove it (see docs/reference/scenario.md)"
    if error["type"] == "missing":
        return "this field is required"
    return str(error["msg"]).removeprefix("Value error, ")
