"""The wiring that is not kopf's."""

from __future__ import annotations

from typing import Any

import kopf
import pytest

from specdecode.controller.main import _rival

MINE = kopf.Body(
    {"metadata": {"namespace": "serving", "name": "mine"}, "spec": {"targetRef": {"name": "chat"}}},
)


@pytest.mark.parametrize(
    ("policies", "rival"),
    [
        ([("2026-01-02", "mine")], None),
        ([("2026-01-02", "mine"), ("2026-01-03", "later")], None),
        ([("2026-01-02", "mine"), ("2026-01-01", "earlier")], "earlier"),
        ([("2026-01-02", "mine"), ("2026-01-02", "also")], "also"),
        ([], None),
    ],
)
def test_of_two_policies_for_one_workload_the_older_acts(policies: Any, rival: str | None) -> None:
    assert _rival(MINE, {("serving", "chat"): policies}) == rival
