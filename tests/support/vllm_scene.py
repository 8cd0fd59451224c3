"""A scene whose pods run real vLLM: two Deployments side by side, one under a policy and one left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from specdecode.cluster.kube import PODS, Json
from specdecode.lab.demo import Figures, figures
from specdecode.lab.realvllm.clients import Clients, Traffic
from specdecode.lab.realvllm.image import NAME as IMAGE
from specdecode.lab.realvllm.installation import TARGET
from support.scene import NAME, Scene, deployment, policy, ready

ALONE = "chat-off"
UP = 120.0
"""Seconds for a Deployment to be up; machines may be busy."""
WARM = 5.0
"""Seconds until clients that begin at once have spread."""
CHANGE = 240.0
"""Seconds for a change from its start to its end."""
NGRAM: Json = {
    "name": "ngram",
    "method": "NGram",
    "numSpeculativeTokens": 8,
    "ngram": {"promptLookupMin": 1, "promptLookupMax": 4},
}


def vllm_deployment(replicas: int, *, name: str = NAME, model: str = TARGET) -> Json:
    """A Deployment of real vLLM. A process takes a pod that ends out of service before it ends: nobody is cut off."""
    made = deployment(replicas, args=[
        f"--model={model}",
        "--served-model-name=chat",
        "--port=8000",
        # A processor without bf16 computes it far slower; and several tokens at once should cost little more than one.
        "--dtype=float32",
        "--max-model-len=1024",
        "--max-num-seqs=16",
        "--enforce-eager",
        "--kv-cache-memory-bytes=256M",
        "--shutdown-timeout=60",
        "--host=$(POD_IP)",
    ])  # fmt: skip
    made["metadata"]["name"] = name
    made["spec"]["selector"]["matchLabels"] = {"app": name}
    made["spec"]["template"]["metadata"]["labels"] = {"app": name}
    pod = made["spec"]["template"]["spec"]
    pod["terminationGracePeriodSeconds"] = 90
    container = pod["containers"][0]
    container["image"] = IMAGE
    container["env"] = [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    container["lifecycle"] = {"preStop": {"sleep": {"seconds": 2}}}
    container["readinessProbe"] |= {"timeoutSeconds": 10, "failureThreshold": 12}
    return made


def vllm_policy(profiles: Sequence[Json], **changes: Any) -> Json:
    """A policy in a hurry, though not more than a few requests a second allow."""
    return policy(
        profiles=list(profiles),
        # A day in minutes. n-gram on this Model Runner drafts at matches only: its floor is that of a draft model.
        guards={"acceptance": {"disableBelow": 0.3, "reviewBelow": 0.4, "p10Below": 0.1}},
        metrics={"interval": "2s", "window": "36s"},
        rollout={
            "analysis": {"minimumRequests": 4, "duration": "30s", "warmup": "4s"},
            "cooldown": "5s",
            "progressDeadline": "180s",
            "maxChangesPerDay": 20,
        },
        **changes,
    )


class VllmScene(Scene):
    """What a test on real vLLM plays in."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.clients: dict[str, Clients] = {}

    def ready_pods(self, name: str) -> list[str]:
        """The base URLs of the ready pods of a Deployment."""
        found = self.view.objects[PODS].items()
        mine = [p for (ns, _), p in found if ns == self.namespace and p["metadata"]["labels"].get("app") == name]
        return [
            f"http://{p['status']['podIP']}:8000" for p in mine if "deletionTimestamp" not in p["metadata"] and ready(p)
        ]

    @property
    def pods(self) -> list[Json]:
        return [p for p in super().pods if p["metadata"]["labels"].get("app") == NAME]

    async def start(self, replicas: int, *, alone: int = 0, model: str = TARGET) -> None:
        """Starts the workload and, with `alone` pods, one like it that no policy knows."""
        manifests = [vllm_deployment(replicas, model=model)]
        if alone:
            manifests.append(vllm_deployment(alone, name=ALONE, model=model))
        await self.lab.apply(manifests, self.namespace)
        await self.until(
            "the Deployments to be up", lambda: self.settled and len(self.ready_pods(ALONE)) == alone, within=UP
        )

    def ask(self, traffic: Traffic, *, of: str = NAME) -> Clients:
        """Lets the clients of a Deployment ask for this from now on."""
        if of not in self.clients:
            self.clients[of] = Clients(lambda: self.ready_pods(of), traffic, model="chat", seed=7)
        self.clients[of].ask(traffic)
        return self.clients[of]

    async def _start_afresh(self, name: str) -> None:
        """Another pod takes the place of the one that there is, which nobody asks for anything."""
        (old,) = self.ready_pods(name)
        for (namespace, pod), p in [*self.view.objects[PODS].items()]:
            if namespace == self.namespace and p["metadata"]["labels"].get("app") == name:
                await self.kube.delete(PODS, pod, namespace)
        await self.until(f"a fresh pod of {name}", lambda: self.ready_pods(name) not in ([], [old]), within=UP)

    async def until_changed(self, changes: int) -> Json:
        """The entry of the history once so many changes have ended and the Deployment is at rest."""
        await self.until(
            f"change {changes} to end", lambda: len(self.history) >= changes and self.settled, within=CHANGE
        )
        return self.history[0]

    async def until_runs(self, profile: str) -> Json:
        """The change that brought a profile, once it runs. A canary may have been inconclusive before: where the
        machine has other things to do, few requests do not tell, and the operator tries again."""

        def found() -> Json | None:
            done = self.history and self.phase is None and self.settled and self.status.get("activeProfile") == profile
            return self.history[0] if done else None

        return await self.until(f"{profile} to run", found, within=2 * CHANGE) or {}

    async def side_by_side(self, traffic: Traffic, seconds: float) -> tuple[Figures, Figures]:
        """What the same clients of both Deployments measure from now on, of requests that begin in this time: under the
        policy, and left alone. At other times nobody asks the other one: it would take the cores that canaries need.
        And it is started afresh, as the first was by its change: a young process is up to a tenth slower here.
        """
        await self._start_afresh(ALONE)
        self.ask(traffic), self.ask(traffic, of=ALONE)
        await asyncio.sleep(WARM)
        since = {name: c.now() for name, c in self.clients.items()}
        await asyncio.sleep(seconds)
        self.ask(replace(traffic, clients=0), of=ALONE)
        ours, theirs = (
            figures([r for r in self.clients[name].records if r.start >= since[name]]) for name in (NAME, ALONE)
        )
        return ours, theirs

    async def assert_all_served(self) -> None:
        """Stops the clients: every request was answered."""
        for client in self.clients.values():
            assert await client.stop()
            assert not client.failures

    def report(self) -> str:
        """What was changed, and what clients measured."""
        lines = [
            f"{h['source']['profile']} to {h['target']['profile']}: {h['reason']}, {h['outcome']}: {h['message']}"
            for h in reversed(self.history)
        ]
        for name, client in self.clients.items():
            for phase in dict.fromkeys(r.phase for r in client.records):
                f = figures([r for r in client.records if r.phase == phase])
                lines.append(f"{name}, {phase}: {f.requests} requests, {f.failed} failed, TPOT {f.tpot * 1e3:.0f} ms")
        return "\n".join(lines)

    async def close(self) -> None:
        for client in self.clients.values():
            await client.close()
        await super().close()
