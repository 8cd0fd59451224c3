"""The prompts of a probe: a text file with one in each line, or JSON lines with `prompt` or `messages`. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

JSON_LINES = ".jsonl"


class PromptsError(ValueError):
    """The file has no prompts, or something else in it."""


@dataclass(frozen=True)
class Prompt:
    """One prompt, as the OpenAI API takes it."""

    path: str
    """Of the API: for completions or for chat."""
    body: Mapping[str, Any]
    """`prompt` or `messages`."""


def completion(text: str) -> Prompt:
    """A text that the model goes on with."""
    return Prompt("/v1/completions", {"prompt": text})


def conversation(messages: list[Mapping[str, Any]]) -> Prompt:
    """Messages that the model answers."""
    return Prompt("/v1/chat/completions", {"messages": messages})


def read_prompts(text: str, name: str, *, chat: bool = False) -> tuple[Prompt, ...]:
    """The prompts of a file's text; its name says which format it has, and `chat` that plain prompts are messages.

    Raises `PromptsError` with the line.
    """
    read = _from_json if name.endswith(JSON_LINES) else _from_text
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                found.append(read(line, chat))
            except ValueError as e:
                raise PromptsError(f"{name}, line {number}: {e}") from None
    if not found:
        raise PromptsError(
            f'{name} has no prompts: one in each line, or JSON lines ({{"prompt": "…"}}) in a .jsonl file'
        )
    return tuple(found)


def _from_text(line: str, chat: bool) -> Prompt:
    return conversation([{"role": "user", "content": line}]) if chat else completion(line)


def _from_json(line: str, chat: bool) -> Prompt:
    try:
        entry = json.loads(line)
    except ValueError as e:
        raise ValueError(f"no JSON: {e}") from None
    if not isinstance(entry, dict) or ("prompt" in entry) == ("messages" in entry):
        raise ValueError('an object with either "prompt" or "messages" is expected')
    if "prompt" in entry:
        if not isinstance(entry["prompt"], str) or not entry["prompt"]:
            raise ValueError('"prompt" must be a text that is not empty')
        return _from_text(entry["prompt"], chat)
    messages = entry["messages"]
    if not isinstance(messages, list) or not messages or not all(_is_message(m) for m in messages):
        raise ValueError('"messages" must be a list of objects with "role" and "content"')
    return conversation(messages)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value
