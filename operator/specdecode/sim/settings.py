"""The simulator's own knobs: environment variables, so that a manifest's vLLM arguments stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specdecode.sim.arguments import OLDEST
from specdecode.sim.surfaces import DEFAULT_SURFACE
from specdecode.vllm.speculation import Method
from specdecode.vllm.version import Version

PREFIX = "SPECDECODE_SIM_"
DEFAULT_VERSION = Version(0, 24, 0)
FAULTS: Mapping[str, float | None] = {
    "never-ready": None,
    "crash-at-start": None,
    "crash-after": 30.0,
    "slow": 2.0,
    "bad-draft": 0.1,
    "metrics-hang": None,
    "metrics-missing": None,
    "metrics-half": None,
    "oom-under-load": 16.0,
    "speculation-dropped": None,
}
"""Fault -> its value when none is given; None for a fault without one."""


class SettingsError(ValueError):
    """An environment variable that cannot be understood."""


@dataclass(frozen=True)
class Settings:
    """How this server pretends."""

    version: Version = DEFAULT_VERSION
    """The vLLM release that is emulated."""
    surface: str = DEFAULT_SURFACE
    acceptance: str | None = None
    """A file with another acceptance table."""
    speed: float = 1.0
    """The GPU is so many times as fast as the measured one; everything, metrics included, stays in real seconds."""
    startup_seconds: float = 0.0
    linger_seconds: float = 1.0
    """Seconds after SIGTERM in which new connections are still served, as a preStop hook gives a Service time to forget
    the pod."""
    kv_tokens: int | None = None
    """KV pool of the engine without a draft; a draft takes the same share of it as measured."""
    seed: str | None = None
    faults: Mapping[str, float | None] | None = None
    fault_when: str = ""
    """Only pods that run this strike the fault: `speculating`, `off` or a method's name. Empty: all."""
    pod_ip: str | None = None
    pod_name: str = ""
    model_runner_v2: bool | None = None

    def faults_of(self, method: Method) -> Mapping[str, float | None]:
        """The faults that strike a pod which runs `method`."""
        off = method is Method.DISABLED
        strikes = {"": True, "speculating": not off, "off": off}.get(self.fault_when, self.fault_when == method)
        return (self.faults or {}) if strikes else {}

    def pads_drafts(self) -> bool:
        """Whether n-gram steps without a match draft all the same: Model Runner V2, the default for n-gram on GPUs from
        vLLM 0.32."""
        return self.version >= Version(0, 32, 0) if self.model_runner_v2 is None else self.model_runner_v2


def settings_from_env(env: Mapping[str, str]) -> Settings:
    """Read the settings. Raises SettingsError that names the variable."""

    def number(name: str, default: float, least: float) -> float:
        text = env.get(PREFIX + name, "")
        try:
            value = float(text) if text else default
        except ValueError:
            raise SettingsError(f"{PREFIX}{name}={text!r} is not a number") from None
        if value < least:
            raise SettingsError(f"{PREFIX}{name}={text!r} must be at least {least}")
        return value

    runner = env.get("VLLM_USE_V2_MODEL_RUNNER", "")
    return Settings(
        version=_version(env.get(PREFIX + "VLLM_VERSION", "")),
        surface=env.get(PREFIX + "SURFACE", "") or DEFAULT_SURFACE,
        acceptance=env.get(PREFIX + "ACCEPTANCE") or None,
        speed=number("SPEED", 1.0, 0.001),
        startup_seconds=number("STARTUP_SECONDS", 0.0, 0.0),
        linger_seconds=number("LINGER_SECONDS", 1.0, 0.0),
        kv_tokens=int(number("KV_TOKENS", 0, 0)) or None,
        seed=env.get(PREFIX + "SEED") or None,
        faults=parse_faults(env.get(PREFIX + "FAULT", "")),
        fault_when=_fault_when(env.get(PREFIX + "FAULT_WHEN", "")),
        pod_ip=env.get("POD_IP") or None,
        pod_name=env.get("POD_NAME") or env.get("HOSTNAME") or "",
        model_runner_v2=runner == "1" if runner in ("0", "1") else None,
    )


def parse_faults(text: str) -> Mapping[str, float | None]:
    """`slow:1.5,metrics-half` -> {"slow": 1.5, "metrics-half": None}. Raises SettingsError."""
    faults: dict[str, float | None] = {}
    for word in filter(None, (w.strip() for w in text.split(","))):
        name, _, value = word.partition(":")
        if name not in FAULTS:
            raise SettingsError(f"{PREFIX}FAULT: no fault {name!r}; there are {', '.join(FAULTS)}")
        if value and FAULTS[name] is None:
            raise SettingsError(f"{PREFIX}FAULT: {name} takes no value")
        try:
            faults[name] = float(value) if value else FAULTS[name]
        except ValueError:
            raise SettingsError(f"{PREFIX}FAULT: {word!r} needs a number behind the colon") from None
    return faults


def _version(text: str) -> Version:
    version = Version.parse(text) if text else DEFAULT_VERSION
    if version is None or version < OLDEST:
        raise SettingsError(f"{PREFIX}VLLM_VERSION={text!r}: write a vLLM version from {OLDEST} on, such as 0.24.0")
    return version


def _fault_when(text: str) -> str:
    allowed = ("", "speculating", "off", *(m.value for m in Method))
    if text not in allowed:
        raise SettingsError(f"{PREFIX}FAULT_WHEN={text!r}: not one of {', '.join(allowed[1:])}")
    return "off" if text == Method.DISABLED else text
