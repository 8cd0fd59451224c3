"""Files of prompts, good and bad."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.probe.prompts import Prompt, PromptsError, completion, conversation, read_prompts

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("text", "name", "chat", "prompts"),
    [
        ("Hello\n\nBye\n", "p.txt", False, (completion("Hello"), completion("Bye"))),
        ("Hello\n", "p.txt", True, (conversation(HELLO),)),
        ('{"prompt": "Hello"}\n', "p.jsonl", False, (completion("Hello"),)),
        ('{"prompt": "Hello"}\n', "p.jsonl", True, (conversation(HELLO),)),
        ('{"messages": [{"role": "user", "content": "Hello"}]}', "p.jsonl", False, (conversation(HELLO),)),
        ('{"prompt": "in a text file"}', "p.txt", False, (completion('{"prompt": "in a text file"}'),)),
    ],
)
def test_prompts_are_lines_of_text_or_json(text: str, name: str, chat: bool, prompts: tuple[Prompt, ...]) -> None:
    assert read_prompts(text, name, chat=chat) == prompts


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("", "p.txt", "p.txt has no prompts"),
        ("\n \n", "p.jsonl", "p.jsonl has no prompts"),
        ('{"prompt": "a"}\n{"prompt": ', "p.jsonl", "p.jsonl, line 2: no JSON"),
        ('{"text": "a"}', "p.jsonl", 'line 1: an object with either "prompt" or "messages"'),
        ('{"prompt": "a", "messages": []}', "p.jsonl", 'either "prompt" or "messages"'),
        ("[1]", "p.jsonl", "an object"),
        ('{"prompt": ""}', "p.jsonl", "not empty"),
        ('{"messages": []}', "p.jsonl", '"messages" must be a list'),
        ('{"messages": [{"content": "x"}]}', "p.jsonl", '"role" and "content"'),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_line(text: str, name: str, words: str) -> None:
    with pytest.raises(PromptsError) as told:
        read_prompts(text, name)
    assert words in str(told.value)


@given(st.text(max_size=200), st.sampled_from(["p.txt", "p.jsonl"]))
def test_any_file_is_read_or_refused(text: str, name: str) -> None:
    try:
        assert all(p.body.keys() <= {"prompt", "messages"} for p in read_prompts(text, name))
    except PromptsError as e:
        assert name in str(e)
