"""A container that we do not change, with the reason and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a container's vLLM command line is left alone; the values are condition reasons."""

    NO_VLLM_SERVER = "NoVllmServer"
    AMBIGUOUS_CONTAINER = "AmbiguousContainer"
    COMMAND_NOT_UNDERSTOOD = "CommandNotUnderstood"
    ARGUMENT_NOT_READABLE = "ArgumentNotReadable"
    CONFIG_FILE_HIDES_ARGUMENTS = "ConfigFileHidesArguments"
    VERSION_CANNOT_EXPRESS = "VersionCannotExpress"
    INVALID_PROFILE_ARGUMENT = "InvalidProfileArgument"


@dataclass(frozen=True)
class Unmanageable:
    """What is wrong, where, and what to do about it. Never a guess."""

    reason: Reason
    message: str


class UnmanageableError(Exception):
    """Carries an `Unmanageable` up to the module's public functions, which return it."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.unmanageable = Unmanageable(reason, message)
