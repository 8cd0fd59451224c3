"""Where a container's command has the arguments of its vLLM server, and how to change some of them alone."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdecode.vllm.arguments import Edit, Word
from specdecode.vllm.environment import Environment
from specdecode.vllm.shell import SHELLS, Script, after_server, basename, read_script
from specdecode.vllm.unmanageable import Reason, UnmanageableError

_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_REFERENCE = re.compile(rf"(?:--?[\w-]+=)?\$\(({_NAME.pattern})\)")
_NOT_A_SERVER = re.compile(r"router|gateway|proxy|exporter|lmcache-server|controller|operator|bench|client|ui\b|webui")


@dataclass(frozen=True)
class CommandLine:
    """The words of the server's arguments, and where they live."""

    container: Mapping[str, Any]
    words: tuple[Word, ...]
    argv: tuple[str, ...]
    """`command + args`."""
    commands: int
    """How many of `argv` are `command`."""
    element: int
    """The element of `argv` that is the script, or after which arguments without a word of their own go."""
    script: Script | None
    environment: Environment

    def edited(self, edits: Sequence[Edit]) -> dict[str, Any]:
        """The container with some words replaced. Raises `UnmanageableError` for one that stands in a variable."""
        container = copy.deepcopy(dict(self.container))
        edits = [edit for edit in edits if edit.first < edit.end or edit.replacement]
        for word in (word for edit in edits for word in self.words[edit.first : edit.end]):
            if word.fixed:
                raise UnmanageableError(
                    Reason.ARGUMENT_NOT_READABLE,
                    f"{word.text} comes out of {word.source}; write it in the container's command itself",
                )
        if not edits:
            return container
        command, args = list(self.argv[: self.commands]), list(self.argv[self.commands :])
        if self.script is not None:
            text = self.script.splice([self._splice(edit) for edit in edits])
            (command if self.element < self.commands else args)[self._index(self.element)] = text
        else:
            for edit in sorted(edits, key=lambda e: (e.first, e.end), reverse=True):
                self._replace(command, args, edit)
        for field, new in (("command", command), ("args", args)):
            if new:
                container[field] = new
            elif container.get(field):
                del container[field]
        return container

    def _index(self, element: int) -> int:
        return element if element < self.commands else element - self.commands

    def _replace(self, command: list[str], args: list[str], edit: Edit) -> None:
        """Replaces words of the lists; new words go where the first old one was, or after the word before."""
        for word in reversed(self.words[edit.first : edit.end]):
            target = command if word.start < self.commands else args
            del target[self._index(word.start)]
        if edit.first < edit.end:
            at = self.words[edit.first].start
            target, index = (command if at < self.commands else args), self._index(at)
        else:
            before = self.words[edit.first - 1].start if edit.first else self.element
            target = command if 0 <= before < self.commands else args
            index = self._index(before) + 1
        target[index:index] = edit.replacement

    def _splice(self, edit: Edit) -> tuple[int, int, str]:
        assert self.script is not None
        before = self.words[edit.first - 1].end if edit.first else self.script.server_end
        new = " ".join(_quoted(word) for word in edit.replacement)
        if edit.first == edit.end:
            return before, before, f" {new}"
        end = self.words[edit.end - 1].end
        return (self.words[edit.first].start, end, new) if new else (before, end, "")


def _quoted(word: str) -> str:
    """A word for a shell; `--flag=value` keeps its flag in plain sight."""
    flag = re.match(r"--?[\w.-]+=", word)
    return word[: flag.end()] + shlex.quote(word[flag.end() :]) if flag else shlex.quote(word)


def locate(container: Mapping[str, Any], any_image: bool = True) -> CommandLine:
    """Finds the server's arguments. Raises `UnmanageableError` where there is no server, or doubt about it.

    Arguments alone, without a command, are a server's if the image is one of vLLM's or, with `any_image`, if they name
    a model as vLLM does.
    """
    command, args = _texts(container, "command"), _texts(container, "args")
    argv = command + args
    environment = Environment.of(container)
    texts = [environment.expand(element) for element in argv]
    commands = len(command)

    def line(first: int, element: int) -> CommandLine:
        words = tuple(_word(i, argv[i], texts[i]) for i in range(first, len(argv)))
        return CommandLine(container, words, tuple(argv), commands, element, None, environment)

    first = after_server(texts)
    if first is not None:
        if after_server(texts[first:]) is not None:
            raise UnmanageableError(
                Reason.COMMAND_NOT_UNDERSTOOD, f"{_where(container)} names the server twice; leave one"
            )
        return line(first, first - 1)
    if (at := _script_at(texts, bool(command))) is not None:
        script = read_script(argv[at], environment, has_arguments=len(argv) > at + 2)
        if script is not None:
            return CommandLine(container, script.words, tuple(argv), commands, at, script, environment)
    elif not command and (_vllm_image(container) or (any_image and _names_model(texts))):
        first = 1 if texts[:1] == ["serve"] else 0
        return line(first, first - 1)
    raise UnmanageableError(Reason.NO_VLLM_SERVER, f"{_where(container)} {_why_no_server(texts, at, bool(command))}")


def _texts(container: Mapping[str, Any], field: str) -> list[str]:
    elements = container.get(field) or []
    if not isinstance(elements, list) or not all(isinstance(element, str) for element in elements):
        raise UnmanageableError(
            Reason.COMMAND_NOT_UNDERSTOOD, f"{_where(container)}: {field} must be a list of strings"
        )
    return elements


def _where(container: Mapping[str, Any]) -> str:
    return f"container {container.get('name', '(without a name)')}"


def _why_no_server(texts: Sequence[str | None], script: int | None, has_command: bool) -> str:
    if script is not None:
        return "runs a shell command that does not start vLLM; write `vllm serve …` in it, not in a file that it calls"
    if has_command:
        return f"runs {texts[0]}, which is no vLLM server; start it with command: [vllm, serve, MODEL, …]"
    return "has no command, and its image is not known to start vLLM; write command: [vllm, serve, MODEL, …]"


def _vllm_image(container: Mapping[str, Any]) -> bool:
    """Whether an image's entrypoint is the vLLM server, by its name."""
    path, _, name = str(container.get("image", "")).split("@", 1)[0].rpartition("/")
    name = name.partition(":")[0]
    return ("vllm" in name or path.rpartition("/")[2] == "vllm") and not _NOT_A_SERVER.search(name)


def _names_model(texts: Sequence[str | None]) -> bool:
    return texts[:1] == ["serve"] or any(text is not None and re.match(r"--model(=|$)", text) for text in texts)


def _script_at(texts: Sequence[str | None], has_command: bool) -> int | None:
    """Which element is a script for a shell: the first after its options, one of which holds a `c`."""
    start = next((i for i, text in enumerate(texts) if text is not None and basename(text) in SHELLS), None)
    if start is None:
        if has_command or not texts or not re.fullmatch(r"-[a-z]*c", texts[0] or ""):
            return None
        start = -1  # the arguments of an image whose entrypoint is a shell
    at, takes_script = start + 1, False
    while at < len(texts) and (option := texts[at]) is not None and option[:1] in ("-", "+") and len(option) > 1:
        short = not option.startswith("--")
        takes_script = takes_script or (short and "c" in option)
        at += 2 if short and "o" in option[1:] else 1
    return at if takes_script and at < len(texts) else None


def _word(index: int, source: str, text: str | None) -> Word:
    found = _REFERENCE.fullmatch(source)
    return Word(text, source, index, index + 1, reference=found[1] if found else None)
