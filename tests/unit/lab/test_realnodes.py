import json
import tomllib
from pathlib import Path

import pytest

from specdecode.lab import paths
from specdecode.lab.realnodes import cgroups, contents, dockerfile, needs, network, worker
from specdecode.lab.realnodes.containerd import PAUSE_IMAGE, config

V1 = """\
9:name=systemd:/
8:pids:/work
7:blkio:/
6:freezer:/
5:devices:/
4:memory:/work/one
3:cpuset:/
2:cpu,cpuacct:/
1:net_cls:/
0::/
"""


def test_the_cgroups_of_a_node_are_below_our_own() -> None:
    below = cgroups.below(cgroups.read(V1), "node-1")
    assert {group.controllers: str(group.path) for group in below} == {
        "name=systemd": "/sys/fs/cgroup/systemd/node-1",
        "pids": "/sys/fs/cgroup/pids/work/node-1",
        "blkio": "/sys/fs/cgroup/blkio/node-1",
        "freezer": "/sys/fs/cgroup/freezer/node-1",
        "devices": "/sys/fs/cgroup/devices/node-1",
        "memory": "/sys/fs/cgroup/memory/work/one/node-1",
        "cpuset": "/sys/fs/cgroup/cpuset/node-1",
        "cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct/node-1",
    }
    assert not cgroups.missing(cgroups.read(V1))


def test_a_machine_with_cgroup_v2_alone_lacks_all_hierarchies() -> None:
    assert cgroups.missing(cgroups.read("0::/user.slice\n")) == cgroups.NEEDED


def test_a_new_cpuset_has_the_processors_of_the_one_above(tmp_path: Path) -> None:
    for file, content in (("cpuset.cpus", "0-1\n"), ("cpuset.mems", "0\n")):
        (tmp_path / file).write_text(content)
    cgroups.create([cgroups.Cgroup("cpuset", tmp_path / "new")])
    assert (tmp_path / "new" / "cpuset.cpus").read_text() == "0-1\n"


def test_what_is_lacking_names_the_packages_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(needs, "find", lambda program: None if program in ("nft", "runc") else f"/bin/{program}")
    monkeypatch.setattr(cgroups, "own", lambda: cgroups.read(V1))
    assert needs.lacking() == ["this is not root", "programs are missing: apt-get install nftables runc"]


def test_every_node_has_addresses_of_its_own() -> None:
    nodes = range(1, 101)
    assert len({network.address(node) for node in nodes} | {network.HUB}) == 101
    assert len({network.pod_network(node) for node in nodes}) == 100
    assert all(network.pod_network(node).subnet_of(network.PODS) for node in nodes)


def test_pods_of_a_node_get_addresses_of_its_network() -> None:
    (bridge,) = json.loads(json.dumps(worker.cni_config(2)))["plugins"]
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.88.2.0/24"}]]


def test_containerd_takes_its_configuration_as_toml() -> None:
    read = tomllib.loads(config(Path("/lab/cni")))
    runtime = read["plugins"]["io.containerd.grpc.v1.cri"]
    assert runtime["sandbox_image"] == PAUSE_IMAGE
    assert runtime["cni"]["conf_dir"] == "/lab/cni"


def test_the_image_runs_as_its_dockerfile_says() -> None:
    said = dockerfile.config_of((paths.CHECKOUT / "Dockerfile").read_text())
    assert said.user == "65532:65532"
    assert (said.entrypoint, said.command) == (["specdecode"], ["operator", "run"])
    assert said.env["PATH"] == "/opt/specdecode/bin:$PATH"
    assert said.env["PYTHONUNBUFFERED"] == "1"


def test_only_the_last_stage_of_a_dockerfile_counts() -> None:
    text = 'FROM a AS build\nENV A=1\nUSER root\nFROM b\n# comment\nENV B=2 \\\n  C="3 4"\nCMD ["run"]\n'
    said = dockerfile.config_of(text)
    assert (said.env, said.user, said.command) == ({"B": "2", "C": "3 4"}, "", ["run"])


def test_the_interpreter_goes_into_the_image_with_all_its_libraries() -> None:
    files = contents.interpreter()
    python = str(contents.base_python())
    assert files[python] == contents.base_python()
    assert any(name.endswith("/os.py") for name in files)
    assert not [name for name in files if "/site-packages/" in name or "/idlelib/" in name]
    libraries = contents.libraries({python: files[python]})
    assert any("libc.so" in name for name in libraries)
    assert all(path.is_file() for path in libraries.values())


def test_a_tree_leaves_out_folders_by_name_and_keeps_links(tmp_path: Path) -> None:
    for name in ("kept/a.py", "test/b.py", "kept/lib.a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("kept")
    names = {name.removeprefix(f"{tmp_path}/") for name in contents.tree(tmp_path, {"test"})}
    assert names == {"kept/a.py", "link"}
