"""Policies applied to a real API server: bad ones are refused with what to do, good ones get their defaults."""

from __future__ import annotations

import asyncio
import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from specdecode.api.crd import custom_resource_definition
from specdecode.api.v1alpha1 import (
    Condition,
    Configuration,
    Original,
    Recommendation,
    SpecDecodePolicySpec,
    SpecDecodePolicyStatus,
    Summary,
)
from specdecode.cluster.kube import POLICIES, ApiError, Json, Kube
from specdecode.lab.lab import Lab

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

EXAMPLES = Path(__file__).parents[2] / "examples"

NAME = "at-apply"
POLICY: Json = {
    "apiVersion": "specdecode.dev/v1alpha1",
    "kind": "SpecDecodePolicy",
    "metadata": {"name": NAME},
    "spec": {
        "targetRef": {"name": "vllm-chat"},
        "profiles": [
            {"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5, "ngram": {"promptLookupMin": 2}},
            {
                "name": "draft",
                "method": "DraftModel",
                "numSpeculativeTokens": 3,
                "draftModel": {"model": "meta-llama/Llama-3.2-1B-Instruct"},
            },
        ],
    },
}
NOW = "2026-11-22T17:00:00Z"
GONE: Any = object()


def changed(policy: Json, changes: dict[str, Any]) -> Json:
    """The policy with values put at paths such as `spec.profiles.0.name`; `GONE` takes a field away."""
    result = copy.deepcopy(policy)
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        node: Any = result
        for part in parents:
            node = node[part] if isinstance(part, int) else node.setdefault(part, {})
        if value is GONE:
            del node[last]
        else:
            node[last] = value
    return result


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def kube(lab: Lab) -> Kube:
    """A connection to an API server that knows policies."""
    await lab.apply([custom_resource_definition()])

    async def served() -> bool:
        try:
            await lab.kube.request("POST", POLICIES.path("default"), {"dryRun": "All"}, POLICY)
        except ApiError as e:
            return e.status != 404
        return True

    await lab.wait("policies to be served", served)
    return lab.kube


async def try_to_create(kube: Kube, policy: Json) -> Json:
    """What the API server would store: validation and defaults, but no object."""
    unnamed = policy | {"metadata": {"generateName": "dry-run-"}}
    return await kube.request("POST", POLICIES.path("default"), {"dryRun": "All"}, unnamed)


BAD = {
    "live tuning of what is not tuned": (
        {"spec.batchSizeTuning": {"mode": "Off", "apply": "Live"}},
        "set mode: Auto, or leave apply out",
    ),
    "a way of tuning that there is not": (
        {"spec.batchSizeTuning": {"mode": "Auto", "apply": "Hot"}},
        "Unsupported value",
    ),
    # Profiles and their blocks.
    "a draft model without its block": (
        {"spec.profiles.1.draftModel": GONE},
        "that method needs it: give draftModel.model, or change the method",
    ),
    "a draft model block for n-gram": (
        {"spec.profiles.0.draftModel": {"model": "x"}},
        "draftModel belongs to method DraftModel",
    ),
    "an n-gram block for a draft model": (
        {"spec.profiles.1.ngram": {"promptLookupMin": 2}},
        "ngram belongs to method NGram: remove the block, or set method: NGram",
    ),
    "a draft without a name": ({"spec.profiles.1.draftModel": {}}, "spec.profiles[1].draftModel.model: Required value"),
    "an empty draft name": ({"spec.profiles.1.draftModel.model": ""}, "should be at least 1 chars long"),
    "no GPU for the draft": (
        {"spec.profiles.1.draftModel.tensorParallelSize": 0},
        "should be greater than or equal to 1",
    ),
    "K of zero": (
        {"spec.profiles.0.numSpeculativeTokens": 0},
        "numSpeculativeTokens in body should be greater than or equal to 1",
    ),
    "K beyond what vLLM samples": (
        {"spec.profiles.0.numSpeculativeTokens": 129},
        "should be less than or equal to 128",
    ),
    "K that is no number": ({"spec.profiles.0.numSpeculativeTokens": "five"}, "must be of type integer"),
    "no K": (
        {"spec.profiles.0.numSpeculativeTokens": GONE},
        "numSpeculativeTokens must be given for DraftModel and NGram (3 to 5 is usual)",
    ),
    "K for disabled": (
        {"spec.profiles.0": {"name": "disabled", "method": "Disabled", "numSpeculativeTokens": 3}},
        "left out for Disabled",
    ),
    "a method that is not managed": (
        {"spec.profiles.0.method": "Eagle"},
        'Unsupported value: "Eagle": supported values: "DraftModel", "NGram", "Disabled"',
    ),
    "another name for disabled": (
        {"spec.profiles.0": {"name": "off", "method": "Disabled"}},
        "the name disabled and the method Disabled belong together: rename the profile",
    ),
    "disabled that drafts": (
        {"spec.profiles.0.name": "disabled"},
        "the name disabled and the method Disabled belong together: rename the profile",
    ),
    "look-up lengths the wrong way round": (
        {"spec.profiles.0.ngram": {"promptLookupMin": 5, "promptLookupMax": 2}},
        "promptLookupMin must not be larger than ngram.promptLookupMax: swap them",
    ),
    "a look-up of no tokens": (
        {"spec.profiles.0.ngram.promptLookupMin": 0},
        "promptLookupMin in body should be greater than or equal to 1",
    ),
    "a profile name with capitals": ({"spec.profiles.0.name": "NGram_5"}, "spec.profiles[0].name in body should match"),
    "a profile without a name": ({"spec.profiles.0.name": GONE}, "spec.profiles[0].name: Required value"),
    "two profiles of one name": (
        {"spec.profiles.1.name": "ngram"},
        'spec.profiles[1]: Duplicate value: {"name":"ngram"}',
    ),
    "no profiles": ({"spec.profiles": []}, "spec.profiles in body should have at least 1 items"),
    "profiles left out": ({"spec.profiles": GONE}, "spec.profiles: Required value"),
    "nothing but disabled": (
        {"spec.profiles": [{"name": "disabled", "method": "Disabled"}]},
        "give at least one profile that speculates, such as {name: ngram, method: NGram, numSpeculativeTokens: 5}",
    ),
    "too many profiles": (
        {"spec.profiles": [{"name": f"n{k}", "method": "NGram", "numSpeculativeTokens": k} for k in range(1, 18)]},
        "spec.profiles: Too many: 17: must have at most 16 items",
    ),
    # Arguments and environment.
    "speculation in args": (
        {"spec.profiles.0.args": {"speculative-config": "{}"}},
        "speculative arguments are not accepted in args: use method, numSpeculativeTokens, draftModel and ngram",
    ),
    "speculation in args, spelt the old way": (
        {"spec.profiles.0.args": {"--num_speculative_tokens": "3"}},
        "speculative arguments are not accepted in args",
    ),
    "a flag and its value in one": (
        {"spec.profiles.0.args": {"--max-num-seqs=64": ""}},
        "args takes names of vLLM flags, such as max-num-batched-tokens: put the value behind the colon",
    ),
    "a number as value of an argument": ({"spec.profiles.0.args": {"max-num-seqs": 64}}, "must be of type string"),
    "an environment variable with a dash": (
        {"spec.profiles.0.env": {"VLLM-FLAG": "1"}},
        "env takes names of environment variables: letters, digits and _",
    ),
    "the operator's variable for the speculative configuration": (
        {"spec.profiles.0.env": {"SPECDECODE_CONFIG": "null"}},
        "SPECDECODE_CONFIG and SPECDECODE_RESTARTED_AT are written by the operator: remove them from env",
    ),
    "the operator's mark of a restart": (
        {"spec.profiles.0.env": {"SPECDECODE_RESTARTED_AT": "2026-01-01T00:00:00Z"}},
        "SPECDECODE_CONFIG and SPECDECODE_RESTARTED_AT are written by the operator: remove them from env",
    ),
    # The workload.
    "no workload": ({"spec.targetRef": GONE}, "spec.targetRef: Required value"),
    "a workload without a name": ({"spec.targetRef.name": GONE}, "spec.targetRef.name: Required value"),
    "a kind that is not managed": (
        {"spec.targetRef.kind": "StatefulSet"},
        'spec.targetRef.kind: Unsupported value: "StatefulSet": supported values: "Deployment"',
    ),
    "a version that is not managed": (
        {"spec.targetRef.apiVersion": "extensions/v1beta1"},
        'supported values: "apps/v1"',
    ),
    "a workload's name with a slash": (
        {"spec.targetRef.name": "serving/chat"},
        "spec.targetRef.name in body should match",
    ),
    "a container name with a dot": (
        {"spec.targetRef.container": "vllm.1"},
        "spec.targetRef.container in body should match",
    ),
    "an unknown mode": (
        {"spec.mode": "Automatic"},
        'spec.mode: Unsupported value: "Automatic": supported values: "Observe", "Recommend", "Auto"',
    ),
    "a version of vLLM that is none": ({"spec.vllmVersion": "latest"}, "spec.vllmVersion in body should match"),
    # Quantities.
    "a duration in words": (
        {"spec.metrics.window": "5 minutes"},
        "this is no duration: write for example 90s, 5m or 1h30m",
    ),
    "a duration without a unit": ({"spec.rollout.cooldown": "30"}, "this is no duration: write for example 90s"),
    "a duration that is a number": (
        {"spec.rollout.cooldown": 30},
        "spec.rollout.cooldown in body must be of type string",
    ),
    "a duration beyond all measure": (
        {"spec.metrics.window": "9999999h"},
        "this is no duration: write for example 90s",
    ),
    "a percentage without a sign": ({"spec.objective.minimumGain": "5"}, "this is no percentage: write for example 5%"),
    "a negative percentage": ({"spec.objective.minimumGain": "-5%"}, "this is no percentage: write for example 5%"),
    "an SLO of zero": (
        {"spec.objective.slo.timePerOutputToken.p99": "0ms"},
        "this must be longer than zero",
    ),
    "an SLO without a limit": (
        {"spec.objective.slo.timeToFirstToken": {}},
        "spec.objective.slo.timeToFirstToken.p99: Required value",
    ),
    "an analysis that takes no time": ({"spec.rollout.analysis.duration": "0s"}, "this must be longer than zero"),
    "a deadline before an analysis can end": (
        {"spec.rollout.progressDeadline": "20m"},
        "progressDeadline must be at least analysis.warmup plus twice analysis.duration",
    ),
    "an analysis longer than the deadline": (
        {"spec.rollout.analysis.duration": "1h"},
        "raise progressDeadline or shorten analysis.duration",
    ),
    "a judgement without requests": (
        {"spec.rollout.analysis.minimumRequests": 0},
        "minimumRequests in body should be greater than or equal to 1",
    ),
    "no change a day": ({"spec.rollout.maxChangesPerDay": 0}, "should be greater than or equal to 1"),
    "a window shorter than two intervals": (
        {"spec.metrics": {"interval": "15s", "window": "20s"}},
        "window must be at least twice the interval: a rate needs two measurements",
    ),
    "measuring without a pause": ({"spec.metrics.interval": "100ms"}, "interval must be at least 1s"),
    "floors the wrong way round": (
        {"spec.guards.acceptance.disableBelow": 0.7},
        "disableBelow must not be larger than reviewBelow: raise reviewBelow or lower disableBelow",
    ),
    "a floor in percent": (
        {"spec.guards.acceptance.p10Below": 50},
        "p10Below in body should be less than or equal to 1",
    ),
    "port zero": ({"spec.metrics.port": 0}, "port must be a number from 1 to 65535 or the name of a container port"),
    "a port out of range": ({"spec.metrics.port": 70000}, "port must be a number from 1 to 65535"),
    "a port name with capitals": ({"spec.metrics.port": "HTTP"}, "or the name of a container port, such as http"),
    "a relative path": ({"spec.metrics.path": "metrics"}, "spec.metrics.path in body should match"),
    "an unknown deletion policy": ({"spec.deletionPolicy": "Delete"}, 'supported values: "Restore", "Keep"'),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_policy_is_refused_with_what_to_do(kube, name):
    changes, message = BAD[name]
    with pytest.raises(ApiError) as refusal:
        await try_to_create(kube, changed(POLICY, changes))
    assert refusal.value.status == 422
    assert message in refusal.value.message
    assert "evaluating rule" not in refusal.value.message, "a rule could not be evaluated: it must be silent instead"


GOOD: dict[str, dict[str, Any]] = {
    "as it stands": {},
    "disabled with arguments of its own": {
        "spec.profiles.0": {"name": "disabled", "method": "Disabled", "args": {"max-num-batched-tokens": "2048"}}
    },
    "arguments in vLLM's spellings": {
        "spec.profiles.0.args": {
            "--max_num_seqs": "64",
            "compilation-config.cudagraph_mode": "FULL",
            "enforce-eager": "",
        }
    },
    "one look-up length": {"spec.profiles.0.ngram": {"promptLookupMax": 4}},
    "a port by number": {"spec.metrics.port": 8000},
    "a port by name": {"spec.metrics.port": "http"},
    "no rest between changes": {"spec.rollout.cooldown": "0s"},
    "no warm-up": {"spec.rollout.analysis.warmup": "0s"},
    "short times": {
        "spec.rollout": {"analysis": {"duration": "2s", "warmup": "0s"}, "progressDeadline": "4s"},
        "spec.metrics": {"interval": "1s", "window": "2s"},
    },
    "the longest times": {"spec.metrics.window": "999999h999999h99999h", "spec.rollout.progressDeadline": "999999h"},
    "any gain": {"spec.objective.minimumGain": "0%"},
    "no floors": {"spec.guards.acceptance": {"disableBelow": 0, "reviewBelow": 0, "p10Below": 0}},
    "a version with a suffix": {"spec.vllmVersion": "v0.24.0rc1+cu128"},
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_good_policy_is_accepted_and_read_as_it_is_stored(kube, name):
    policy = changed(POLICY, GOOD[name])
    stored = await try_to_create(kube, policy)
    assert SpecDecodePolicySpec.model_validate(stored["spec"]) == SpecDecodePolicySpec.model_validate(policy["spec"])


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("policy-*.yaml")), ids=lambda file: file.name)
async def test_the_examples_are_accepted_and_come_back_with_defaults(kube, file):
    policy = yaml.safe_load(file.read_text())
    stored = (await try_to_create(kube, policy))["spec"]
    spec = SpecDecodePolicySpec.model_validate(stored)
    assert spec == SpecDecodePolicySpec.model_validate(policy["spec"])
    written = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    assert SpecDecodePolicySpec.model_validate(written) == spec


async def test_a_minimal_policy_comes_back_with_all_defaults(kube):
    minimal = yaml.safe_load((EXAMPLES / "policy-ngram.yaml").read_text())
    stored = (await try_to_create(kube, minimal))["spec"]
    assert stored == {
        "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "vllm-chat"},
        "mode": "Recommend",
        "suspend": False,
        "profiles": [{"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5}],
        "batchSizeTuning": {"mode": "Off", "apply": "Roll"},
        "objective": {"minimumGain": "5%", "slo": {}},
        "guards": {"acceptance": {"disableBelow": 0.5, "reviewBelow": 0.65, "p10Below": 0.5}},
        "rollout": {
            "analysis": {"minimumRequests": 200, "duration": "10m", "warmup": "30s"},
            "cooldown": "30m",
            "maxChangesPerDay": 6,
            "progressDeadline": "30m",
            "allowUnavailable": False,
        },
        "metrics": {"path": "/metrics", "interval": "15s", "window": "5m"},
        "deletionPolicy": "Restore",
    }


@dataclass(frozen=True)
class Stored:
    """A policy that exists, so that it can be changed."""

    kube: Kube
    namespace: str

    async def change(self, spec: Json) -> Json:
        return await self.kube.patch(POLICIES, NAME, self.namespace, {"spec": spec})

    async def report(self, status: SpecDecodePolicyStatus) -> Json:
        body = {"status": status.model_dump(mode="json", by_alias=True, exclude_none=True)}
        return await self.kube.patch(POLICIES, NAME, self.namespace, body, subresource="status")


@pytest_asyncio.fixture(loop_scope="session")
async def stored(kube: Kube, namespace: str) -> Stored:
    await kube.create(POLICIES, POLICY, namespace)
    return Stored(kube, namespace)


async def test_a_policy_keeps_its_workload(stored):
    with pytest.raises(ApiError, match="a policy keeps its workload: delete this policy and make another one"):
        await stored.change({"targetRef": {"name": "vllm-other"}})


async def test_a_container_can_be_named_later_but_not_changed(stored):
    await stored.change({"targetRef": {"container": "vllm"}})
    for container in ("other", None):
        with pytest.raises(ApiError, match="a policy keeps its container: delete this policy and make another one"):
            await stored.change({"targetRef": {"container": container}})


async def test_a_container_that_is_named_later_is_the_one_that_was_changed(stored):
    await stored.report(SpecDecodePolicyStatus(original=Original(container="vllm", args=["--model=x"], adopted_at=NOW)))
    with pytest.raises(ApiError, match=r"the operator has changed another container: name that one"):
        await stored.change({"targetRef": {"container": "sidecar"}})
    await stored.change({"targetRef": {"container": "vllm"}})


async def test_the_rest_of_a_policy_can_be_changed(stored):
    policy = await stored.change({"mode": "Auto", "suspend": True})
    assert policy["metadata"]["generation"] == 2


async def test_a_status_is_stored_as_it_is_written_and_is_no_new_generation(stored):
    status = SpecDecodePolicyStatus(
        conditions=[Condition(type="Ready", status="True", reason="Managing", last_transition_time=NOW)],
        observed_generation=1,
        active_profile="ngram",
        active=Configuration(profile="ngram"),
        summary=Summary(gain="+25 %", acceptance="0.72", batch_size="12.4"),
        original=Original(
            container="vllm",
            adopted_at=NOW,
            args=["--model=x"],
            env=[{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}],
        ),
    )
    policy = await stored.report(status)
    assert SpecDecodePolicyStatus.model_validate(policy["status"]) == status
    assert policy["metadata"]["generation"] == 1


async def test_kubectl_get_shows_what_matters(lab, stored):
    await stored.report(
        SpecDecodePolicyStatus(
            conditions=[Condition(type="Ready", status="True", reason="Managing", last_transition_time=NOW)],
            active_profile="disabled",
            recommendation=Recommendation(profile="ngram", reason="CheapestProfile", message="ngram is faster"),
            summary=Summary(gain="+25 %", acceptance="0.72", batch_size="12.4"),
        ),
    )
    kubectl = Path(sys.executable).with_name("kubectl")
    arguments = ("--kubeconfig", lab.kubeconfig, "--namespace", stored.namespace, "get", "sdp", NAME)
    process = await asyncio.create_subprocess_exec(kubectl, *arguments, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    heading, row = output.decode().splitlines()
    columns = " ".join(heading.split())
    assert columns == "NAME MODE ACTIVE RECOMMENDED GAIN ACCEPT BATCH PHASE READY AGE"
    assert " ".join(row.split()).startswith("at-apply Recommend disabled ngram +25 % 0.72 12.4 True")
