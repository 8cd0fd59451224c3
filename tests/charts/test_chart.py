"""What the chart renders, for a table of values, and what it refuses."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

import specdecode
from specdecode.api.crd import custom_resource_definition
from support.helm import CHART, REPOSITORY

pytestmark = pytest.mark.charts


Objects = dict[tuple[str, str, str], dict[str, Any]]
Render = Callable[..., Objects]


@pytest.fixture(scope="session")
def render(helm) -> Render:
    """The rendered objects by kind, namespace and name."""

    @functools.cache
    def manifests(values: str) -> str:
        result = helm("template", "sd", str(CHART), "--namespace", "specdecode", values=json.loads(values))
        assert result.returncode == 0, result.stderr
        return result.stdout

    def run(values: dict[str, Any] | None = None) -> Objects:
        documents = yaml.load_all(manifests(json.dumps(values or {})), yaml.CSafeLoader)
        return {(d["kind"], d["metadata"].get("namespace", ""), d["metadata"]["name"]): d for d in documents if d}

    return run


NAME = "sd-specdecode-operator"
FULL = {
    "watchNamespaces": ["serving", "staging"],
    "logFormat": "plain",
    "image": {"repository": "registry.example.com/op", "digest": "sha256:" + "0" * 64, "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "serviceAccount": {"name": "robot", "annotations": {"a": "b"}},
    "health": {"port": 8181},
    "metrics": {"port": 9191, "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "interval": "1m"}},
    "networkPolicy": {"enabled": True, "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "podAnnotations": {"note": "x"},
    "podLabels": {"team": "inference"},
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "control", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "terminationGracePeriodSeconds": 60,
}
VALUES: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": FULL,
    "namespaced": {"watchNamespaces": ["serving"]},
    "without the definition": {"crds": {"enabled": False}},
    "without roles": {"rbac": {"create": False}, "serviceAccount": {"create": False}},
    "without a metrics service": {"metrics": {"service": {"enabled": False}}},
}


def deployment(objects: Objects, name: str = NAME) -> dict[str, Any]:
    return objects["Deployment", "specdecode", name]["spec"]


def container(objects: Objects) -> dict[str, Any]:
    (only,) = deployment(objects)["template"]["spec"]["containers"]
    return only


def rules(objects: Objects) -> Iterator[dict[str, Any]]:
    for (kind, _, _), body in objects.items():
        if kind in {"Role", "ClusterRole"}:
            yield from body["rules"]


@pytest.mark.parametrize("name", VALUES)
def test_the_chart_is_lint_free(helm, name):
    result = helm("lint", "--strict", "--quiet", str(CHART), values=VALUES[name])
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", VALUES)
def test_the_pod_may_do_as_little_as_possible(render, name):
    objects = render(VALUES[name])
    pod = deployment(objects)["template"]["spec"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(objects)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & pod.keys()


@pytest.mark.parametrize("name", VALUES)
def test_roles_have_no_wildcards_and_no_secrets(render, name):
    for rule in rules(render(VALUES[name])):
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        assert not {"secrets", "nodes", "pods/exec"} & set(rule["resources"])
        assert "escalate" not in rule["verbs"]
        assert "impersonate" not in rule["verbs"]


@pytest.mark.parametrize("name", VALUES)
def test_config_maps_are_neither_listed_nor_deleted(render, name):
    found = [rule for rule in rules(render(VALUES[name])) if "configmaps" in rule["resources"]]
    assert all((rule["apiGroups"], rule["resources"]) == ([""], ["configmaps"]) for rule in found)
    assert all(set(rule["verbs"]) == {"get", "create", "patch"} for rule in found)
    assert bool(found) is (name != "without roles")


def test_logs_are_read_one_at_a_time_and_only_where_that_is_allowed(render):
    (found,) = [rule for rule in rules(render()) if "pods/log" in rule["resources"]]
    assert (found["resources"], found["verbs"]) == (["pods/log"], ["get"])
    without = rules(render({"rbac": {"readLogs": False}}))
    assert without and not any("pods/log" in rule["resources"] for rule in without)


def test_only_one_operator_runs_at_a_time(render):
    spec = deployment(render())
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_the_operator_is_started_with_what_the_values_say(render):
    default, full = container(render()), container(render(FULL))
    assert default["command"] == ["specdecode", "operator", "run"]
    assert default["args"] == ["--health-port=8080", "--metrics-port=9090", "--log-format=json"]
    assert full["args"] == [
        "--namespace=serving",
        "--namespace=staging",
        "--health-port=8181",
        "--metrics-port=9191",
        "--log-format=plain",
    ]
    assert [variable["name"] for variable in full["env"]] == ["POD_ID", "HTTPS_PROXY"]
    assert [port["containerPort"] for port in full["ports"]] == [8181, 9191]


def test_both_probes_ask_the_health_port(render):
    for probe in ("livenessProbe", "readinessProbe"):
        assert container(render())[probe]["httpGet"] == {"path": "/healthz", "port": "health"}


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ({}, f"specdecode-operator:{specdecode.__version__}"),
        ({"repository": "example.com/op", "tag": "dev"}, "example.com/op:dev"),
        ({"tag": "dev", "digest": "sha256:" + "a" * 64}, "specdecode-operator@sha256:" + "a" * 64),
    ],
)
def test_the_image_is_named_by_digest_or_tag_or_version(render, image, name):
    assert container(render({"image": image}))["image"] == name


def test_scheduling_values_reach_the_pod(render):
    spec = deployment(render(FULL))["template"]
    fields = ("priorityClassName", "nodeSelector", "tolerations", "affinity", "imagePullSecrets")
    assert {field: spec["spec"][field] for field in fields} == {field: FULL[field] for field in fields}
    assert spec["spec"]["terminationGracePeriodSeconds"] == 60
    assert spec["metadata"]["labels"]["team"] == "inference"
    assert spec["metadata"]["annotations"] == {"note": "x"}


@pytest.mark.parametrize("name", ["default", "everything"])
def test_selectors_find_the_pod(render, name):
    objects = render(VALUES[name])
    labels = deployment(objects)["template"]["metadata"]["labels"].items()
    selectors = [
        deployment(objects)["selector"]["matchLabels"],
        objects["Service", "specdecode", f"{NAME}-metrics"]["spec"]["selector"],
    ]
    if name == "everything":
        selectors.append(objects["PodMonitor", "specdecode", NAME]["spec"]["selector"]["matchLabels"])
        selectors.append(objects["NetworkPolicy", "specdecode", NAME]["spec"]["podSelector"]["matchLabels"])
    assert all(selector.items() <= labels for selector in selectors)


def test_all_namespaces_are_watched_through_a_cluster_role(render):
    objects = render()
    binding = objects["ClusterRoleBinding", "", NAME]
    assert binding["roleRef"]["name"] == NAME
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": NAME, "namespace": "specdecode"}]
    assert not [key for key in objects if key[0] in {"Role", "RoleBinding"}]


def test_some_namespaces_are_watched_through_a_role_in_each(render):
    objects = render({"watchNamespaces": ["serving", "staging"]})
    *namespaced, definitions = render()["ClusterRole", "", NAME]["rules"]
    assert definitions["resources"] == ["customresourcedefinitions"]
    for namespace in ("serving", "staging"):
        assert objects["Role", namespace, NAME]["rules"] == namespaced
        assert objects["RoleBinding", namespace, NAME]["subjects"][0]["namespace"] == "specdecode"
    assert ("ClusterRole", "", NAME) not in objects
    assert ("ClusterRoleBinding", "", NAME) not in objects


def test_policies_are_readable_and_writable_for_people_through_the_clusters_own_roles(render):
    objects = render()
    labels = {name: objects["ClusterRole", "", f"{NAME}-{name}"]["metadata"]["labels"] for name in ("view", "edit")}
    assert labels["view"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert "rbac.authorization.k8s.io/aggregate-to-view" not in labels["edit"]
    assert not [key for key in render({"rbac": {"aggregate": False}}) if key[2].endswith(("-view", "-edit"))]


def test_the_definition_is_the_generated_one_and_stays_after_uninstall(render):
    crd = render()["CustomResourceDefinition", "", "specdecodepolicies.specdecode.dev"]
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd == custom_resource_definition()
    assert crd == yaml.safe_load((REPOSITORY / "crds/specdecodepolicies.specdecode.dev.yaml").read_text())
    assert not [key for key in render({"crds": {"enabled": False}}) if key[0] == "CustomResourceDefinition"]


def test_the_network_policy_opens_what_the_operator_needs(render):
    spec = render({"networkPolicy": {"enabled": True, "serverPorts": [8000, 9000]}})[
        "NetworkPolicy", "specdecode", NAME
    ]["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert [rule["ports"][0]["port"] for rule in spec["ingress"]] == ["health", "metrics"]
    egress = {port["port"] for rule in spec["egress"] for port in rule["ports"]}
    assert egress == {53, 443, 6443, 8000, 9000}
    assert spec["egress"][-1]["to"] == [{"namespaceSelector": {}}]


def test_the_network_policy_follows_the_watched_namespaces_and_the_readers_of_metrics(render):
    spec = render(FULL)["NetworkPolicy", "specdecode", NAME]["spec"]
    (namespaces,) = spec["egress"][-1]["to"][0]["namespaceSelector"]["matchExpressions"]
    assert namespaces == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["serving", "staging"]}
    assert spec["ingress"][1]["from"] == FULL["networkPolicy"]["metricsFrom"]


def test_nothing_optional_is_rendered_by_default(render):
    kinds = {kind for kind, _, _ in render()}
    assert kinds == {
        *("CustomResourceDefinition", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"),
        *("Deployment", "Service"),
    }


def test_long_names_are_cut_to_what_kubernetes_takes(render):
    objects = render({"fullnameOverride": "x" * 63})
    labels = [value for body in objects.values() for value in body["metadata"].get("labels", {}).values()]
    services = [name for kind, _, name in objects if kind == "Service"]
    assert services == ["x" * 55 + "-metrics"]
    assert max(map(len, labels)) <= 63


BAD = {
    "a misspelt value": ({"watchNamespace": ["a"]}, "watchNamespace"),
    "a misspelt inner value": ({"image": {"repo": "x"}}, "repo"),
    "an unknown pull policy": ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    "an unknown log format": ({"logFormat": "xml"}, "logFormat"),
    "a namespace that is none": ({"watchNamespaces": ["Not A Namespace"]}, "watchNamespaces"),
    "namespaces as text": ({"watchNamespaces": "serving"}, "watchNamespaces"),
    "a port out of range": ({"metrics": {"port": 70000}}, "/metrics/port"),
    "a digest without its algorithm": ({"image": {"digest": "abc"}}, "digest"),
    "an empty image": ({"image": {"repository": ""}}, "repository"),
    "no ports of servers": ({"networkPolicy": {"serverPorts": []}}, "serverPorts"),
    "a flag as text": ({"crds": {"enabled": "yes"}}, "/crds/enabled"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_by_name(helm, name):
    values, place = BAD[name]
    result = helm("template", "sd", str(CHART), values=values)
    assert result.returncode != 0
    assert place in result.stderr


def test_the_notes_say_what_to_do_next(helm):
    result = helm(
        "install",
        "sd",
        str(CHART),
        "--dry-run=client",
        "--namespace",
        "specdecode",
        values={"watchNamespaces": ["serving"]},
    )
    assert result.returncode == 0, result.stderr
    notes = result.stdout.partition("NOTES:")[2]
    assert "kubectl get sdp" in notes
    policy = yaml.safe_load(notes.partition("<<EOF\n")[2].partition("EOF")[0])
    assert policy["kind"] == "SpecDecodePolicy"
    assert policy["metadata"]["namespace"] == "serving"


def test_the_chart_has_the_version_of_the_operator():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == specdecode.__version__


def test_the_chart_runs_the_image_as_the_image_does(render):
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    context = deployment(render())["template"]["spec"]["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in dockerfile
    assert f"ARG VERSION={specdecode.__version__}\n" in dockerfile


def leaves(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value and key != "resources":
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def test_every_value_is_explained_and_checked():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    readme = (CHART / "README.md").read_text()
    assert [path for path in leaves(values) if f"`{path}`" not in readme] == []
    schema = json.loads((CHART / "values.schema.json").read_text())
    for path in leaves(values):
        node = schema
        for part in path.split("."):
            assert part in node["properties"], path
            node = node["properties"][part]
