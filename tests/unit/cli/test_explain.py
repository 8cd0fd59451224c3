"""The words of `specdecode explain`: figures with their intervals, and what would change the operator's mind."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from specdecode.api.v1alpha1 import (
    AcceptanceStatus,
    BandStatus,
    BatchRangeStatus,
    Condition,
    Configuration,
    Interval,
    ObservationStatus,
    ProfileStatus,
    Recommendation,
    ServiceStatus,
    SpecDecodePolicyStatus,
    TurningPointStatus,
)
from specdecode.cli import status
from specdecode.policy.clock import text_of
from support.world import NOW, spec

WIDTH = 100


def interval(value: float, low: float | None = None, high: float | None = None) -> Interval:
    return Interval(value=value, low=value if low is None else low, high=value if high is None else high)


def point(quantity: str, **changes: Any) -> TurningPointStatus:
    base: dict[str, Any] = {
        "profile": "draft",
        "quantity": quantity,
        "direction": "Above",
        "at": interval(0.62, 0.55, 0.7),
        "now": interval(0.45, 0.4, 0.5),
    }
    return TurningPointStatus(**(base | changes))


PROFILES = [
    ProfileStatus(
        name="ngram",
        measured_at=text_of(NOW - 90),
        acceptance=AcceptanceStatus(mean=0.45, p10=0.41, p50=0.44, p90=0.5),
        tokens_per_step=1.352,
        time_per_output_token=0.0206,
        predicted=interval(0.0205, 0.0113, 0.1534),
        headroom=interval(2.04, 1.2, 3.11),
        band=BandStatus(pays=True, start=4, end=151),
    ),
    ProfileStatus(
        name="draft",
        predicted=interval(0.009804, 0.0071, 0.0137),
        headroom=interval(3.0, 2.0, 4.0),
        band=BandStatus(pays=True, start=1),
        schedule=[BatchRangeStatus(start=1, end=75, k=2), BatchRangeStatus(start=76, end=256, k=1)],
    ),
    ProfileStatus(name="disabled", predicted=interval(0.0257, 0.025, 0.0265), headroom=interval(5.0, 4.9, 5.1)),
]


def told(profiles: list[ProfileStatus] = PROFILES, width: int = WIDTH, **recommendation: Any) -> str:
    """What is printed of a policy whose pods run n-gram."""
    base: dict[str, Any] = {"profile": "draft", "reason": "CheaperProfile", "rule": "CheaperProfile", "message": "why"}
    s = SpecDecodePolicyStatus(
        conditions=[Condition(type="Ready", status="True", reason="Managing", last_transition_time=text_of(NOW))],
        active_profile="ngram",
        active=Configuration(profile="ngram"),
        recommendation=Recommendation(**(base | recommendation)),
        observation=ObservationStatus(time=text_of(NOW), pods=3, tokens_per_second=1396.0),
        profiles=profiles,
    )
    out = io.StringIO()
    Console(file=out, width=width).print(status.explanation("serving/chat", spec(), s, NOW + 20))
    return out.getvalue()


def test_what_users_got_is_told_below_the_profiles() -> None:
    served = ServiceStatus(time_per_output_token=0.0312, tokens_per_second=402.0, seconds=3570.0)
    ngram, draft, off = PROFILES
    assert "users got" not in told()
    text = told([ngram.model_copy(update={"in_service": served}), draft, off])
    assert "users got, while it ran: ngram 31.2 ms a token at 402 tokens/s per pod, over 1h" in " ".join(text.split())


def line(text: str, start: str) -> str:
    """The line that starts so."""
    return next(found.rstrip() for found in text.splitlines() if found.strip().startswith(start))


# --- the decision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recommendation", "words"),
    [
        ({"gain": interval(0.25, 0.1, 0.4)}, ["run draft, expected gain +25 % (+10 to +40 %)", "CheaperProfile: why"]),
        ({"reason": "CoolingDown"}, ["CheaperProfile, held back by CoolingDown: why"]),
        ({"rule": None}, ["CheaperProfile: why"]),
        ({"profile": "ngram", "reason": "BestAlready", "rule": "BestAlready"}, ["keep ngram", "BestAlready: why"]),
        (
            {"payback": "13m", "load_lasts": "1h"},
            ["paid back after about 13m; loads like this are expected to go on for about 1h"],
        ),
    ],
    ids=["a change", "held back", "written by an older version", "what runs", "payback"],
)
def test_the_decision_is_told_with_its_rule(recommendation: dict[str, Any], words: list[str]) -> None:
    text = told(**recommendation)
    assert all(line(text, w[:20]).strip() == w for w in words)


def test_a_message_that_tells_the_payback_is_enough() -> None:
    assert told(payback="13m", load_lasts="1h", message="paid back after 13m").count("paid back") == 1


# --- what would change its mind -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turning", "words"),
    [
        (
            point("Acceptance", of="draft"),
            "run draft outright  if acceptance of draft rose above 0.62 (0.55-0.70); now 0.45 (0.40-0.50)",
        ),
        (
            point("Load", profile="disabled", direction="Below", at=interval(20.04, 9.8, 40.1), now=interval(782)),
            "run disabled  if the load fell below 20 (9.8-40.1) tokens/s per pod; now 782",
        ),
        (
            point("Acceptance", profile="disabled", of="ngram", direction="Below"),
            "run disabled  if acceptance of ngram fell below 0.62 (0.55-0.70); now 0.45 (0.40-0.50)",
        ),
        (
            point("Load", profile="ngram", at=interval(1560, 782, 12_750), now=interval(782)),
            "stay with ngram  if the load rose above 1,560 (782-12,750) tokens/s per pod; now 782",
        ),
        (
            point("Duration", at=interval(4760), now=interval(3600)),
            "run draft outright  if loads like this were to go on for 1h19m; 1h is expected",
        ),
    ],
    ids=lambda value: value.quantity if isinstance(value, TurningPointStatus) else "",
)
def test_a_turning_point_is_one_line(turning: TurningPointStatus, words: str) -> None:
    text = told(turning_points=[turning])
    assert words in [found.strip() for found in text.partition("It would change its mind")[2].splitlines()]


def test_another_schedule_of_what_runs_is_called_that() -> None:
    text = told(profile="ngram", turning_points=[point("Duration", profile="ngram", at=interval(60), now=interval(0))])
    assert "run ngram with another schedule  if loads like this were to go on for 1m; 0s is expected" in text


def test_what_nothing_would_change_is_not_headed() -> None:
    assert "change its mind" not in told()


# --- the profiles -------------------------------------------------------------------------------------------------


def test_every_prediction_has_its_interval_and_the_table_fits() -> None:
    text = told()
    assert max(len(found.rstrip()) for found in text.splitlines()) <= WIDTH and "…" not in text
    assert "Profiles at 1,396 tokens/s per pod" in text
    for words in (
        "*ngram 20.5 (11.3-153) 2.0x (1.2-3.1) 4 to 151 20.6 1.35 0.41 0.44 0.50 1m50s",
        ">draft 9.80 (7.10-13.7) 3.0x (2.0-4.0) all - - - -",
        "disabled 25.7 (25.0-26.5) 5.0x (4.9-5.1) - - - - -",
    ):
        assert " ".join(line(text, words.split()[0]).split()) == words
    assert "predicted as draft (K=2 for 1 to 75 requests, K=1 for 76 to 256 requests)" in text


def test_in_a_narrow_terminal_nothing_is_cut() -> None:
    text = told(width=80)
    assert max(len(found.rstrip()) for found in text.splitlines()) <= 80 and "…" not in text
    for figure in ("20.5", "(11.3-153)", "9.80", "(7.10-13.7)", "(4.9-5.1)", "0.41", "1m50s"):
        assert figure in text


@pytest.mark.parametrize(
    ("band", "words"),
    [
        (BandStatus(pays=False), "none"),
        (BandStatus(pays=True, start=1), "all"),
        (BandStatus(pays=True, start=5), "from 5"),
        (BandStatus(pays=True, start=1, end=9), "1 to 9"),
    ],
)
def test_the_band_in_words(band: BandStatus, words: str) -> None:
    assert words in line(told([PROFILES[2].model_copy(update={"band": band})]), "disabled")


def test_a_long_name_is_folded_not_cut() -> None:
    name = "eagle-" * 9 + "3"
    text = told([PROFILES[0].model_copy(update={"name": name})])
    assert name in "".join(found.split()[0] for found in text.splitlines() if found.strip())


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0.00"), (9.804, "9.80"), (25.0, "25.0"), (99.96, "100"), (153.4, "153"), (12_345.6, "12,346")],
)
def test_three_digits(value: float, words: str) -> None:
    assert status.digits(value) == words


@pytest.mark.parametrize(("value", "words"), [(782.4, "782"), (1396.0, "1,396"), (0.0, "0"), (None, "-")])
def test_numbers_are_written_out(value: float | None, words: str) -> None:
    assert status.number(value) == words
