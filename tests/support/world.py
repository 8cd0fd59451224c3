"""Builders: a policy, its workload and its pods, as small as a test wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from specdecode.api.v1alpha1 import SpecDecodePolicySpec
from specdecode.model.cost import Option
from specdecode.model.window import Window
from specdecode.policy.estimating import Modeller, estimate
from specdecode.policy.observation import Observation, Pod, Workload
from specdecode.policy.options import Container, Menu
from specdecode.vllm.metrics import EngineSample, Histogram, Page
from specdecode.vllm.unmanageable import Unmanageable
from specdecode.vllm.version import Version

NOW = 1_800_000_000.0
INF = float("inf")

SPEC: dict[str, Any] = {
    "targetRef": {"name": "chat"},
    "mode": "Auto",
    "profiles": [{"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5}],
    "rollout": {
        "cooldown": "30m",
        "analysis": {"minimumRequests": 20, "duration": "1m", "warmup": "10s"},
        "progressDeadline": "10m",
    },
    "metrics": {"interval": "5s", "window": "1m"},
}

CONTAINER: dict[str, Any] = {
    "name": "vllm",
    "image": "vllm/vllm-openai:v0.24.0",
    "args": ["--model", "meta-llama/Llama-3.1-8B-Instruct", "--port", "8000"],
}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with nested changes."""
    out = dict(base)
    for key, value in changes.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def spec(**changes: Any) -> SpecDecodePolicySpec:
    """A policy; changes by their YAML names, nested."""
    return SpecDecodePolicySpec.model_validate(merged(SPEC, changes))


def menu(policy: SpecDecodePolicySpec, container: Mapping[str, Any] = CONTAINER, version: str = "0.24.0") -> Menu:
    """What the container can run."""
    parsed = Version.parse(version)
    assert parsed is not None
    made = Menu.of(container, parsed, policy.profiles)
    assert isinstance(made, Menu), made
    return made


def option(m: Menu, profile: str) -> Option:
    """A profile of the menu, at its fixed K."""
    return next(o for o in m.options if o.profile == profile)


def rendered(m: Menu, profile: str) -> Container:
    """The container that runs a profile."""
    container = m.render(option(m, profile))
    assert not isinstance(container, Unmanageable), container
    return container


def histogram(total: float, count: float) -> Histogram:
    """A histogram with everything in one bucket."""
    return Histogram((0.01, 10.0, INF), (0.0, count, count), total, count)


@cache
def traffic(
    *,
    at: float = NOW,
    seconds: float = 60.0,
    interval: float = 5.0,
    batch: float = 8.0,
    step: float = 0.02,
    acceptance: float | None = None,
    k: int = 5,
    rate: float = 2.0,
    errors: float = 0.0,
) -> Window:
    """The readings of a pod that served evenly: `batch` requests per step of `step` seconds, `rate` requests a second
    finished; with `acceptance`, K tokens are drafted for each request and step."""
    window = Window(3600.0)
    count = int(seconds / interval)
    for i in range(count + 1):
        t = 100.0 + i * interval
        steps = t / step
        request_steps = steps * batch
        drafts = request_steps if acceptance is not None else None
        per_step = 1 + (acceptance or 0.0) * (k if acceptance is not None else 0)
        finished = rate * t
        sample = EngineSample(
            model_name="m",
            engine="0",
            running=batch,
            waiting=0.0,
            kv_usage=0.3,
            preemptions=0.0,
            prompt_tokens=finished * 100,
            generation_tokens=request_steps * per_step + finished,
            requests={"stop": finished, "error": errors * t},
            drafts=drafts,
            draft_tokens=None if drafts is None else drafts * k,
            accepted_tokens=None if drafts is None or acceptance is None else drafts * k * acceptance,
            accepted_per_position=()
            if drafts is None or acceptance is None
            else tuple(drafts * acceptance for _ in range(k)),
            ttft=histogram(finished * 0.1, finished),
            inter_token=histogram(request_steps * step, request_steps),
            tpot=histogram(finished * step / per_step, finished),
            iteration_tokens=histogram(request_steps * per_step, steps),
            output_length=histogram(finished * 100, finished),
        )
        window = window.add(Page((sample,), 1.0), at - seconds + i * interval)
    return window


def pod(name: str, revision: str, runs: Option | None, window: Window | None = None, **changes: Any) -> Pod:
    """A ready pod that answered when it has a window."""
    seen = window is not None
    base = Pod(name, revision, runs, ready=True, window=window or Window(60.0), answered=seen)
    return replace(base, **changes)


def deployment(container: Container, replicas: int = 3, generation: int = 1, **fields: Any) -> dict[str, Any]:
    """A Deployment as the API server shows it."""
    return {
        "metadata": {"name": "chat", "namespace": "serving", "generation": generation, "uid": "d"},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {"metadata": {}, "spec": {"containers": [{"name": "proxy"}, dict(container)]}},
        }
        | fields,
    }


def workload(
    container: Container, *, revision: str | None = "old", settled: bool = True, replicas: int = 3, **fields: Any
) -> Workload:
    """The Deployment as the gatherer sees it."""
    made = deployment(container, replicas, **fields)
    return Workload("chat", 1, replicas, container, revision, settled, made)


def observation(policy: SpecDecodePolicySpec | None = None, **changes: Any) -> Observation:
    """Three pods without speculation that serve eight requests each; estimates filled in."""
    policy = policy or spec()
    m = changes.pop("menu", None) or menu(policy)
    active = changes.pop("active", option(m, "disabled"))
    window = changes.pop("window", traffic())
    base = Observation(
        now=NOW,
        policy=policy,
        generation=1,
        menu=m,
        workload=workload(rendered(m, active.profile) if active else CONTAINER),
        active=active,
        pods=tuple(pod(f"p{i}", "old", active, window) for i in range(3)),
    )
    return estimate(replace(base, **changes), Modeller())
