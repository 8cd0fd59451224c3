"""Stand-ins for what vLLM's configuration code imports and does not need: torch, kernels, network clients, and so on.

A release's parser, configuration classes and metrics run unchanged; whatever else they import is a stand-in: a class
that answers every attribute, call and comparison with another stand-in or with nothing, and that pydantic lets pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any


class _Anything(type):
    """The class of stand-ins. Being classes, they can be inherited from, joined by `|`, and used as decorators."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], **_: object) -> Any:
        return super().__new__(cls, name, bases, body)

    def __init__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], **_: object) -> None:
        super().__init__(name, bases, body)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        value = stand_in(f"{cls.__qualname__}.{name}")
        type.__setattr__(cls, name, value)
        return value

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not cls.__dict__.get("_stands_in"):  # a class of vLLM's own that inherits from a stand-in
            return super().__call__(*args, **kwargs)
        if len(args) == 1 and isinstance(args[0], (FunctionType, type)) and not isinstance(args[0], _Anything):
            return args[0]  # a decorator
        return stand_in(f"{cls.__qualname__}()")

    def __getitem__(cls, item: object) -> Any:
        return cls

    def __setitem__(cls, item: object, value: object) -> None:
        pass

    def __iter__(cls) -> Iterator[Any]:
        return iter(())

    def __len__(cls) -> int:
        return 0

    def __bool__(cls) -> bool:
        return False

    def __lt__(cls, other: object) -> bool:
        return False

    __gt__ = __le__ = __ge__ = __contains__ = __lt__

    def __add__(cls, other: object) -> Any:
        return cls

    __sub__ = __mul__ = __truediv__ = __floordiv__ = __radd__ = __rmul__ = __add__

    def __int__(cls) -> int:
        return 0

    __index__ = __int__

    def __enter__(cls) -> Any:
        return cls

    def __exit__(cls, *of: object) -> None:
        return None


def stand_in(name: str) -> Any:
    """A new stand-in."""

    def schema(*_: object) -> dict[str, str]:
        return {"type": "any"}

    def accept(self: Any, /, *_: object, **__: object) -> None:
        pass

    body = {
        "_stands_in": True,
        "__module__": __name__,
        "__get_pydantic_core_schema__": classmethod(schema),
        "__init_subclass__": classmethod(accept),
        "__init__": accept,
    }
    made = _Anything(name.rpartition(".")[2], (), body)
    made.__qualname__ = name
    return made


class _Module(ModuleType):
    """A module that has whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        value = stand_in(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class _Finder(MetaPathFinder, Loader):
    """Answers for every module that is not wanted for real, or not there."""

    def __init__(self, release: Path, real: Callable[[str], bool]) -> None:
        self.release, self.real = release, real

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        top, _, rest = name.partition(".")
        if top in sys.stdlib_module_names:
            return None
        if not self.real(name):
            return ModuleSpec(name, self, is_package=True)
        if top != "vllm":
            return PathFinder.find_spec(name, path, target)
        # A real module may lie in a package that is a stand-in.
        folder = self.release.joinpath("vllm", *rest.split(".")[:-1])
        return PathFinder.find_spec(name, [str(folder)], target)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ in ("torch", "transformers", "vllm._version"):
            module.__dict__["__version__"] = "99.0.0"  # compared with what a feature needs at least


def install(release: Path, real: Callable[[str], bool]) -> None:
    """From now on an import gives a stand-in, except of the standard library and of what `real` names.

    vLLM's own modules come from `release`; its package starts empty, for its `__init__` imports the engine.
    """
    at = next(i for i, finder in enumerate(sys.meta_path) if finder is PathFinder)
    sys.meta_path.insert(at, _Finder(release, real))
    package = _Module("vllm")
    package.__path__ = [str(release / "vllm")]
    sys.modules["vllm"] = package
