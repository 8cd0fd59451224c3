"""A container's vLLM command line: found, read, and rewritten so that what is not ours stays byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from specdecode.vllm.arguments import Argument, Edit, canonical, last, parse, remove, set_argument
from specdecode.vllm.capabilities import Capabilities, capabilities
from specdecode.vllm.command_line import CommandLine, locate
from specdecode.vllm.dialect import check, to_json, to_legacy_flags
from specdecode.vllm.environment import Environment, literal
from specdecode.vllm.speculation import Speculation
from specdecode.vllm.speculative_arguments import CONFIG, PER_REQUEST_METRICS, SPECULATIVE, read_config, speculative
from specdecode.vllm.unmanageable import Reason, Unmanageable, UnmanageableError
from specdecode.vllm.version import Version

__all__ = [
    "CONFIG_VARIABLE",
    "Form",
    "Reason",
    "Rewritten",
    "Server",
    "Unmanageable",
    "find_container",
    "read",
    "rewrite",
]

CONFIG_VARIABLE = "SPECDECODE_CONFIG"
"""The documented name of the environment variable that `--speculative-config=$(SPECDECODE_CONFIG)` refers to."""

_FLAG = re.compile(r"--?[A-Za-z][\w.+-]*")


class Form(StrEnum):
    """How the container starts its server, which decides what is changed."""

    ARGV = "Argv"
    SHELL = "Shell"
    ENV_REFERENCE = "EnvReference"
    """The arguments take the speculative configuration from an environment variable: only that is changed."""


@dataclass(frozen=True)
class Server:
    """One vLLM server as its container starts it. None stands for "the manifest does not say" throughout."""

    model: str | None
    served_model_name: str | None
    port: int | None
    """8000 where no argument says otherwise (vLLM's default)."""
    speculation: Speculation | None
    """None: no speculation, as far as the arguments show; see `config_file`, `unseen` and `may_bring_speculation`."""
    tensor_parallel_size: int | None
    pipeline_parallel_size: int | None
    data_parallel_size: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    enforce_eager: bool
    graph_limit: int | None
    """Tokens in the largest CUDA graph that the arguments ask for."""
    log_stats: bool
    config_file: str | None
    """A `--config` file, whose arguments are not seen."""
    unseen: tuple[str, ...]
    """Words that may become more arguments when the container starts, such as `$EXTRA_ARGS`."""
    may_bring_speculation: bool
    """Whether the model's name hints at a "speculators" checkpoint, which brings its own speculative configuration."""
    form: Form


@dataclass(frozen=True)
class Rewritten:
    """A container that runs what was asked for: a copy of the old one; only command, args and env may differ."""

    container: dict[str, Any]


def find_container(pod_spec: Mapping[str, Any], name: str | None = None) -> Mapping[str, Any] | Unmanageable:
    """The container of a pod template that runs the vLLM server; with a `name`, that one."""
    containers = [c for c in pod_spec.get("containers") or () if isinstance(c, Mapping)]
    names = ", ".join(str(c.get("name")) for c in containers) or "none"
    if name is not None:
        named = [c for c in containers if c.get("name") == name]
        if named:
            return named[0]
        return Unmanageable(Reason.NO_VLLM_SERVER, f"there is no container {name}; the pod has: {names}")
    servers = [c for c in containers if _runs_vllm(c)]
    if len(servers) == 1:
        return servers[0]
    if servers:
        which = ", ".join(str(c.get("name")) for c in servers)
        return Unmanageable(
            Reason.AMBIGUOUS_CONTAINER, f"more than one container runs vLLM ({which}); name one in targetRef.container"
        )
    return Unmanageable(
        Reason.NO_VLLM_SERVER, f"no container (the pod has: {names}) runs a vLLM server; name it in targetRef.container"
    )


def _runs_vllm(container: Mapping[str, Any]) -> bool:
    try:
        locate(container, any_image=False)
    except UnmanageableError as error:
        return error.unmanageable.reason is not Reason.NO_VLLM_SERVER
    return True


def read(container: Mapping[str, Any], version: Version | None) -> Server | Unmanageable:
    """What a container's server is started with. Without a version, arguments of any version are accepted."""
    try:
        line = locate(container)
        return _server(line, None if version is None else capabilities(version))
    except UnmanageableError as error:
        return error.unmanageable


def rewrite(
    container: Mapping[str, Any],
    version: Version,
    speculation: Speculation | None,
    *,
    args: Mapping[str, str | None] | None = None,
    env: Mapping[str, str] | None = None,
) -> Rewritten | Unmanageable:
    """The container with another speculative configuration; None removes it.

    `args` are further flags of a profile (None: a switch), `env` variables with plain values: both are set in their old
    place, or added at the end. Arguments that already say what is asked for stay as they are written. With
    speculation removed, `--per-request-spec-decode-metrics` goes too, because vLLM does not start with it alone; where
    arguments are hidden (`--config`, `$EXTRA_ARGS`), `--speculative-config null` comes instead and overrules them.
    """
    try:
        line = locate(container)
        can = capabilities(version)
        before = _server(line, can)
        found = parse(line.words)
        ours = speculative(found)
        if before.form is Form.ENV_REFERENCE and not can.speculative_config:
            raise UnmanageableError(
                Reason.VERSION_CANNOT_EXPRESS,
                f"vLLM {version} does not read {CONFIG} as JSON; write arguments without a variable, or use 0.8.3",
            )
        if speculation is not None and speculation != before.speculation:
            check(
                speculation,
                can,
                v1_engine_forced=_v1_engine_forced(line.environment),
                data_parallel_size=before.data_parallel_size,
            )
        value: str | None = None
        if before.form is Form.ENV_REFERENCE:
            edits = remove(a for a in ours if a.flag == PER_REQUEST_METRICS and speculation is None)
            if speculation != before.speculation:
                value = "null" if speculation is None else to_json(speculation)
        else:
            edits = _speculative_edits(line, before, ours, speculation, can)
        for flag, text in (args or {}).items():
            _check_profile_argument(flag, speculation, can)
            edits += set_argument(found, flag, text, len(line.words))
        rewritten = line.edited(_merged(edits))
        variables = dict(env or {})
        if value is not None and (variable := _reference(line, ours)) is not None:
            variables[variable] = value
        if variables:
            rewritten["env"] = _with_variables(rewritten.get("env") or [], variables)
        return Rewritten(rewritten)
    except UnmanageableError as error:
        return error.unmanageable


def _merged(edits: Iterable[Edit]) -> list[Edit]:
    """All additions at one place as one edit, in order."""
    places: dict[tuple[int, int], tuple[str, ...]] = {}
    for edit in edits:
        places[edit.first, edit.end] = places.get((edit.first, edit.end), ()) + edit.replacement
    return [Edit(first, end, words) for (first, end), words in places.items()]


def _speculative_edits(
    line: CommandLine, before: Server, ours: Sequence[Argument], speculation: Speculation | None, can: Capabilities
) -> list[Edit]:
    metrics = [a for a in ours if a.flag == PER_REQUEST_METRICS]
    configs = [a for a in ours if a.flag != PER_REQUEST_METRICS]
    hidden = before.config_file is not None or bool(before.unseen)
    if speculation == before.speculation and (configs or not hidden or speculation is not None):
        return [] if speculation is not None else remove(metrics)
    if speculation is None and not hidden:
        return remove(ours)
    if not can.speculative_config:
        if speculation is None:
            raise UnmanageableError(
                Reason.CONFIG_FILE_HIDES_ARGUMENTS,
                f"{before.config_file or ' '.join(before.unseen)} may turn speculation on, and vLLM {can.version} "
                "has no argument that turns it off; write the arguments in the container's command",
            )
        return _put(configs, [literal(word) for word in to_legacy_flags(speculation)], len(line.words))
    value = "null" if speculation is None else to_json(speculation)
    gone = remove(metrics) if speculation is None else []
    anchor = configs[0] if configs else None
    if anchor is not None and anchor.flag == CONFIG and anchor.key is None:
        words = [f"{anchor.written}={value}"] if anchor.joined else [anchor.written, value]
    else:
        words = [CONFIG, value]
    return _put(configs, words, len(line.words)) + gone


def _put(old: Sequence[Argument], words: Sequence[str], size: int) -> list[Edit]:
    """The words in the place of the first of the old arguments, or at the end."""
    if not old:
        return [Edit(size, size, tuple(words))]
    return [Edit(old[0].first, old[0].end, tuple(words)), *remove(old[1:])]


def _check_profile_argument(flag: str, speculation: Speculation | None, can: Capabilities) -> None:
    name = canonical(flag.partition(".")[0])
    problem = None
    if not _FLAG.fullmatch(flag):
        problem = "is no flag; write it like --max-num-seqs"
    elif name == PER_REQUEST_METRICS:
        if speculation is None:
            problem = "stops vLLM from starting without speculation; leave it out of this profile"
        elif not can.per_request_metrics:
            problem = f"is not known to vLLM {can.version}; leave it out or use 0.29 or newer"
    elif name in SPECULATIVE:
        problem = "is written by the operator; use the profile's own fields"
    elif name == "--config":
        problem = "hides arguments; write them in the profile"
    if problem is not None:
        raise UnmanageableError(Reason.INVALID_PROFILE_ARGUMENT, f"the profile's argument {flag!r} {problem}")


def _with_variables(old: Sequence[Any], variables: Mapping[str, str]) -> list[Any]:
    """The `env` list with some variables set: in place of the last entry of that name, which is the one that counts."""
    entries = list(old)
    for name, value in variables.items():
        entry = {"name": name, "value": value}
        places = [i for i, e in enumerate(entries) if isinstance(e, Mapping) and e.get("name") == name]
        if places:
            entries[places[-1]] = entry
        else:
            entries.append(entry)
    return entries


def _v1_engine_forced(environment: Environment) -> bool:
    return environment.values.get("VLLM_USE_V1") == "1"


def _server(line: CommandLine, can: Capabilities | None) -> Server:
    found = parse(line.words)
    ours = speculative(found)
    positional = [a for a in found if a.flag == ""]
    model = last(found, "--model")
    if model is None and positional and not line.words[positional[0].first].many:
        model = positional.pop(0)
    name = model.value if model else None
    config = last(found, "--config")
    unseen = [line.words[a.first].source for a in positional if a.value is None]
    return Server(
        model=name,
        served_model_name=argument.value if (argument := last(found, "--served-model-name")) else name,
        port=_number(found, "--port", 8000),
        speculation=read_config(ours, can, _v1_engine_forced(line.environment)),
        tensor_parallel_size=_number(found, "--tensor-parallel-size", 1),
        pipeline_parallel_size=_number(found, "--pipeline-parallel-size", 1),
        data_parallel_size=_number(found, "--data-parallel-size", 1),
        max_num_seqs=_number(found, "--max-num-seqs", None),
        max_num_batched_tokens=_number(found, "--max-num-batched-tokens", None),
        enforce_eager=_switched_on(found, "--enforce-eager"),
        graph_limit=_graph_limit(found),
        log_stats=not _switched_on(found, "--disable-log-stats"),
        config_file=(config.value or line.words[config.end - 1].source) if config else None,
        unseen=tuple(unseen),
        may_bring_speculation="speculator" in (name or "").lower(),
        form=_form(line, ours),
    )


def _number(found: Sequence[Argument], flag: str, default: int | None) -> int | None:
    argument = last(found, flag)
    if argument is None:
        return default
    return int(argument.value) if argument.value and re.fullmatch(r"[0-9]{1,9}", argument.value) else None


def _graph_limit(found: Sequence[Argument]) -> int | None:
    """From `--max-cudagraph-capture-size`, or the same key or the list of sizes in `--compilation-config`."""
    if (limit := _number(found, "--max-cudagraph-capture-size", None)) is not None:
        return limit
    config = last(found, "--compilation-config")
    try:
        written = json.loads(config.value or "") if config else None
    except ValueError:
        return None
    if not isinstance(written, dict):
        return None
    sizes = written.get("cudagraph_capture_sizes")
    limit = written.get("max_cudagraph_capture_size", max(sizes, default=None) if isinstance(sizes, list) else None)
    return limit if isinstance(limit, int) else None


def _switched_on(found: Sequence[Argument], flag: str) -> bool:
    states = [a for a in found if a.flag in (flag, flag.replace("--", "--no-", 1))]
    return bool(states) and states[-1].flag == flag and (states[-1].value or "").lower() != "false"


def _form(line: CommandLine, ours: Sequence[Argument]) -> Form:
    if _reference(line, ours) is not None:
        return Form.ENV_REFERENCE
    return Form.ARGV if line.script is None else Form.SHELL


def _reference(line: CommandLine, ours: Sequence[Argument]) -> str | None:
    """The variable with a plain value that the one speculative argument refers to."""
    configs = [a for a in ours if a.flag != PER_REQUEST_METRICS]
    if len(configs) != 1 or configs[0].flag != CONFIG or configs[0].key is not None:
        return None
    word = line.words[configs[0].end - 1]
    return word.reference if line.environment.values.get(word.reference or "") is not None else None
