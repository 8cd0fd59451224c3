"""The arguments of vLLM that are the operator's, in all their spellings, and what they say together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from specdecode.vllm.arguments import Argument, is_switch
from specdecode.vllm.capabilities import Capabilities
from specdecode.vllm.dialect import LEGACY, decode, from_legacy_flags
from specdecode.vllm.speculation import Speculation
from specdecode.vllm.unmanageable import Reason, UnmanageableError

CONFIG = "--speculative-config"
PER_REQUEST_METRICS = "--per-request-spec-decode-metrics"
SHORT = {"--spec-method": "method", "--spec-model": "model", "--spec-tokens": "num_speculative_tokens"}
LEGACY_FLAGS = frozenset(legacy.flag for legacy in LEGACY)
SPECULATIVE = frozenset({CONFIG, PER_REQUEST_METRICS, *SHORT, *LEGACY_FLAGS})
"""Every flag that is the operator's to write or to remove."""

_OTHERS = frozenset({"--specialize-active-lora"})
"""Flags that look like ours and are not (config/lora.py)."""


def speculative(arguments: Iterable[Argument]) -> tuple[Argument, ...]:
    """The arguments that are ours. Raises `UnmanageableError` for one that may be ours in short."""
    ours = []
    for argument in arguments:
        if argument.flag in SPECULATIVE:
            ours.append(argument)
        elif _may_abbreviate(argument.flag) and any(c.isspace() for c in argument.flag):
            flag = argument.written.split()[0]
            raise UnmanageableError(
                Reason.COMMAND_NOT_UNDERSTOOD,
                f"{flag} and its value are one word, which vLLM does not take apart; write two words, or {flag}=value",
            )
        elif _may_abbreviate(argument.flag):
            raise UnmanageableError(
                Reason.COMMAND_NOT_UNDERSTOOD,
                f"{argument.written} may abbreviate a speculative argument or be none; "
                f"write one of {', '.join(sorted(SPECULATIVE - LEGACY_FLAGS))} in full",
            )
    return tuple(ours)


def _may_abbreviate(flag: str) -> bool:
    if not flag.startswith("--") or flag in _OTHERS or flag.replace("--no-", "--") in _OTHERS:
        return False
    return flag.startswith("--spec") or (len(flag) > 5 and any(full.startswith(flag) for full in SPECULATIVE))


MENTION = re.compile(
    r"(?<![\w-])(?:--(?:spec(?:ulative)?[-_](?!ialize)|num[-_]speculative|ngram[-_]prompt)|-sc[=.\s]|-spec-draft)"
)
"""A speculative argument somewhere in a text."""


def read_config(
    ours: Sequence[Argument], capabilities: Capabilities | None, v1_engine_forced: bool = False
) -> Speculation | None:
    """What our arguments say together; None for no speculation. Raises `UnmanageableError` for what vLLM refuses."""
    _check_accepted(ours, capabilities)
    config: dict[str, Any] | None = None
    for argument in (a for a in ours if a.flag == CONFIG and a.key is None):
        config = _json_object(argument)
    dotted: dict[str, dict[str, Any]] = {}
    for argument in (a for a in ours if a.flag == CONFIG and a.key is not None):
        _set(dotted.setdefault(argument.written.partition(".")[0].replace("_", "-"), {}), argument)
    if dotted:  # appended after all others, so the last of them wins
        config = list(dotted.values())[-1]
    for argument in {a.flag: a for a in ours if a.flag in SHORT}.values():
        key, config = SHORT[argument.flag], config or {}
        if key in config:
            raise UnmanageableError(
                Reason.COMMAND_NOT_UNDERSTOOD,
                f"{argument.written} and {key} in {CONFIG} exclude each other in vLLM; leave one out",
            )
        config[key] = _number_or_text(_known(argument)) if key == "num_speculative_tokens" else _known(argument)
    legacy = {a.flag: None if _bare_switch(a) else _known(a) for a in ours if a.flag in LEGACY_FLAGS}
    if config is None and legacy:
        config = from_legacy_flags(legacy)
        if config.keys().isdisjoint(("model", "num_speculative_tokens")):
            config = None
    if config is None:
        return None
    if not config:
        raise UnmanageableError(Reason.ARGUMENT_NOT_READABLE, f"{CONFIG} is empty; write null for no speculation")
    return decode(config, capabilities, v1_engine_forced)


def _bare_switch(argument: Argument) -> bool:
    return not argument.values and is_switch(argument.flag)


def _check_accepted(ours: Sequence[Argument], capabilities: Capabilities | None) -> None:
    if capabilities is None:
        return
    for a in ours:
        accepted = True
        if a.flag in LEGACY_FLAGS:
            accepted = capabilities.legacy_flags
        elif a.flag in SHORT:
            accepted = capabilities.short_flags
        elif a.flag == PER_REQUEST_METRICS:
            accepted = capabilities.per_request_metrics
        elif a.written.startswith("-sc"):
            accepted = capabilities.short_config_flag
        else:
            accepted = capabilities.reads_speculative_config
        if not accepted:
            raise UnmanageableError(
                Reason.VERSION_CANNOT_EXPRESS,
                f"vLLM {capabilities.version} does not accept {a.written}; "
                f"write {CONFIG if capabilities.speculative_config else 'the flags of that version'}, "
                "or state the version that really runs in the policy",
            )


def _known(argument: Argument) -> str:
    """The value of one of our arguments, which must be there and be known."""
    if argument.values and argument.values[0] is not None:
        return argument.values[0]
    problem = (
        "has no value" if not argument.values else "takes its value from a variable that the manifest does not set"
    )
    raise UnmanageableError(
        Reason.ARGUMENT_NOT_READABLE,
        f"{argument.written} {problem}; write the value itself, or give the variable a plain value in env",
    )


def _json_object(argument: Argument) -> dict[str, Any] | None:
    text = _known(argument)
    if text in ("", "None"):  # optional_type (engine/arg_utils.py)
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = ...
    if value is None or (isinstance(value, dict) and value):
        return value
    way_out = "write a JSON object, or null for no speculation"
    if name := re.fullmatch(r"\$\(([\w.-]+)\)", text):
        way_out = f"the container's env has no {name[1]}: add it with the value null"
    raise UnmanageableError(Reason.ARGUMENT_NOT_READABLE, f"{argument.written} has the value {text[:120]!r}; {way_out}")


def _set(config: dict[str, Any], argument: Argument) -> None:
    """Puts `--flag.a.b value` into a nested mapping; `a+` appends to a list."""
    assert argument.key is not None
    text, path = _known(argument), argument.key
    value: Any = text.split(",") if path.endswith("+") else _number_or_text(text)
    *parents, last = path.removesuffix("+").split(".")
    for parent in parents:
        inner = config.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UnmanageableError(
                Reason.ARGUMENT_NOT_READABLE, f"{argument.written} goes into a value that is no object"
            )
        config = inner
    if isinstance(value, list) and isinstance(config.get(last), list):
        value = config[last] + value
    config[last] = value


def _number_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
