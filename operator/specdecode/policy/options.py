"""The options of a workload: what each profile of the policy makes of its container."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from specdecode.api.v1alpha1 import DISABLED, BatchRangeStatus, CommandFields, Configuration, Profile, ProfileMethod
from specdecode.model.cost import Option
from specdecode.vllm.command import Server, read, rewrite
from specdecode.vllm.speculation import BatchRange, Method, Speculation
from specdecode.vllm.unmanageable import Unmanageable
from specdecode.vllm.version import Version

Container = Mapping[str, Any]

ORIGINAL = "original"
"""Profile name of the workload's own speculative arguments where no profile of the policy says the same."""

OURS = ("command", "args", "env")
"""The fields of a container that an option may change."""

RESTARTED_AT = "SPECDECODE_RESTARTED_AT"
"""The variable that tells fresh pods of an option from old ones, as kubectl's `restartedAt` annotation does. It is no
part of the option."""


def speculation_of(profile: Profile) -> Speculation | None:
    """The speculative configuration of a profile; None for Disabled."""
    if profile.method is ProfileMethod.DISABLED:
        return None
    draft, ngram = profile.draft_model, profile.ngram
    return Speculation(
        method=Method(profile.method.value),
        num_speculative_tokens=profile.num_speculative_tokens,
        model=draft.model if draft else None,
        draft_tensor_parallel_size=draft.tensor_parallel_size if draft else None,
        quantization=draft.quantization if draft else None,
        max_model_len=draft.max_model_len if draft else None,
        prompt_lookup_min=ngram.prompt_lookup_min if ngram else None,
        prompt_lookup_max=ngram.prompt_lookup_max if ngram else None,
    )


def fixed_k(speculation: Speculation | None) -> Speculation | None:
    """The same without its batch-size schedule or threshold."""
    return None if speculation is None else replace(speculation, schedule=(), disable_by_batch_size=None)


@dataclass(frozen=True)
class Menu:
    """What the workload can run: its container as the user wrote it, and the policy's profiles."""

    original: Container
    server: Server
    """The original container, read."""
    version: Version
    profiles: Mapping[str, Profile]
    _rendered: dict[object, Container | Unmanageable] = field(default_factory=dict, compare=False, repr=False)
    """Of the options asked for so far: the same ones are asked for at every look."""

    @classmethod
    def of(cls, original: Container, version: Version, profiles: Iterable[Profile]) -> Menu | Unmanageable:
        """The menu of an original container, or why it cannot be managed."""
        original = unmarked(original)
        server = read(original, version)
        if isinstance(server, Unmanageable):
            return server
        by_name = {p.name: p for p in profiles}
        by_name.setdefault(DISABLED, Profile(name=DISABLED, method=ProfileMethod.DISABLED))
        return cls(original, server, version, by_name)

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """Every profile at its fixed K, and the original where it is none of them."""
        listed = tuple(Option(name, speculation_of(p)) for name, p in self.profiles.items())
        own = self.own
        return (*listed, own) if own is not None and own.profile == ORIGINAL else listed

    @cached_property
    def own(self) -> Option | None:
        """What the user's own manifest runs."""
        return self.identify(self.original)

    def render(self, option: Option) -> Container | Unmanageable:
        """The container that runs an option. Nothing but `OURS` differs from the original."""
        s = option.speculation
        key = (option.profile, s and s.schedule, s and s.disable_by_batch_size, s and s.num_speculative_tokens)
        if key not in self._rendered:
            self._rendered[key] = self._render(option)
        return self._rendered[key]

    def _render(self, option: Option) -> Container | Unmanageable:
        profile = self.profiles.get(option.profile)
        bare = profile is None or not (profile.args or profile.env)
        if bare and option.speculation == self.server.speculation:
            return self.original
        args = {} if profile is None else {_flag(k): v or None for k, v in profile.args.items()}
        env = {} if profile is None else profile.env
        written = rewrite(self.original, self.version, option.speculation, args=args, env=env)
        return written if isinstance(written, Unmanageable) else written.container

    def identify(self, container: Container) -> Option | None:
        """The option that a live container runs; None when it is not one that we would have written."""
        container = unmarked(container)
        if same(container, self.original):
            speculation = self.server.speculation
            for name, profile in self.profiles.items():
                if fixed_k(speculation) == speculation_of(profile) and not (profile.args or profile.env):
                    return Option(name, speculation)
            return Option(ORIGINAL, speculation)
        server = read(container, self.version)
        if isinstance(server, Unmanageable):
            return None
        for name, profile in self.profiles.items():
            option = Option(name, server.speculation)
            if fixed_k(server.speculation) == speculation_of(profile):
                rendered = self.render(option)
                if not isinstance(rendered, Unmanageable) and same(rendered, container):
                    return option
        return None


