"""The Python types read what the API server stores."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from specdecode.api.v1alpha1 import (
    Condition,
    Configuration,
    Mode,
    ProfileMethod,
    SpecDecodePolicy,
    SpecDecodePolicySpec,
    SpecDecodePolicyStatus,
    Summary,
)

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("policy-*.yaml"))
MINIMAL = {
    "targetRef": {"name": "vllm-chat"},
    "profiles": [{"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5}],
}


def test_a_minimal_policy_gets_its_defaults():
    spec = SpecDecodePolicySpec.model_validate(MINIMAL)
    assert spec.mode is Mode.RECOMMEND
    assert spec.target_ref.kind == "Deployment"
    assert spec.objective.minimum_gain == 0.05
    assert spec.rollout.analysis.duration == 600
    assert spec.metrics.window == 300


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_the_examples_are_read_and_written_unchanged(file):
    policy = SpecDecodePolicy.model_validate(yaml.safe_load(file.read_text()))
    written = policy.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert SpecDecodePolicy.model_validate(written) == policy


def test_quantities_and_enumerations_are_written_as_in_yaml():
    written = SpecDecodePolicySpec.model_validate(MINIMAL).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert written["rollout"]["analysis"]["duration"] == "10m"
    assert written["objective"] == {"minimumGain": "5%", "slo": {}}
    assert written["profiles"][0]["method"] == "NGram"


def test_fields_of_a_newer_version_are_ignored():
    spec = SpecDecodePolicySpec.model_validate(MINIMAL | {"invented": {"later": 1}})
    assert spec.profiles[0].method is ProfileMethod.NGRAM


def test_a_wrong_duration_is_reported_with_its_place():
    with pytest.raises(ValidationError, match=r"metrics\.window\n.*'5 minutes' is not a duration"):
        SpecDecodePolicySpec.model_validate(MINIMAL | {"metrics": {"window": "5 minutes"}})


def test_a_port_is_a_number_or_a_name():
    ports = [
        SpecDecodePolicySpec.model_validate(MINIMAL | {"metrics": {"port": port}}).metrics.port
        for port in (8000, "http")
    ]
    assert ports == [8000, "http"]


def test_a_status_is_written_without_empty_fields():
    status = SpecDecodePolicyStatus(
        conditions=[
            Condition(type="Ready", status="True", reason="Managing", last_transition_time="2026-11-22T17:00:00Z")
        ],
        active=Configuration(profile="ngram"),
        summary=Summary(gain="+25 %", batch_size="12.4"),
    )
    written = status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    assert written == {
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Managing", "lastTransitionTime": "2026-11-22T17:00:00Z"}
        ],
        "active": {"profile": "ngram"},
        "summary": {"gain": "+25 %", "batchSize": "12.4"},
    }
