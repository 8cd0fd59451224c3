"""The operator's own Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from specdecode.api.v1alpha1 import SpecDecodePolicyStatus
from specdecode.policy.decision import Decision
from specdecode.policy.observation import Observation

POLICY = ("namespace", "policy")


class Telemetry:
    """All families of one operator process; every series is labelled with the policy that it is about."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"specdecode_{name}", text, [*POLICY, *labels], registry=registry)

        self.active = gauge("active_profile", "1 for the profile that the pods run.", "profile")
        self.recommended = gauge("recommended_profile", "1 for the profile that is recommended.", "profile")
        self.acceptance = gauge("acceptance_rate", "Accepted over drafted tokens of the active profile.")
        self.accepted_length = gauge("accepted_length", "Mean acceptance length of the active profile.")
        self.batch_size = gauge("batch_size", "Requests per engine step of the active profile's pods.")
        self.tpot = gauge("time_per_output_token_seconds", "Mean time per output token of the active profile's pods.")
        self.load = gauge("offered_tokens_per_second", "Output tokens per second that users ask of one pod.")
        self.pods = gauge("pods", "Ready pods of the active profile that answered the last scrape.")
        self.predicted = gauge("predicted_time_per_output_token_seconds", "Predicted at the offered load.", "profile")
        self.rollout_phase = gauge("rollout_phase", "1 for the phase of the change that is being made.", "phase")
        self.decisions = Counter(
            "specdecode_decisions", "Decisions by the rule that made them.", [*POLICY, "reason"], registry=registry
        )
        self.changes = Counter(
            "specdecode_changes", "Changes that ended.", [*POLICY, "outcome", "reason"], registry=registry
        )
        self.scrape_errors = Counter(
            "specdecode_scrape_errors", "Pods that were ready and did not answer.", POLICY, registry=registry
        )
        self.tick_errors = Counter(
            "specdecode_tick_errors",
            "Ticks that failed, for instance because the API server did not answer.",
            POLICY,
            registry=registry,
        )
        self.tick_seconds = Histogram(
            "specdecode_tick_seconds",
            "Time of one tick.",
            POLICY,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=registry,
        )

    def ticked(
        self, key: tuple[str, str], o: Observation, d: Decision, status: SpecDecodePolicyStatus, seconds: float
    ) -> None:
        """Takes the figures of one tick."""
        self.tick_seconds.labels(*key).observe(seconds)
        self.decisions.labels(*key, d.reason.value).inc()
        running = o.running(o.active)
        self.pods.labels(*key).set(sum(p.answered for p in running))
        self.scrape_errors.labels(*key).inc(sum(p.problem is not None for p in o.pods))
        self._one_of(self.active, key, status.active_profile)
        recommended = status.recommendation.profile if status.recommendation else None
        self._one_of(self.recommended, key, recommended)
        self._one_of(self.rollout_phase, key, status.rollout.phase.value if status.rollout else None)
        m, load = o.estimates.measured, o.estimates.load
        for family, value in (
            (self.acceptance, m.acceptance_rate if m else None),
            (self.accepted_length, m.accepted_length if m else None),
            (self.batch_size, m.requests_per_step if m else None),
            (self.tpot, m.tpot_seconds if m else None),
            (self.load, load.tokens_per_second if load else None),
        ):
            # What is not measured is absent, not zero.
            self._clear(family, key) if value is None else family.labels(*key).set(value)
        self._clear(self.predicted, key)
        for profile, prediction in o.estimates.predictions.items():
            self.predicted.labels(*key, profile).set(prediction.tpot.value)

    def changed(self, key: tuple[str, str], outcome: str, reason: str) -> None:
        """Counts a change that ended."""
        self.changes.labels(*key, outcome, reason).inc()

    def forget(self, key: tuple[str, str]) -> None:
        """The policy is gone: so are its series."""
        families = [v for v in vars(self).values() if isinstance(v, Gauge | Counter | Histogram)]
        for family in families:
            self._clear(family, key)

    def _one_of(self, family: Gauge, key: tuple[str, str], value: str | None) -> None:
        self._clear(family, key)
        if value is not None:
            family.labels(*key, value).set(1)

    def _clear(self, family: Gauge | Counter | Histogram, key: tuple[str, str]) -> None:
        family.remove_by_labels(dict(zip(POLICY, key, strict=True)))