def same(a: Container, b: Container) -> bool:
    """Whether two containers start the same command in the same environment."""
    return all((a.get(f) or []) == (b.get(f) or []) for f in OURS)


def marked(container: Container, at: str) -> Container:
    """The container for fresh pods of the same option."""
    bare = unmarked(container)
    return {**bare, "env": [*(bare.get("env") or []), {"name": RESTARTED_AT, "value": at}]}


def unmarked(container: Container) -> Container:
    """The container without the mark of a restart."""
    env = container.get("env") or []
    kept = [e for e in env if not (isinstance(e, Mapping) and e.get("name") == RESTARTED_AT)]
    if len(kept) == len(env):
        return container
    return {**{k: v for k, v in container.items() if k != "env"}, **({"env": kept} if kept else {})}


def fields_of(container: Container) -> CommandFields:
    """The part of a container that the status keeps."""
    return CommandFields(container=container["name"], **{f: container.get(f) or None for f in OURS})


def with_fields(container: Container, fields: CommandFields) -> Container:
    """The container with the command line and environment that the status kept."""
    kept = {k: v for k, v in container.items() if k not in OURS}
    return kept | {f: v for f in OURS if (v := getattr(fields, f)) is not None}


def fingerprint(container: Container) -> str:
    """Tells a command line and environment from others, but not fresh pods of the same from old ones."""
    bare = unmarked(container)
    return digest([bare.get(f) or None for f in OURS])


def digest(value: object) -> str:
    """A short fingerprint of what can be written as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _flag(name: str) -> str:
    return name if name.startswith("-") else f"--{name}"


def status_of(schedule: Iterable[BatchRange]) -> list[BatchRangeStatus]:
    """How the status writes a schedule."""
    return [BatchRangeStatus(start=r.start, end=r.end, k=r.k) for r in schedule]


def ranges_of(schedule: Iterable[BatchRangeStatus]) -> tuple[BatchRange, ...]:
    """The way back."""
    return tuple(BatchRange(r.start, r.end, r.k) for r in schedule)


def configuration(option: Option) -> Configuration:
    """How the status names an option."""
    schedule = option.speculation.schedule if option.speculation else ()
    threshold = option.speculation.disable_by_batch_size if option.speculation else None
    return Configuration(profile=option.profile, schedule=status_of(schedule), disable_by_batch_size=threshold)


def option_of(named: Configuration, menu: Menu) -> Option | None:
    """The option that the status names; None when its profile is gone from the policy."""
    if named.profile == ORIGINAL:
        return Option(ORIGINAL, menu.server.speculation)
    profile = menu.profiles.get(named.profile)
    if profile is None:
        return None
    speculation = speculation_of(profile)
    if speculation is not None:
        threshold = named.disable_by_batch_size
        speculation = replace(speculation, schedule=ranges_of(named.schedule), disable_by_batch_size=threshold)
    return Option(named.profile, speculation)


def describe(option: Option) -> str:
    """`ngram`, or `ngram, off from batch size 64`."""
    speculation = option.speculation
    if speculation is None:
        return option.profile
    if speculation.disable_by_batch_size is not None:
        return f"{option.profile}, off from batch size {speculation.disable_by_batch_size}"
    if speculation.schedule:
        steps = ", ".join(f"K={r.k} for {r.start}-{r.end}" for r in speculation.schedule)
        return f"{option.profile} ({steps})"
    return option.profile
