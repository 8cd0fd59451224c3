"""One agent's copy of the service: its Deployment, and its rows in the fleet."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from specdecode.model.cost import Option
from specdecode.policy.options import Container, Menu
from specdecode.rollout.patch import Desired, patch
from specdecode.sim.twin.counters import Counters
from specdecode.sim.twin.deployment import VirtualDeployment
from specdecode.sim.twin.fleet import Array, Fleet, Ints
from specdecode.sim.twin.scenario import Scenario, ScenarioError
from specdecode.vllm.unmanageable import Unmanageable

CONTAINER = "vllm"


def container_of(scenario: Scenario, graph_limit: int) -> Container:
    """The vLLM container of the service, without speculation."""
    args = ["--model", "target", "--port", "8000", "--max-num-seqs", str(scenario.max_num_seqs)]
    if graph_limit != DEFAULT_GRAPH_LIMIT:
        args += ["--max-cudagraph-capture-size", str(graph_limit)]
    return {"name": CONTAINER, "image": f"vllm/vllm-openai:v{scenario.version}", "args": args}


DEFAULT_GRAPH_LIMIT = 512
"""vLLM's own `--max-cudagraph-capture-size` (vllm/config/vllm.py)."""


def menu_of(scenario: Scenario, graph_limit: int) -> Menu:
    """What the service can run; its original command line is the scenario's start. Raises ScenarioError."""
    bare = Menu.of(container_of(scenario, graph_limit), scenario.version, scenario.policy.profiles)
    assert isinstance(bare, Menu), bare
    start = next(option for option in bare.options if option.profile == scenario.start)
    container = bare.render(start)
    if isinstance(container, Unmanageable):
        raise ScenarioError(f"start: {scenario.start} cannot run on vLLM {scenario.version}: {container.message}")
    menu = Menu.of(container, scenario.version, scenario.policy.profiles)
    assert isinstance(menu, Menu), menu
    return menu


@dataclass
class Service:
    """An agent's Deployment, with what joins it to the fleet."""

    menu: Menu
    fleet: Fleet
    deployment: VirtualDeployment
    weights: tuple[float, ...] | None
    counters: Counters | None = None
    """Of its rows, where metrics pages are read."""
    _options: dict[str, Option | None] = field(init=False, default_factory=dict)
    split: Array = field(init=False)
    """Share of the traffic by serving pod, oldest first."""
    key: bytes = field(init=False)
    """Equal for services whose traffic is split alike."""
    serving_rows: Ints = field(init=False)
    """Rows of the serving pods, oldest first."""

    def __post_init__(self) -> None:
        for pod in self.deployment.serving:
            assert pod.row is not None
            self.fleet.start(pod.row, self.variant(pod.revision), 0.0)
        self._share()

    def option(self, revision: str) -> Option | None:
        """What the pods of a revision run."""
        if revision not in self._options:
            container = self.deployment.template(revision)["spec"]["containers"][0]
            self._options[revision] = self.menu.identify(container)
        return self._options[revision]

    def variant(self, revision: str) -> int:
        """The fleet's number of what the pods of a revision run."""
        option = self.option(revision)
        assert option is not None, "nobody but us writes this container"
        return self.fleet.times.variant(option)

    def reconcile(self, t: float) -> bool:
        """Kubernetes' controllers act, and the fleet follows; whether other pods serve now."""
        if not self.deployment.moving:
            return False
        happened = self.deployment.reconcile(t)
        for pod in happened.serving:
            assert pod.row is not None
            self.fleet.start(pod.row, self.variant(pod.revision), t)
            if self.counters is not None:
                self.counters.clear(pod.row)
        if not happened.ended and not happened.serving:
            return False
        for pod in happened.ended:
            assert pod.row is not None
            others = [p.row for p in self.deployment.serving if p.row is not None]
            self.fleet.hand_over(pod.row, others)
        self._share()
        return True

    def change(self, option: Option, *, give_up_one: bool) -> None:
        """Roll to an option, one pod after the other."""
        container = self.menu.render(option)
        assert not isinstance(container, Unmanageable), container
        surge, unavailable = (0, 1) if give_up_one else (1, 0)
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
        self.deployment.apply(patch(self.deployment.object, Desired(container, strategy, 0, paused=False)))

    def _share(self) -> None:
        serving = self.deployment.serving
        weights = np.ones(len(serving))
        if self.weights is not None:
            mean = sum(self.weights) / len(self.weights)
            known = self.weights[: len(serving)]
            weights = np.array([*known, *[mean] * (len(serving) - len(known))])
        self.split = weights / weights.sum() if len(serving) else weights
        self.key = self.split.tobytes()
        self.serving_rows = np.array([p.row for p in serving], dtype=np.int64)
