"""The patch: exactly what differs, and only if nobody was quicker."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from specdecode.rollout.patch import Desired, borrowed, given_back, patch
from support.world import CONTAINER, deployment, menu, rendered, spec

LIVE = deployment(CONTAINER)


def applied(document: Any, operations: list[dict[str, Any]]) -> Any:
    """A JSON patch carried out: as much of RFC 6902 as these patches use."""
    import copy

    out = copy.deepcopy(document)
    for op in operations:
        *path, last = [p.replace("~1", "/") for p in op["path"].split("/")[1:]]
        parent = out
        for key in path:
            parent = parent[int(key)] if isinstance(parent, list) else parent[key]
        if op["op"] == "test":
            assert parent[last] == op["value"]
        elif op["op"] == "add":
            parent[last] = op["value"]
        else:
            del parent[last]
    return out


def test_nothing_to_change_is_no_patch() -> None:
    assert patch(LIVE, given_back(CONTAINER, borrowed(LIVE))) == []


def test_the_patch_is_refused_when_the_spec_was_changed_meanwhile() -> None:
    operations = patch(LIVE, given_back(rendered(menu(spec()), "ngram"), borrowed(LIVE)))
    assert operations[0] == {"op": "test", "path": "/metadata/generation", "value": 1}


def test_only_the_vllm_container_is_touched() -> None:
    operations = patch(LIVE, given_back(rendered(menu(spec()), "ngram"), borrowed(LIVE)))
    assert [op["path"] for op in operations[1:]] == ["/spec/template/spec/containers/1/args"]


CHOICES = st.builds(
    Desired,
    container=st.sampled_from([CONTAINER, rendered(menu(spec()), "ngram"), {"name": "vllm", "command": ["x"]}]),
    strategy=st.sampled_from([LIVE["spec"]["strategy"], {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}]),
    min_ready_seconds=st.integers(0, 5),
    paused=st.booleans(),
)


@given(CHOICES, CHOICES)
def test_a_patch_makes_it_so_and_a_second_one_has_nothing_to_do(first: Desired, second: Desired) -> None:
    there = applied(LIVE, patch(LIVE, first))
    assert patch(there, first) == []
    back = applied(there, patch(there, second))
    assert patch(back, second) == []


@given(CHOICES)
def test_what_was_borrowed_comes_back_to_the_letter(desired: Desired) -> None:
    there = applied(LIVE, patch(LIVE, desired))
    assert applied(there, patch(there, given_back(CONTAINER, borrowed(LIVE)))) == LIVE
