from typing import Any

import pytest

from specdecode.lab.environment import (
    ConfigError,
    Sources,
    command_line,
    data_of,
    environment,
    port_number,
    references,
)

POD = {
    "metadata": {"name": "p-0", "namespace": "ns", "uid": "u-1", "labels": {"app.kubernetes.io/name": "vllm"}},
    "spec": {"nodeName": "gpu-1", "serviceAccountName": "sa"},
}
SOURCES = Sources(config_maps={"cm": {"A": "1", "B": "2"}}, secrets={"s": {"token": "t"}})


def env_of(**container: Any) -> dict[str, str]:
    return environment({"name": "c", **container}, POD, "127.10.1.1", "127.10.0.1", SOURCES)


def field(path: str) -> dict[str, Any]:
    return {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metadata.name", "p-0"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "u-1"),
        ("metadata.labels['app.kubernetes.io/name']", "vllm"),
        ("metadata.annotations['none']", ""),
        ("spec.nodeName", "gpu-1"),
        ("spec.serviceAccountName", "sa"),
        ("status.podIP", "127.10.1.1"),
        ("status.hostIP", "127.10.0.1"),
    ],
)
def test_a_field_reference_gives_the_pods_own_field(path: str, expected: str) -> None:
    assert env_of(env=[field(path)]) == {"X": expected}


def test_a_variable_sees_those_before_it_and_overrides_those_of_env_from() -> None:
    env = [{"name": "A", "value": "$(B)$(LATER)"}, {"name": "LATER", "value": "$(A)"}]
    assert env_of(envFrom=[{"configMapRef": {"name": "cm"}}], env=env) == {
        "A": "2$(LATER)",
        "B": "2",
        "LATER": "2$(LATER)",
    }


def test_env_from_puts_its_prefix_before_each_key() -> None:
    assert env_of(envFrom=[{"secretRef": {"name": "s"}, "prefix": "S_"}]) == {"S_token": "t"}


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ({"configMapKeyRef": {"name": "no", "key": "A"}}, 'configmap "no" not found'),
        ({"configMapKeyRef": {"name": "cm", "key": "Z"}}, 'couldn\'t find key Z in configmap "cm"'),
        ({"secretKeyRef": {"name": "no", "key": "A"}}, 'secret "no" not found'),
        ({"fieldRef": {"fieldPath": "spec.priority"}}, "fieldPath spec.priority is not supported"),
        ({"resourceFieldRef": {"resource": "limits.cpu"}}, "valueFrom resourceFieldRef is not supported"),
    ],
)
def test_a_reference_that_leads_nowhere_is_an_error_that_names_it(reference: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        env_of(env=[{"name": "X", "valueFrom": reference}])
    assert complaint in str(error.value)


def test_an_optional_reference_that_leads_nowhere_gives_no_variable() -> None:
    optional = {"name": "no", "optional": True}
    env = [{"name": "X", "valueFrom": {"secretKeyRef": {**optional, "key": "k"}}}]
    assert env_of(env=env, envFrom=[{"configMapRef": optional}]) == {}


def test_all_sources_of_the_environment_are_found() -> None:
    container = {
        "env": [
            {"name": "A", "value": "1"},
            {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "cm1", "key": "k"}}},
            {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s1", "key": "k"}}},
        ],
        "envFrom": [{"configMapRef": {"name": "cm2"}}, {"secretRef": {"name": "s2"}}],
    }
    assert references(container) == ({"cm1", "cm2"}, {"s1", "s2"})


def test_a_secrets_data_is_decoded_and_a_config_maps_is_not() -> None:
    assert data_of({"kind": "Secret", "data": {"k": "dGV4dA=="}}) == {"k": "text"}
    assert data_of({"kind": "ConfigMap", "data": {"k": "dGV4dA=="}}) == {"k": "dGV4dA=="}


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ({}, ["vllm", "serve"]),
        ({"args": ["$(MODEL)"]}, ["vllm", "serve", "m"]),
        ({"command": ["sh", "-c", "echo $(MODEL) $HOME"]}, ["sh", "-c", "echo m $HOME"]),
        ({"command": ["a"], "args": ["b"]}, ["a", "b"]),
    ],
)
def test_command_replaces_the_entrypoint_and_args_follow(container: dict[str, Any], expected: list[str]) -> None:
    assert command_line(container, ("vllm", "serve"), {"MODEL": "m"}) == expected


def test_a_port_may_be_given_by_number_or_by_name() -> None:
    container = {"name": "c", "ports": [{"containerPort": 9, "name": "http"}]}
    assert [port_number(container, port) for port in (7, "8", "http")] == [7, 8, 9]
    with pytest.raises(ConfigError, match='port "grpc" in container "c"'):
        port_number(container, "grpc")
