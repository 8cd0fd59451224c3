"""`specdecode crd`: prints the definition, writes what is generated from the types, and finds what drifted."""

from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from specdecode.cli.crd import crd, drift, find_repository, generated_files

REPOSITORY = Path(__file__).parents[3]

app = typer.Typer()
app.command()(crd)


def run(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def repository(tmp_path):
    chart = tmp_path / "charts/specdecode-operator/Chart.yaml"
    chart.parent.mkdir(parents=True)
    chart.touch()
    return tmp_path


def test_the_committed_files_are_those_that_the_types_give():
    assert drift(REPOSITORY) == "", "run `specdecode crd --write`"


def test_the_definition_is_printed_ready_for_kubectl():
    result = run()
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout)["metadata"]["name"] == "specdecodepolicies.specdecode.dev"


def test_what_was_written_is_up_to_date(repository):
    written = run("--write", "--root", repository)
    assert written.stdout.splitlines() == [f"wrote {path}" for path in generated_files()]
    checked = run("--check", "--root", repository)
    assert (checked.exit_code, checked.stdout) == (0, "")


def test_a_change_by_hand_is_shown_as_a_diff(repository):
    run("--write", "--root", repository)
    file = repository / "crds/specdecodepolicies.specdecode.dev.yaml"
    file.write_text(file.read_text().replace("maxItems: 16", "maxItems: 99", 1))
    result = run("--check", "--root", repository)
    assert result.exit_code == 1
    assert "maxItems: 99" in result.stdout
    assert "crds/specdecodepolicies.specdecode.dev.yaml (generated)" in result.stdout
    assert "run `specdecode crd --write`" in result.stderr


def test_a_missing_file_is_drift(repository):
    assert "docs/reference/specdecodepolicy.md (generated)" in run("--check", "--root", repository).stdout


def test_the_repository_is_found_from_a_folder_inside_it(repository):
    inside = repository / "docs/how-to"
    inside.mkdir(parents=True)
    assert find_repository(inside) == repository


def test_outside_of_a_repository_the_way_out_is_said(tmp_path):
    result = run("--check", "--root", tmp_path)
    assert result.exit_code == 2
    assert "--root" in result.stderr


def test_write_and_check_exclude_each_other():
    assert run("--write", "--check").exit_code == 2
