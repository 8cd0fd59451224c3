"""The vLLM server in a shell script, with the place of each of its words.

tree-sitter's bash grammar finds the words; here they are expanded as far as the manifest alone says what comes out.
What is in doubt is refused: a script that does not parse, two servers, a server inside another shell's script.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

from specdecode.vllm.arguments import Word
from specdecode.vllm.environment import Environment
from specdecode.vllm.speculative_arguments import MENTION
from specdecode.vllm.unmanageable import Reason, UnmanageableError

_GAP = re.compile(rb"(?:\\\n)*[ \t](?:[ \t]|\\\n)*")
"""What separates two words. (The shell joins what stands around a backslash and newline; the grammar does not.)"""
_ONE_WORD = re.compile(rb"""(?s)(?!#)(?:[^\s"'\\`;&|<>()]|\\.|'[^']*'|"(?:[^"\\`]|\\.)*")*""")
_EXPANSIONS = frozenset(
    ("simple_expansion", "expansion", "command_substitution", "process_substitution", "arithmetic_expansion")
)
_END = re.compile(rb"(?:[ \t]|\\\n)*(?:\Z|[\n;&|)<>`#]|\d+[<>])")
"""What may follow a command."""
_PLAIN = bytes(byte if byte in b"\t\n" or 32 <= byte < 127 else ord("%") for byte in range(256))
"""What the grammar is shown: bytes that are letters to a shell, but crash the grammar's scanner or are blanks to it."""
SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh"})

_API_SERVERS = frozenset({"vllm.entrypoints.openai.api_server", "vllm_tgis_adapter"})
_API_SERVER_FILE = "vllm/entrypoints/openai/api_server.py"
_BYSTANDERS = frozenset(
    (
        *(
            "echo",
            "printf",
            "log",
            "trap",
            "pkill",
            "pgrep",
            "grep",
            "egrep",
            "which",
            "type",
            "cat",
            "ls",
            "test",
            "[",
        ),
        *("ps", "kill", "killall", "pip", "pip3", ":"),
    )
)
"""Commands that may name the server without starting it."""
_SETTERS = frozenset(
    ["read", "unset", "local", "declare", "typeset", "readonly", "mapfile", "readarray", "getopts", "printf"]
)
_SERVER_TEXT = re.compile(r"\bvllm\s+serve\b|vllm\.entrypoints\.openai\.api_server|" + re.escape(_API_SERVER_FILE))
_ARGUMENTS = re.compile(r"\$[@*]|\$\{[@*]")
_ALL_ARGUMENTS = frozenset({"$@", '"$@"', "${@}", '"${@}"', "$*"})
_REFERENCE = re.compile(
    r"""(?x) (?:--?[\w-]+=)? "\$ (?: \{(\w+)\} | (\w+) )" | (?:--?[\w-]+=)? '\$\(([\w.-]+)\)'
    | "(?:--?[\w-]+=) \$ (?: \{(\w+)\} | (\w+) )" | '(?:--?[\w-]+=) \$\(([\w.-]+)\)'"""
)
"""A word that is a quoted variable and nothing else, but for a flag before it."""


def basename(word: str) -> str:
    """The last part of a path."""
    return word.rsplit("/", 1)[-1]


def after_server(words: Sequence[str | None]) -> int | None:
    """Where the arguments of the vLLM server begin that the words of a command start; None if they start none."""
    for i, word in enumerate(words):
        if word is None:
            continue
        following = words[i + 1] if i + 1 < len(words) else None
        if basename(word) == "vllm" and following == "serve":
            return i + 2
        if word == "-m" and following in _API_SERVERS:
            return i + 2
        if following == "vllm.entrypoints.cli.main" and list(words[i + 2 : i + 3]) == ["serve"]:
            return i + 3
        if word.endswith(_API_SERVER_FILE) or (word.startswith("-m") and word[2:] in _API_SERVERS):
            return i + 1
    return None


@dataclass(frozen=True)
class Script:
    """A script that starts one vLLM server: `words` are those of its arguments, places in bytes of `source`."""

    source: str
    words: tuple[Word, ...]
    server_end: int
    """Where the words that start the server end: the place for arguments if there are none."""

    def splice(self, edits: Sequence[tuple[int, int, str]]) -> str:
        """The script with other text in the place of some byte ranges."""
        text = _encode(self.source)
        for start, end, replacement in sorted(edits, reverse=True):
            text = text[:start] + _encode(replacement) + text[end:]
        return text.decode("utf-8", "surrogatepass")


def read_script(source: str, environment: Environment, has_arguments: bool) -> Script | None:
    """Finds the server in a script; None if there is none. `has_arguments`: whether `$1`, `$2`, … are set.

    Raises `UnmanageableError` where it is in doubt which words the server gets.
    """
    return _Reader(source, environment, has_arguments).script()


@cache
def _parser() -> Parser:
    return Parser(Language(tree_sitter_bash.language()))


@dataclass(frozen=True)
class _Origin:
    """Where the expanded text from byte `at` on comes from: these bytes of the source, as they are or substituted."""

    at: int
    start: int
    end: int
    copied: bool


class _Reader:
    """A script as the shell gets it, after the kubelet's expansion, with the way back to the bytes of the source."""

    def __init__(self, source: str, environment: Environment, has_arguments: bool) -> None:
        self.source, self.environment, self.has_arguments = source, environment, has_arguments
        self.origins: list[_Origin] = []
        self.unknown: list[tuple[int, int]] = []
        parts: list[bytes] = []
        at = source_at = 0
        for piece in environment.pieces(source):
            written = _encode(source[piece.start : piece.end])
            text = written if piece.text is None else _encode(piece.text)
            if piece.text is None:
                self.unknown.append((at, at + len(text)))
            self.origins.append(_Origin(at, source_at, source_at + len(written), not piece.substituted))
            parts.append(text)
            at += len(text)
            source_at += len(written)
        self.text = b"".join(parts)
        self.bytes = _encode(source)
        self.root = _parser().parse(self.text.translate(_PLAIN)).root_node
        self.assigned: dict[str, tuple[int, str | None]] = {}
        self._note_assignments()

    def script(self) -> Script | None:
        servers = []
        nested: Node | None = None
        for command in _nodes(self.root, "command"):
            words = self.words(command)
            texts = [word.text for word in words]
            name = basename(texts[0] or "") if texts else ""
            if name in _BYSTANDERS or (name == "command" and texts[1:2] == ["-v"]):
                continue
            if (first := after_server(texts)) is not None:
                servers.append((command, words[:first], words[first:]))
            elif _SERVER_TEXT.search(self._text(command)):
                nested = command
        if self.root.has_error and (servers or nested or _SERVER_TEXT.search(_decode(self.text))):
            raise _not_understood(f"the shell command does not parse (line {self._error_line()})", "simplify it")
        if nested is not None:
            raise _not_understood(
                f"the server is started inside another command's text: {self._text(nested)[:80]!r}",
                "start vllm serve directly in the container's command",
            )
        if not servers:
            return None
        if len(servers) > 1:
            raise _not_understood(f"the shell command starts vLLM in {len(servers)} places", "leave one of them")
        command, starts, words = servers[0]
        self._check_surroundings(command, words)
        words = [word for word in words if word.source not in _ALL_ARGUMENTS]  # there are none
        return Script(self.source, tuple(words), starts[-1].end)

    def _check_surroundings(self, command: Node, words: Sequence[Word]) -> None:
        ends = [None, *(node.end_byte for node in command.children)]
        for end, node in zip(ends, command.children, strict=False):
            separate = end is None or _GAP.fullmatch(self.text, end, node.start_byte)
            if not separate or not (node.type.endswith("_redirect") or self._is_one_word(node)):
                raise _not_understood(
                    f"{self._text(node)[:40]!r} is not clearly a word of its own", "put spaces around it, or quotes"
                )
        for redirect in (child for node in _ancestors(command) for child in node.children):
            # the grammar takes words after `> file` for further files; the shell, for arguments
            files = len(redirect.children_by_field_name("destination"))
            if redirect.type == "heredoc_redirect" or (redirect.type == "file_redirect" and files > 1):
                raise _not_understood("the server has arguments after a redirection", "write the redirection last")
        if not _END.match(self.text, command.end_byte):
            raise _not_understood("it is not clear where the server's arguments end", "end them with a new line")
        in_function = any(node.type == "function_definition" for node in _ancestors(command))
        for word in words:
            if word.text is not None or not _ARGUMENTS.search(word.source):
                continue
            if self.has_arguments or in_function or word.source not in _ALL_ARGUMENTS:
                raise _not_understood(f"the server takes arguments from {word.source}", "write them after vllm serve")
        outside = bytearray(self.text)
        for node in [command, *_nodes(self.root, "comment")]:
            outside[node.start_byte : node.end_byte] = b" " * (node.end_byte - node.start_byte)
        if found := MENTION.search(_decode(outside)):
            raise _not_understood(
                f"the shell command has {found[0]}… outside the server's own words", "write it after vllm serve"
            )

    def words(self, command: Node) -> list[Word]:
        """The words of a command, its name first."""
        nodes = [n for n in command.children if n.type != "variable_assignment" and not n.type.endswith("_redirect")]
        return [word for node in nodes for word in self._expanded(node)]

    def _is_one_word(self, node: Node) -> bool:
        """Whether a node is one word by the shell's own rules; the grammar is more generous in places."""
        text = bytearray(self.text[node.start_byte : node.end_byte])
        for inner in _nodes(node):
            if inner.type in _EXPANSIONS:
                start, end = inner.start_byte - node.start_byte, inner.end_byte - node.start_byte
                text[start:end] = b"$" * (end - start)
        return _ONE_WORD.fullmatch(text) is not None

    def _expanded(self, node: Node) -> Iterator[Word]:
        start, end, whole = self._place(node)
        written = _decode(self.bytes[start:end])
        if node.type == "command_name":
            node = node.named_children[0] if node.named_child_count == 1 else node
        bare = node.type in _EXPANSIONS
        text = None if bare and "IFS" in self.assigned else self.value(node)
        if bare and text is not None:
            parts = text.split()
            for part in parts:
                glob = _special(part, braces=False)
                yield Word(None if glob else part, written, start, end, fixed=not whole or len(parts) > 1, many=glob)
            return
        if text == "" and not any(quote in written for quote in "'\"\\"):
            return
        found = _REFERENCE.fullmatch(written)
        reference = next((name for name in found.groups() if name), None) if found else None
        if reference in self.assigned:
            reference = None
        quoted = node.type in ("string", "raw_string", "word", "number", "ansi_c_string") or (
            node.type == "concatenation"
            and not any(c.type.endswith(("expansion", "substitution")) for c in node.children)
        )
        many = text is None and (not quoted or "$@" in written or "[@]" in written or self._braces(node))
        yield Word(text, written, start, end, fixed=not whole, many=many, reference=reference)

    def value(self, node: Node) -> str | None:
        """What a word becomes; None where that is not known."""
        if any(start < node.end_byte and node.start_byte < end for start, end in self.unknown):
            return None
        text = self._text(node)
        match node.type:
            case "word" | "number":
                return None if _special(text) else _unescape(text, r"(?s)\\(.)")
            case "$":
                return text
            case "raw_string":
                return text[1:-1]
            case "string":
                return self._string(node)
            case "simple_expansion" | "expansion":
                return self._variable(node)
            case "concatenation" | "command_name":
                edges = [(a.end_byte, b.start_byte) for a, b in pairwise(node.children)]
                if self._braces(node) or any(end != start for end, start in edges):
                    return None
                return _join(self._part(child) for child in node.children)
        return None

    def _part(self, node: Node) -> str | None:
        """What a part of a word becomes; None also where a bare variable's value would split the word."""
        text = self.value(node) if node.type != "$" else None  # before a quote it means something else
        bare = node.type in ("simple_expansion", "expansion")
        if bare and text and ("IFS" in self.assigned or _special(text, braces=False) or text.split() != [text]):
            return None
        return text

    def _string(self, node: Node) -> str | None:
        parts: list[str | None] = []
        at = node.start_byte + 1
        for child in [c for c in node.named_children if c.type != "string_content"]:
            parts += [_unescape(self._between(at, child.start_byte), r'\\(\n|[$`"\\])'), self.value(child)]
            at = child.end_byte
        parts.append(_unescape(self._between(at, node.end_byte - 1), r'\\(\n|[$`"\\])'))
        return _join(parts)

    def _variable(self, node: Node) -> str | None:
        found = re.fullmatch(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", self._text(node))
        name = (found[1] or found[2]) if found else ""
        if name in self.assigned:
            at, value = self.assigned[name]
            return value if at < node.start_byte else None
        return self.environment.values.get(name)

    def _note_assignments(self) -> None:
        """The variables that the script sets. Known are those set once, without a condition, to a plain text."""
        for node in _nodes(self.root):
            if node.type == "variable_assignment" and node.parent is not None and node.parent.type != "command":
                name, _, _ = self._text(node).partition("=")
                value = node.child_by_field_name("value")
                known = "" if value is None else self._assigned_text(value)
                if name.endswith("+") or name in self.assigned or not _unconditional(node):
                    known = None
                self.assigned[name.rstrip("+")] = (node.start_byte, known)
            elif node.type in ("for_statement", "select_statement"):
                self.assigned.update((self._text(n), (0, None)) for n in node.children_by_field_name("variable"))
            elif node.type in ("command", "declaration_command", "unset_command"):
                setter, *names = self._text(node).split() or [""]
                if setter in _SETTERS:
                    self.assigned.update((name.partition("=")[0], (0, None)) for name in names)

    def _assigned_text(self, value: Node) -> str | None:
        return self.value(value) if value.type in ("word", "number", "string", "raw_string", "concatenation") else None

    def _braces(self, node: Node) -> bool:
        """Whether bash may expand `{a,b}`: unquoted braces around a comma or two dots."""
        if node.type not in ("concatenation", "word"):
            return False
        bare = [node] if node.type == "word" else [c for c in node.children if c.type == "word"]
        text = "".join(self._text(c) for c in bare)
        return "{" in text and ("," in text or ".." in text)

    def _text(self, node: Node) -> str:
        return self._between(node.start_byte, node.end_byte)

    def _between(self, start: int, end: int) -> str:
        return _decode(self.text[start:end])

    def _place(self, node: Node) -> tuple[int, int, bool]:
        """A node's bytes in the source, and whether they are exactly the node's."""
        i, j = (bisect_right(self.origins, at, key=lambda o: o.at) - 1 for at in (node.start_byte, node.end_byte - 1))
        first, last = self.origins[i], self.origins[j]
        over = self.origins[j + 1].at if j + 1 < len(self.origins) else len(self.text)
        start = first.start + (node.start_byte - first.at if first.copied else 0)
        end = last.start + (node.end_byte - last.at) if last.copied else last.end
        begins, ends = first.copied or node.start_byte == first.at, last.copied or node.end_byte == over
        return start, end, begins and ends

    def _error_line(self) -> int:
        errors = [n for n in _nodes(self.root) if n.is_error or n.is_missing]
        return (errors[0].start_point[0] if errors else 0) + 1


def _not_understood(problem: str, way_out: str) -> UnmanageableError:
    return UnmanageableError(Reason.COMMAND_NOT_UNDERSTOOD, f"{problem}; {way_out}")


def _nodes(node: Node, kind: str | None = None) -> Iterator[Node]:
    stack = [node]
    while stack:
        current = stack.pop()
        if kind is None or current.type == kind:
            yield current
        stack += reversed(current.children)


def _ancestors(node: Node) -> Iterator[Node]:
    while (above := node.parent) is not None:
        yield above
        node = above


def _unconditional(node: Node) -> bool:
    return all(above.type in ("declaration_command", "program") for above in _ancestors(node))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decode(text: bytes | bytearray) -> str:
    return text.decode("utf-8", "replace")


def _unescape(text: str, pattern: str) -> str:
    return re.sub(pattern, lambda found: "" if found[1] == "\n" else found[1], text)


def _special(text: str, braces: bool = True) -> bool:
    """Whether bare text is more than itself to the shell: a pattern, a home directory, a list in braces."""
    bare = re.sub(r"(?s)\\.", "", text)
    listed = braces and "{" in bare and ("," in bare or ".." in bare)
    return any(c in bare for c in "~*?[\"'`\\") or listed


def _join(parts: Iterable[str | None]) -> str | None:
    texts = list(parts)
    return None if None in texts else "".join(text for text in texts if text is not None)
