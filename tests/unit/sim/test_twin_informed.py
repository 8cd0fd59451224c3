"""Who knows all of the present: rolls to what is best now, as often as the policy lets it."""

from typing import Any

import pytest
import yaml

from specdecode.sim.twin.run import simulate
from specdecode.sim.twin.scenario import parse_scenario

QUIET, BUSY = 1.0, 45.0
"""Requests per second at which n-gram makes two pods a third faster, and which it does not carry."""


def day(*rates: tuple[str, float], others: tuple[str, ...] = (), **rollout: Any) -> dict[str, Any]:
    """Mean TPOT of everybody over two hours, in seconds, and the changes."""
    scenario = parse_scenario(
        yaml.safe_dump(
            {
                "name": "turns",
                "surface": "h200-llama32b-draft1b",
                "duration": "2h",
                "replicas": 2,
                "acceptance": {"changes": [{"profile": "ngram", "factor": 0.75}]},
                "rollTime": "60s",
                "arrivals": [
                    {
                        "steps": [{"at": at, "rate": rate} for at, rate in rates],
                        "mix": {"code": 1},
                        "promptTokens": 50,
                        "outputTokens": 200,
                    },
                ],
                "policy": {
                    "profiles": [{"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5}],
                    "batchSizeTuning": {"mode": "Off"},
                    "rollout": rollout,
                    "metrics": {"interval": "60s"},
                },
            }
        )
    )
    found = simulate(scenario, ["informed", "alone", "static:ngram", *others]).agents
    return {name: figures["tpot_mean"] for name, figures in found.items()} | {"rolls": found["informed"]["rolls"]}


def test_it_changes_to_what_is_best_at_the_load_of_now() -> None:
    found = day(("0s", QUIET))
    assert found["rolls"] == 1
    assert found["informed"] == pytest.approx(found["static:ngram"], rel=0.1)
    assert found["informed"] < 0.8 * found["alone"]


def test_it_does_not_know_what_comes() -> None:
    """It goes to n-gram for a quiet hour, and is still there when more is asked than n-gram carries: whoever gains
    where he cannot see the future may lose there, however well he knows the present."""
    found = day(("0s", QUIET), ("1h", BUSY))
    assert found["rolls"] == 2
    assert found["informed"] > found["alone"]


def test_it_keeps_to_the_cool_down_and_to_the_limit_of_changes() -> None:
    turns = [(f"{10 * n}m", QUIET if n % 2 else BUSY) for n in range(12)]
    assert day(*turns, cooldown="1h", maxChangesPerDay=6)["rolls"] <= 2
    assert day(*turns, cooldown="1m", maxChangesPerDay=3)["rolls"] == 3


def test_the_operator_is_not_misled_by_the_room_that_a_canary_makes() -> None:
    """Beside a third pod the two others are fast again, and a canary of the way back shows nothing: they were not while
    it started, and would not be without it."""
    found = day(("0s", QUIET), ("1h", BUSY), others=("operator",))
    assert found["operator"] < 1.1 * found["alone"], "the way back is found within minutes of the rise"
