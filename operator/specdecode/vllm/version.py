"""The version of a vLLM server, as its image tag or its `/version` page says it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = r"v?(\d{1,3})\.(\d{1,4})(?:\.(\d{1,4}))?(?!\d)"
_VERSION = re.compile(rf"(?<![\w.]){_NUMBER}")
_VLLM_VERSION = re.compile(rf"vllm[-_]?{_NUMBER}", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class Version:
    """A release. Post, local and pre-release parts (`.post1`, `+cpu`, `rc1`) change no argument and are left out."""

    major: int
    minor: int
    patch: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @classmethod
    def parse(cls, text: str) -> Version | None:
        """The first part that looks like a version: `0.24.0`, `v0.10.2.post1`, `0.10.2-aibrix-v0.5.0`; else None."""
        found = _VERSION.search(text)
        return cls(int(found[1]), int(found[2]), int(found[3] or 0)) if found else None

    @classmethod
    def from_image(cls, image: str) -> Version | None:
        """The version in an image's tag; never the registry's port or the digest. `latest`, `nightly`: None.

        Vendors also count in ways of their own (NVIDIA's 25.09, Red Hat's 3.2.1). vLLM has only ever released 0.x,
        so another major number is not vLLM's.
        """
        name = image.split("@", 1)[0].rsplit("/", 1)[-1]
        tag = name.partition(":")[2].replace("_", "-")
        named = _VLLM_VERSION.search(tag)
        version = cls.parse(named[0][4:].lstrip("-")) if named else cls.parse(tag)
        return version if version is not None and version.major == 0 else None
