"""vLLM's arguments as its own parser reads them, each with its place among the words of the command line.

The parser is vLLM's `FlexibleArgumentParser` (utils/argparse_utils.py; utils.py up to 0.10): `--flag value` and
`--flag=value`, underscores for dashes up to the first dot, `--flag.key value` for one key of a JSON value, the last
one wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_ALIASES = {
    "-sc": "--speculative-config",
    "-spec-draft-tp": "--speculative-draft-tensor-parallel-size",
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-q": "--quantization",
    "-O": "--compilation-config",
    "-cc": "--compilation-config",
}
_SWITCHES = frozenset(
    {
        "--speculative-disable-mqa-scorer",
        "--disable-logprobs-during-spec-decoding",
        "--enforce-eager",
        "--specialize-active-lora",
        "--trust-remote-code",
        "--async-scheduling",
        "--fully-sharded-loras",
        "--language-model-only",
        "--calculate-kv-scales",
        "--return-tokens-as-token-ids",
        "--headless",
        "--use-v2-block-manager",
        "--ray-workers-use-nsight",
    }
)
_SWITCH_PREFIXES = ("--no-", "--enable-", "--disable-", "--skip-")
_VALUED = frozenset({"--speculative-disable-by-batch-size"})
_MANY_VALUES = frozenset(
    {
        "--served-model-name",
        "--lora-modules",
        "--prompt-adapters",
        "--api-key",
        "--middleware",
        "--cudagraph-capture-sizes",
        "--data-parallel-rpc-ports",
        "--override-attention-dtype",
    }
)


@dataclass(frozen=True)
class Word:
    """One word of a command line."""

    text: str | None
    """What vLLM receives; None where the manifest alone does not say."""
    source: str
    """As the manifest has it."""
    start: int
    end: int
    """Its place: indices of `command + args`, or bytes of a shell script."""
    fixed: bool = False
    """Whether it comes out of a variable together with other words, so that it cannot be changed here."""
    many: bool = False
    """Whether it may become any number of words when the container starts."""
    reference: str | None = None
    """The environment variable whose value is the whole word, or all that follows its `=`."""


@dataclass(frozen=True)
class Argument:
    """A flag with its values; a positional argument has the flag ''."""

    flag: str
    """Its full name with dashes, without key and value."""
    key: str | None
    """`b.c` of `--flag.b.c`."""
    written: str
    """The flag as it is written, without the value."""
    joined: bool
    """Whether it is written `--flag=value`."""
    values: tuple[str | None, ...]
    first: int
    end: int
    """Its words are `words[first:end]`."""

    @property
    def value(self) -> str | None:
        """The (first) value; None where it has none or it is not known."""
        return self.values[0] if self.values else None


_FLAG_OF_UNKNOWN = re.compile(r"""["']?(--?[A-Za-z][\w.-]*)=""")


def _flag_of_unknown(word: Word) -> str | None:
    """The flag of `--flag=$(UNKNOWN)`."""
    found = _FLAG_OF_UNKNOWN.match(word.source) if word.text is None else None
    return found[1] if found else None


def _is_flag(word: Word) -> bool:
    if _flag_of_unknown(word) is not None:
        return True
    text = word.text
    return text is not None and len(text) > 1 and text[0] == "-" and not text[1].isdigit() and text[1] != "."


_SHORTEST = {
    "--max-num-seqs": "--max-num-se",
    "--max-num-batched-tokens": "--max-num-b",
    "--tensor-parallel-size": "--tensor-p",
    "--pipeline-parallel-size": "--pipeline-p",
    "--enforce-eager": "--enforce",
}
"""Flags that we read, and what argparse takes for them at the shortest in every release that was checked."""


def canonical(flag: str) -> str:
    """The full name of a flag (without key and value): `--tensor_parallel_size`, `-tp` → `--tensor-parallel-size`."""
    if not flag.startswith("--"):
        return _ALIASES.get(flag, flag)
    name = flag.replace("_", "-")
    return next((full for full, least in _SHORTEST.items() if full.startswith(name) and name.startswith(least)), name)


def is_switch(flag: str) -> bool:
    """Whether a flag stands alone: those we know, and whatever is named like a switch."""
    return flag not in _VALUED and (flag in _SWITCHES or flag.startswith(_SWITCH_PREFIXES))


def parse(words: Sequence[Word]) -> tuple[Argument, ...]:
    """The arguments that the words after `vllm serve` make up, in their order."""
    arguments: list[Argument] = []
    at = 0
    while at < len(words):
        word = words[at]
        if (hidden := _flag_of_unknown(word)) is None and not _is_flag(word):
            arguments.append(Argument("", None, "", False, (word.text,), at, at + 1))
            at += 1
            continue
        written, joined, value = (hidden, "=", None) if hidden else (word.text or "").partition("=")
        if any(c.isspace() for c in written):  # argparse takes it for a positional argument
            written, joined, value = word.text or "", "", ""
        name, _, key = written.partition(".")
        flag = canonical(name)
        values: tuple[str | None, ...] = (value,) if joined else ()
        end = at + 1
        if not joined and end < len(words) and (key or not _is_flag(words[end])):
            if key:  # taken out before argparse sees it, whatever comes next
                end += 1
            elif flag in _MANY_VALUES:
                while end < len(words) and not _is_flag(words[end]):
                    end += 1
            elif not is_switch(flag) or (words[end].text or "").lower() in ("true", "false"):
                end += 1
            values = tuple(w.text for w in words[at + 1 : end])
        arguments.append(Argument(flag, key or None, written, bool(joined), values, at, end))
        at = end
    return tuple(arguments)


def last(arguments: Iterable[Argument], flag: str) -> Argument | None:
    """The occurrence of a flag that counts."""
    found = [argument for argument in arguments if argument.flag == flag and argument.key is None]
    return found[-1] if found else None


@dataclass(frozen=True)
class Edit:
    """Puts `replacement` in the place of `words[first:end]`."""

    first: int
    end: int
    replacement: tuple[str, ...]


def set_argument(arguments: Sequence[Argument], flag: str, value: str | None, size: int) -> list[Edit]:
    """The edits after which vLLM sees `flag` with `value` (None: a bare switch), in its old place if it had one.

    `size`: how many words there are. A flag `--a.b` sets one key of a JSON value; `--a` all of it.
    """
    written, _, key = flag.partition(".")
    name = canonical(written)
    opposite = name.replace("--no-", "--", 1) if name.startswith("--no-") else name.replace("--", "--no-", 1)
    present = [a for a in arguments if a.flag in (name, opposite) and (not key or a.key == key)]
    if not present:
        return [Edit(size, size, (flag,) if value is None else (flag, value))]
    counts = present[-1]
    same = counts.flag == name and (counts.key or "") == key
    keyed = [a for a in present[:-1] if a.key is not None]
    if same and not keyed and counts.values == (() if value is None else (value,)):
        return []
    spelling = counts.written if same else flag
    if value is None:
        words: tuple[str, ...] = (spelling,)
    else:
        words = (f"{spelling}={value}",) if counts.joined else (spelling, value)
    return [*remove(keyed), Edit(counts.first, counts.end, words)]


def remove(gone: Iterable[Argument]) -> list[Edit]:
    """The edits that take arguments away."""
    return [Edit(argument.first, argument.end, ()) for argument in gone]
