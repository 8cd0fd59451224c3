"""The OpenAI requests that the simulated server understands, and its answers as vLLM writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_CHAT_TOKENS = 256
"""Where vLLM would go on to an end-of-sequence token."""


_REASON = {"logprobs": None, "finish_reason": None}


class RequestError(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind

    def body(self) -> str:
        """vLLM's error body."""
        return json.dumps({"error": {"message": str(self), "type": self.kind, "param": None, "code": self.status}})


@dataclass(frozen=True)
class Generation:
    """What one request asks for."""

    prompt_tokens: int
    max_tokens: int
    temperature: float
    kind: str
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class Limits:
    """What the server's set-up allows."""

    model_names: tuple[str, ...]
    max_model_len: int
    kinds: tuple[str, ...]
    rejects_logit_processors: bool
    """Speculation is on and the version (>= 0.14) refuses `min_p` and `logit_bias` with it."""


def read_request(body: bytes, headers: Mapping[str, str], limits: Limits, *, chat: bool) -> Generation:
    """Check a completion request. Raises RequestError with vLLM's status and words.

    Generation runs to `max_tokens` whatever is generated, as with `ignore_eos`. A prompt's tokens: its length when it
    is a list of token ids, else a quarter of its characters. The kind of request is the header `x-request-kind`, else
    `metadata.kind`, else `user` where it names a kind, else read off the prompt.
    """
    try:
        ask = json.loads(body)
        if not isinstance(ask, dict):
            raise TypeError("a JSON object is expected")
    except (ValueError, TypeError) as error:
        raise RequestError(400, f"There was an error parsing the body: {error}") from error
    model = ask.get("model")
    if model is not None and model not in limits.model_names:
        raise RequestError(404, f"The model `{model}` does not exist.", "NotFoundError")
    if limits.rejects_logit_processors and (ask.get("min_p") or ask.get("logit_bias")):
        raise RequestError(
            400, "The min_p and logit_bias sampling parameters are not yet supported with speculative decoding."
        )
    if ask.get("n", 1) not in (1, None):
        raise RequestError(400, "the simulator generates one choice per request: n must be 1")
    text, prompt_tokens = _chat_prompt(ask) if chat else _prompt(ask)
    room = limits.max_model_len - prompt_tokens
    asked = (ask.get("max_completion_tokens") or ask.get("max_tokens")) if chat else ask.get("max_tokens", 16)
    max_tokens = min(room, DEFAULT_CHAT_TOKENS) if asked is None else asked
    temperature = ask.get("temperature")
    temperature = 1.0 if temperature is None else temperature
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise RequestError(400, f"max_tokens must be at least 1, got {max_tokens}.")
    if not isinstance(temperature, int | float) or temperature < 0:
        raise RequestError(400, f"temperature must be non-negative, got {temperature}.")
    if max_tokens > room:
        raise RequestError(
            400,
            f"This model's maximum context length is {limits.max_model_len} tokens. However, you requested"
            f" {max_tokens} output tokens and your prompt contains {prompt_tokens} input tokens. Please reduce the"
            " length of the input prompt or the number of requested output tokens.",
        )
    options = ask.get("stream_options") or {}
    return Generation(
        prompt_tokens,
        max_tokens,
        float(temperature),
        _kind(ask, headers, text, limits.kinds),
        bool(ask.get("stream")),
        bool(options.get("include_usage")),
    )


def _prompt(ask: Mapping[str, Any]) -> tuple[str, int]:
    prompt = ask.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return prompt, _tokens(prompt)
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return "", len(prompt)
    raise RequestError(400, "the simulator takes one prompt per request: a non-empty string or a list of token ids")


def _chat_prompt(ask: Mapping[str, Any]) -> tuple[str, int]:
    messages = ask.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise RequestError(400, "messages must be a non-empty list of objects")
    contents = [m.get("content") for m in messages]
    texts = [
        c if isinstance(c, str) else " ".join(str(p.get("text", "")) for p in c or () if isinstance(p, dict))
        for c in contents
    ]
    return "\n".join(texts), sum(_tokens(t) + 4 for t in texts)


def _tokens(text: str) -> int:
    return max(1, len(text) // 4)


def _kind(ask: Mapping[str, Any], headers: Mapping[str, str], text: str, kinds: Sequence[str]) -> str:
    metadata = ask.get("metadata")
    named = headers.get("x-request-kind") or (metadata.get("kind") if isinstance(metadata, dict) else None)
    if named is not None:
        if named not in kinds:
            raise RequestError(400, f"no request kind {named!r}; there are {', '.join(kinds)}")
        return str(named)
    if ask.get("user") in kinds:
        return str(ask["user"])
    start = text[:2000].lower()
    guess = "summarise" if "summar" in start else "code" if "```" in start or "def " in start else "chat"
    return guess if guess in kinds else kinds[0]


class Answer:
    """The pieces of one answer, streamed or whole."""

    def __init__(self, request_id: str, model: str, created: int, generation: Generation, *, chat: bool) -> None:
        self._generation = generation
        self._chat = chat
        self._streamed = "chat.completion.chunk" if chat else "text_completion"
        self._head = {"id": request_id, "created": created, "model": model}
        event = self._event([{"index": 0, **({"delta": {"content": "@"}} if chat else {"text": "@"}), **_REASON}])
        before, after = event.split(b'"@"')
        self._before, self._after = before + b'"', b'"' + after
        self._last = self._after.replace(b'"finish_reason": null', b'"finish_reason": "length"')

    def chunk(self, tokens: int, *, finished: bool) -> bytes:
        """One server-sent event with so many tokens; the last one with usage (where asked for) and the end mark."""
        event = self._before + b" token" * tokens + (self._last if finished else self._after)
        if not finished:
            return event
        usage = self._event([], usage=self._usage()) if self._generation.include_usage else b""
        return event + usage + b"data: [DONE]\n\n"

    def whole(self) -> str:
        """The answer to a request that does not stream."""
        text = " token" * self._generation.max_tokens
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": "length"}
        kind = "chat.completion" if self._chat else "text_completion"
        return json.dumps({**self._head, "object": kind, "choices": [choice], "usage": self._usage()})

    def _event(self, choices: Sequence[Mapping[str, Any]], **more: Any) -> bytes:
        return f"data: {json.dumps({**self._head, 'object': self._streamed, 'choices': choices, **more})}\n\n".encode()

    def _usage(self) -> dict[str, int]:
        prompt, completion = self._generation.prompt_tokens, self._generation.max_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
