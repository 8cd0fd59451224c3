"""Reads why a vLLM container does not start: from the end of its log and from how Kubernetes says that it ended."""

from __future__ import annotations

import re
from dataclasses import dataclass

from specdecode.vllm.startup_failures import SIGNATURES, Failure

LOG_LINES = 300
"""How much of a log is worth asking for: below the cause there are up to three tracebacks: worker, engine, server."""
LOG_BYTES = 256 * 1024
WIDTH = 4000
"""Characters of a line that are looked at: vLLM lists all architectures that it knows in one."""
QUOTED = 160
"""Characters of a message that are quoted at most."""

OOM_KILLED = "OOMKilled"
_KILLED = (137, 143)
"""Exit codes of SIGKILL and SIGTERM."""
_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"})
_CREATION = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})

_PREFIX = re.compile(
    r"^(?:\([^()\n]*pid=\d+\) ?)?"
    r"(?:(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? (?:\[[^\]\n]*\]|\S+:\d+\]) ?)?"
)
_NO_FAILURE = frozenset({"DEBUG", "INFO", "WARNING"})
_LAST_ERROR = re.compile(r"^(?:(?:\w+\.)*\w*(?:Error|Exception|Exit): |\s*Value error, )[^\n]+", re.MULTILINE)
_SAYS_NOTHING = ("Engine core initialization failed", "Worker failed with error", "Failed core proc")


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong, and the way out."""

    failure: Failure
    cause: str
    cure: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.cure}"


@dataclass(frozen=True)
class Ending:
    """How Kubernetes says that a container ended, or why it does not run."""

    waiting: str = ""
    """Reason that it waits for, e.g. ErrImagePull."""
    message: str = ""
    """What Kubernetes adds to that, or to its end."""
    reason: str = ""
    """Reason of its last end: Error, OOMKilled, …"""
    exit_code: int | None = None


def diagnose(log: str, ending: Ending = Ending()) -> Diagnosis | None:
    """Why a container failed; None where nothing says so.

    Kubernetes' own word comes first where it is definite, then a known message in the log (or, where the log cannot be
    read, in the container's termination message), then what is left: the last error, or the exit code.
    """
    if ending.waiting in _IMAGE:
        cause = f"the image cannot be pulled ({ending.waiting})"
        return Diagnosis(Failure.IMAGE_UNAVAILABLE, cause, "correct its name, or the right to pull it")
    if ending.waiting in _CREATION:
        cause = f"the container cannot be created ({_short(ending.message) or ending.waiting})"
        return Diagnosis(Failure.CONTAINER_NOT_CREATED, cause, "create what it refers to")
    if ending.reason == OOM_KILLED:
        cause = "the container was killed at its memory limit"
        return Diagnosis(Failure.HOST_OUT_OF_MEMORY, cause, "raise its memory limit, or use a smaller draft")
    text = _plain(log or ending.message)
    return _known(text) or _unknown(text, ending)


def _plain(log: str) -> str:
    """The log without what is no failure, and without vLLM's prefixes."""
    kept = []
    for line in log[-LOG_BYTES:].splitlines():
        prefix = _PREFIX.match(line)
        if prefix is None or prefix["level"] not in _NO_FAILURE:
            kept.append(line[prefix.end() if prefix else 0 :][:WIDTH])
    return "\n".join(kept)


def _known(text: str) -> Diagnosis | None:
    for s in SIGNATURES:
        if found := s.match(text):
            groups = {name: _figure(_short(value or "")) for name, value in found.groupdict().items()}
            return Diagnosis(s.failure, s.cause.format(**groups), s.cure.format(**groups))
    return None


def _unknown(text: str, ending: Ending) -> Diagnosis | None:
    errors = [e.strip() for e in _LAST_ERROR.findall(text) if not any(phrase in e for phrase in _SAYS_NOTHING)]
    if errors:
        last = errors[-1].removeprefix("Value error, ").split(" [type=", 1)[0]
        return Diagnosis(Failure.UNRECOGNISED, f"its log ends with “{_short(last)}”", "see the pod's log")
    if ending.exit_code in _KILLED:
        cause = f"it was killed before it was ready (exit code {ending.exit_code})"
        cure = "allow more time in its startup or liveness probe, or more memory on the node"
        return Diagnosis(Failure.KILLED, cause, cure)
    if ending.exit_code:
        return Diagnosis(Failure.UNRECOGNISED, f"it ended with exit code {ending.exit_code}", "see the pod's log")
    return None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= QUOTED else f"{text[: QUOTED - 1]}…"


def _figure(text: str) -> str:
    """Whole numbers with their thousands told apart."""
    return f"{int(text):,}" if text.isdecimal() else text
