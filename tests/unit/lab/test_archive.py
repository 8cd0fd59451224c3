import hashlib
import json
import tarfile
from pathlib import Path

from specdecode.lab.realnodes.archive import Config, Image, write_archive, write_layer


def test_a_layer_has_the_files_the_links_and_the_folders_at_their_places(tmp_path: Path) -> None:
    (tmp_path / "program").write_text("#!/bin/sh\n")
    (tmp_path / "program").chmod(0o755)
    layer = write_layer(
        tmp_path / "layer", {"/usr/bin/program": tmp_path / "program"}, {"/bin": "usr/bin"}, ["/tmp", "/run"]
    )
    with tarfile.open(layer.path) as tar:
        entries = {entry.name: entry for entry in tar}
    assert entries["usr/bin/program"].mode == 0o755
    assert (entries["usr/bin/program"].uid, entries["usr/bin/program"].uname) == (0, "")
    assert entries["bin"].linkname == "usr/bin"
    assert (entries["tmp"].mode, entries["run"].mode) == (0o1777, 0o755)
    assert layer.digest == hashlib.sha256(layer.path.read_bytes()).hexdigest()


def test_a_second_name_of_a_file_is_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("content")
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    layer = write_layer(tmp_path / "layer", {"/one": tmp_path / "one", "/two": tmp_path / "two"})
    with tarfile.open(layer.path) as tar:
        assert [(entry.name, entry.isreg(), entry.size) for entry in tar] == [("one", True, 7), ("two", True, 7)]


def test_images_share_layers_in_an_archive(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    shared, own = (write_layer(tmp_path / name, {f"/{name}": tmp_path / "file"}) for name in ("shared", "own"))
    config = Config(["serve"], env={"A": "1"}, user="7")
    write_archive(tmp_path / "out.tar", [Image("r/a:1", [shared], Config()), Image("r/b:1", [shared, own], config)])
    with tarfile.open(tmp_path / "out.tar") as tar:
        content = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    manifest = json.loads(content["manifest.json"])
    assert [image["RepoTags"] for image in manifest] == [["r/a:1"], ["r/b:1"]]
    assert len([name for name in content if name.endswith(".tar")]) == 2
    described = json.loads(content[manifest[1]["Config"]])
    assert described["config"]["Env"] == ["A=1"]
    assert (described["config"]["Entrypoint"], described["config"]["User"]) == (["serve"], "7")
    assert described["rootfs"]["diff_ids"] == [f"sha256:{layer.digest}" for layer in (shared, own)]
    for name, digest in zip(manifest[1]["Layers"], described["rootfs"]["diff_ids"], strict=True):
        assert f"sha256:{hashlib.sha256(content[name]).hexdigest()}" == digest
