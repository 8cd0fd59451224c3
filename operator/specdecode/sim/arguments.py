"""vLLM's command line, as far as a simulated server needs it: what a version knows is parsed, what it does not know is
refused as vLLM refuses it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from specdecode.sim.flags import SWITCHES, VALUE_FLAGS
from specdecode.sim.speculative_config import ConfigError, accept
from specdecode.vllm.capabilities import Capabilities, capabilities
from specdecode.vllm.dialect import LEGACY
from specdecode.vllm.speculation import Method, Speculation
from specdecode.vllm.version import Version

OLDEST = Version(0, 8, 0)
"""The first release whose V1 engine and metrics the simulator follows."""


class ArgumentsError(Exception):
    """vLLM would print this and exit with `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ServeArguments:
    """What the simulator takes from the command line."""

    model: str
    served_model_names: tuple[str, ...]
    host: str | None
    port: int
    api_keys: tuple[str, ...]
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    data_parallel_size: int
    enable_prefix_caching: bool
    stream_interval: int
    log_stats: bool
    seed: int | None
    speculation: Speculation | None
    synthetic_rates: tuple[float, ...]
    fails_late: str | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentsError(f"usage: {self.prog} [model_tag] [options]\n{self.prog}: error: {message}", 2)


def strip_launcher(argv: Sequence[str]) -> tuple[str, list[str]]:
    """(program name, its arguments) of a command line that may start as a container's command does.

    `serve M …`, `vllm serve M …`, `python3 -m vllm.entrypoints.openai.api_server --model M …` and bare arguments are
    the same server.
    """
    words = list(argv)
    if words and Path(words[0]).name.startswith("python"):
        words = words[1:]
    if words[:1] == ["-m"] or words[:1] == ["-u"]:
        words = words[words.index("-m") + 1 :] if "-m" in words else words[1:]
        if words and words[0].startswith("vllm.entrypoints"):
            words = words[1:] if words[0] != "vllm.entrypoints.cli.main" else ["vllm", *words[1:]]
            if words[:1] != ["vllm"]:
                return "api_server.py", words
    if words and Path(words[0]).name == "vllm":
        words = words[1:]
    if words[:1] == ["serve"]:
        words = words[1:]
    return "vllm serve", words


def parse_arguments(argv: Sequence[str], version: Version) -> ServeArguments:
    """Parse a server's command line as vLLM `version` would. Raises ArgumentsError with vLLM's message and exit
    status."""
    can = capabilities(version)
    prog, words = strip_launcher(argv)
    parser = _parser(prog, can)
    words = _fold_dotted(_dashes(words))
    if config_file := _config_file(words):
        positional = words[:1] if words and not words[0].startswith("-") else []
        words = [*positional, *_fold_dotted(_read_config_file(config_file)), *words[len(positional) :]]
    args = parser.parse_args(words)
    model = args.model_tag or args.model or "Qwen/Qwen3-0.6B"
    names = tuple(args.served_model_name or [model])
    config = _speculative_config(args, can)
    accepted = None
    if config is not None:
        sizes = {"target_tp": args.tensor_parallel_size, "data_parallel": args.data_parallel_size}
        try:
            accepted = accept(config, can, max_num_seqs=args.max_num_seqs, **sizes)
        except ConfigError as error:
            raise ArgumentsError(str(error), 1) from error
        if args.async_scheduling and accepted.speculation.method is Method.NGRAM and version < Version(0, 33):
            message = "ValueError: Currently, async scheduling is not supported with ngram speculative decoding."
            raise ArgumentsError(message, 1)
    elif getattr(args, "per_request_spec_decode_metrics", None) not in (None, "none"):
        raise ArgumentsError("ValueError: --per-request-spec-decode-metrics requires a speculative config.", 1)
    return ServeArguments(
        model=model,
        served_model_names=names,
        host=args.host,
        port=args.port,
        api_keys=tuple(args.api_key or ()),
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        gpu_memory_utilization=args.gpu_memory_utilization,
        data_parallel_size=args.data_parallel_size,
        enable_prefix_caching=args.enable_prefix_caching,
        stream_interval=args.stream_interval,
        log_stats=not args.disable_log_stats,
        seed=args.seed,
        speculation=accepted.speculation if accepted else None,
        synthetic_rates=accepted.synthetic_rates if accepted else (),
        fails_late=accepted.fails_late if accepted else None,
    )


def _parser(prog: str, can: Capabilities) -> _Parser:
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("model_tag", nargs="?")
    add("--model")
    add("--config")
    add("--served-model-name", nargs="+")
    add("--host")
    add("--port", type=int, default=8000)
    add("--api-key", nargs="*")
    add("--lora-modules", nargs="+")
    add("--max-model-len", type=_tokens, default=32768)
    add("--max-num-seqs", type=int, default=256)
    add("--max-num-batched-tokens", type=_tokens, default=8192)
    add("--gpu-memory-utilization", type=float, default=0.9)
    add("--tensor-parallel-size", "-tp", type=int, default=1)
    add("--data-parallel-size", "-dp", type=int, default=1)
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    add("--async-scheduling", action=argparse.BooleanOptionalAction)
    add("--stream-interval", type=int, default=1)
    add("--seed", type=int)
    add("--dtype")
    add("--quantization", "-q")
    short = {"pipeline-parallel-size": ["-pp"], "api-server-count": ["-asc"], "compilation-config": ["-cc"]}
    for flag in VALUE_FLAGS:
        add(f"--{flag}", *short.get(flag, []))
    for flag in SWITCHES:
        add(f"--{flag}", action=argparse.BooleanOptionalAction)
    if can.reads_speculative_config:
        add("--speculative-config", *(["-sc"] if can.short_config_flag else []))
    if can.short_flags:
        add("--spec-method")
        add("--spec-model")
        add("--spec-tokens", type=int)
    if can.per_request_metrics:
        add("--per-request-spec-decode-metrics")
    if can.legacy_flags:
        for legacy in LEGACY:
            if legacy.kind is bool:
                add(legacy.flag, action="store_true", default=None)
            else:
                add(legacy.flag, type=legacy.kind)
    return parser


def _tokens(text: str) -> int:
    """`4096`, or `4k` (thousand) and `4K` (1024), as vLLM's human_readable_int."""
    scale = {"k": 1000, "m": 10**6, "K": 1024, "M": 1024**2}.get(text[-1:], 1)
    return int(float(text[:-1]) * scale) if scale > 1 else int(text)


def _dashes(words: Sequence[str]) -> list[str]:
    """Underscores in flag names are dashes, as FlexibleArgumentParser reads them; keys behind a dot stay."""

    def dashed(word: str) -> str:
        if not word.startswith("--"):
            return word
        name, equals, value = word.partition("=")
        flag, dot, key = name.partition(".")
        return flag.replace("_", "-") + dot + key + equals + value

    return [dashed(w) for w in words]


def _fold_dotted(words: Sequence[str]) -> list[str]:
    """`--speculative-config.method ngram -sc.num_speculative_tokens 3` -> `--speculative-config {"method": …}`."""
    rest: list[str] = []
    folded: dict[str, dict[str, Any]] = {}
    pending = iter(words)
    for word in pending:
        name, equals, value = word.partition("=")
        if not name.startswith("-") or "." not in name or name.lstrip("-")[:1].isdigit():
            rest.append(word)
            continue
        flag, _, path = name.partition(".")
        text = value if equals else next(pending, "")
        target = folded.setdefault(flag, {})
        *parents, last = path.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = _json_or_text(text)
    return rest + [word for flag, values in folded.items() for word in (flag, json.dumps(values))]


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _config_file(words: Sequence[str]) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--config":
            return following
        if word.startswith("--config="):
            return word.removeprefix("--config=")
    return None


def _read_config_file(path: str) -> list[str]:
    import yaml  # only a server with a file pays for it

    if not path.endswith((".yaml", ".yml")):
        raise ArgumentsError(f"ValueError: Config file must be of a yaml/yml type. {path} supplied", 1)
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ArgumentsError(f"Unable to read the config file at {path}: {error}", 1) from error
    words: list[str] = []
    for key, value in content.items():
        flag = f"--{str(key).replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, dict):
            words += [flag, json.dumps(value)]
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words


def _speculative_config(args: argparse.Namespace, can: Capabilities) -> Mapping[str, Any] | None:
    """The configuration of all spellings together; None for none."""
    if can.legacy_flags and args.speculative_model:
        found = {legacy.key: getattr(args, legacy.flag[2:].replace("-", "_")) for legacy in LEGACY}
        return {key: value for key, value in found.items() if value is not None}
    text = getattr(args, "speculative_config", None)
    config = _json_or_text(text) if text else None
    if config is not None and not isinstance(config, dict):
        message = f"argument --speculative-config: Value {text} cannot be converted to <function loads>."
        raise ArgumentsError(f"vllm serve: error: {message}", 2)
    if config == {}:
        raise ArgumentsError("ValueError: the speculative config is empty", 1)
    for key, name in (("method", "method"), ("model", "model"), ("num_speculative_tokens", "tokens")):
        value = getattr(args, f"spec_{name}", None)
        if value is None:
            continue
        if config and key in config:
            raise ArgumentsError(f"ValueError: --spec-{name} and '{key}' of --speculative-config exclude each other", 1)
        config = {**(config or {}), key: value}
    return config
