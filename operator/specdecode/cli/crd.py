"""`specdecode crd`: the CustomResourceDefinition, and the files that are generated from the same types."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from specdecode.api.crd import CRD_NAME, chart_template, crd_yaml
from specdecode.api.reference import reference_markdown

CHART = "charts/specdecode-operator"


def generated_files() -> dict[str, str]:
    """Text of every generated file, by its path in the repository."""
    return {
        f"crds/{CRD_NAME}.yaml": crd_yaml(),
        f"{CHART}/templates/crds/{CRD_NAME}.yaml": chart_template(),
        "docs/reference/specdecodepolicy.md": reference_markdown(),
    }


def find_repository(start: Path) -> Path | None:
    """The folder that holds the chart: `start` or one above it."""
    start = start.resolve()
    return next((folder for folder in (start, *start.parents) if (folder / CHART / "Chart.yaml").is_file()), None)


def drift(root: Path) -> str:
    """A diff from the files as they are to what they should be; empty when they agree."""
    diffs: list[str] = []
    for path, expected in generated_files().items():
        file = root / path
        actual = file.read_text(encoding="utf-8") if file.is_file() else ""
        diffs += difflib.unified_diff(
            actual.splitlines(keepends=True), expected.splitlines(keepends=True), path, f"{path} (generated)"
        )
    return "".join(diffs)


def crd(
    write: Annotated[
        bool, typer.Option("--write", help="Write crds/, the chart's copy and the reference page.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 and a diff when those files are not up to date.")
    ] = False,
    root: Annotated[
        Path | None, typer.Option("--root", help="The repository; found from the current folder when left out.")
    ] = None,
) -> None:
    """Prints the CustomResourceDefinition of SpecDecodePolicy, ready for kubectl apply -f -."""
    if write and check:
        raise typer.BadParameter("--write and --check exclude each other: write first, check later")
    if not write and not check:
        typer.echo(crd_yaml(), nl=False)
        return
    repository = find_repository(root or Path.cwd())
    if repository is None:
        raise typer.BadParameter(
            f"no {CHART}/Chart.yaml in {root or Path.cwd()} or above it: give the repository with --root"
        )
    if write:
        for path, text in generated_files().items():
            (repository / path).parent.mkdir(parents=True, exist_ok=True)
            (repository / path).write_text(text, encoding="utf-8")
            typer.echo(f"wrote {path}")
    elif difference := drift(repository):
        typer.echo(difference, nl=False)
        typer.echo("generated files are not up to date: run `specdecode crd --write` and commit the result", err=True)
        raise typer.Exit(1)
