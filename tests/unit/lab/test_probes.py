from hypothesis import given
from hypothesis import strategies as st

from specdecode.lab.probes import Probe, Verdict


def verdicts(results: str, **fields: int) -> list[bool | None]:
    """The verdict after each result; `+` is a success and `-` a failure."""
    probe, verdict, seen = Probe({}, **fields), Verdict(), []
    for result in results:
        verdict = verdict.after(result == "+", probe)
        seen.append(verdict.passing)
    return seen


def test_a_probe_without_fields_has_the_defaults_of_the_api() -> None:
    probe = Probe.parse({"tcpSocket": {"port": 1}})
    assert probe == Probe({"tcpSocket": {"port": 1}}, 0, 10, 1, 1, 3, None)
    assert Probe.parse(None) is None


def test_nothing_is_decided_before_a_threshold_is_reached() -> None:
    assert verdicts("--", failure_threshold=3) == [None, None]
    assert verdicts("+", success_threshold=2) == [None]


def test_failures_count_only_when_they_follow_each_other() -> None:
    assert verdicts("+--+---", failure_threshold=3) == [True, True, True, True, True, True, False]


def test_a_passing_probe_has_to_succeed_often_enough_after_a_failure() -> None:
    assert verdicts("-++", failure_threshold=1, success_threshold=2) == [False, False, True]


@given(st.text("+-", min_size=1), st.integers(1, 5), st.integers(1, 5))
def test_a_verdict_is_what_the_last_long_enough_streak_says(results: str, successes: int, failures: int) -> None:
    seen = verdicts(results, success_threshold=successes, failure_threshold=failures)[-1]
    last_success, last_failure = results.rfind("+" * successes), results.rfind("-" * failures)
    expected = None if last_success == last_failure == -1 else last_success > last_failure
    assert seen is expected
