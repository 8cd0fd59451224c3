"""The surfaces that come with the package, and a user's own."""

from __future__ import annotations

from pathlib import Path

from specdecode.model.surface import Surface, SurfaceError, parse_surface

DATA = Path(__file__).parent.parent / "data"
DEFAULT_SURFACE = "h200-llama32b-draft1b"


def builtin_surfaces() -> tuple[str, ...]:
    """Names of the surfaces in the package."""
    return tuple(sorted(path.stem for path in (DATA / "surfaces").glob("*.jsonl")))


def load_surface(name_or_path: str = DEFAULT_SURFACE) -> Surface:
    """Read a surface by its name in the package, or from a file. Raises SurfaceError."""
    path = DATA / "surfaces" / f"{name_or_path}.jsonl" if name_or_path in builtin_surfaces() else Path(name_or_path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SurfaceError(
            f"no surface {name_or_path!r}: neither a readable file ({error}) nor one of {', '.join(builtin_surfaces())}"
        ) from error
    return parse_surface(lines, str(path))
