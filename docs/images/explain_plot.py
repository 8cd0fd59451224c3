"""The picture of `specdecode explain --plot`, of a service in virtual time.

    python docs/images/explain_plot.py

The scenario is examples/scenarios/chat-day.yaml: eight pods with step times that were measured on an H200. It is drawn
at `AT`, as the operator sees it then: what it learnt by then is what its canaries and its pods have shown.
"""

from __future__ import annotations

from pathlib import Path

from specdecode.api.v1alpha1 import SpecDecodePolicyStatus
from specdecode.cli.plot import draw
from specdecode.cli.sketch import Sketch, sketch
from specdecode.controller.report import report
from specdecode.model.memory import Memory
from specdecode.policy.estimating import Modeller, estimate
from specdecode.policy.gates import decide
from specdecode.policy.turning import Latest
from specdecode.rollout.phases import Step
from specdecode.sim.twin.agents import Look
from specdecode.sim.twin.result import OPERATOR
from specdecode.sim.twin.run import simulate
from specdecode.sim.twin.scenario import load_scenario

FILE = Path(__file__).with_name("explain-plot.svg")
SCENARIO = Path(__file__).parents[2] / "examples/scenarios/chat-day.yaml"
AT = 22 * 3600.0


def seen() -> Sketch:
    """What there is to draw."""
    looks: list[Look] = []
    scenario = load_scenario(SCENARIO).model_copy(update={"duration": AT})
    simulate(scenario, [OPERATOR], watch=lambda look: looks.append(look) if look.rollout is None else None)
    model = Latest(Modeller())
    o = estimate(looks[-1].observation, model)
    status = report(o, decide(o), Step(), SpecDecodePolicyStatus(), model=model.model)
    drawn = sketch("serving/chat", o, status, Memory(o.knowledge, o.loads))
    assert drawn is not None
    return drawn


if __name__ == "__main__":
    draw(seen(), FILE)
