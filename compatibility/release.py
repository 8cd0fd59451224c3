"""One vLLM release, asked by its own code. Runs in a process of its own: `python -m compatibility.release FOLDER`.

FOLDER holds the release's `vllm` package. Cases come as JSON on standard input, answers go to standard output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import inspect
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

from compatibility import stand_ins
from compatibility.cases import CHECKPOINTS, MAX_NUM_SEQS, TARGET
from compatibility.drafter import drafter
from compatibility.loggers import pages

_REAL = frozenset(
    {"vllm", "compatibility", "specdecode", "pydantic", "pydantic_core", "typing_extensions", "annotated_types"}
    | {"typing_inspection", "yaml", "_yaml", "numpy", "prometheus_client", "packaging"}
)
_HEAVY = (
    *("_C", "_moe_C", "_version", "attention", "distributed", "executor", "ir", "lora"),
    *("model_executor", "multimodal", "reasoning"),
)
"""Parts of vLLM that hold kernels, models and workers."""
_LIGHT = ("model_executor.layers.quantization", "model_executor.layers.quantization.utils.quant_utils")
"""What the configuration needs of them."""


def _real(name: str) -> bool:
    top, _, rest = name.partition(".")
    heavy = any(rest == part or rest.startswith(f"{part}.") for part in _HEAVY)
    return top in _REAL and (top != "vllm" or not heavy or rest in _LIGHT)


class _Config(SimpleNamespace):
    """A configuration object of vLLM's that is not under test: what was not set is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class _HfConfig(SimpleNamespace):
    """A checkpoint's `config.json`."""

    def update(self, values: Mapping[str, Any]) -> None:
        vars(self).update(values)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def get_text_config(self) -> _HfConfig:
        return self


class _ModelConfig(_Config):
    """vLLM's `ModelConfig` without its look at the checkpoint, which is one of `CHECKPOINTS`."""

    def __init__(self, model: str = TARGET, **given: Any) -> None:
        known = CHECKPOINTS.get(model, CHECKPOINTS[TARGET])
        config = _HfConfig(**known)
        override = given.get("hf_overrides")
        config = (override(config) if callable(override) else config) or config
        length = given.pop("max_model_len", None) or known["max_position_embeddings"]
        super().__init__(
            model=model,
            hf_config=config,
            hf_text_config=config,
            architectures=config.architectures,
            architecture=config.architectures[0],
            max_model_len=length,
            runner_type="generate",
            registry=SimpleNamespace(inspect_model_cls=lambda names, _: (None, names[0])),
            **{"tokenizer": model, **given},
        )

    def get_vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return int(self.hf_config.vocab_size)

    def verify_with_parallel_config(self, *_: object) -> None:
        """Heads and layers divide evenly."""

    def get_model_arch_config(self) -> None:
        """What the checkpoint's layers are like is not asked."""

    def using_transformers_backend(self) -> bool:
        """Whether vLLM has no implementation of its own."""
        return False

    def get_hf_config_sliding_window(self) -> None:
        """No sliding window."""


def start(folder: Path) -> None:
    """Makes `import vllm` give this release's configuration code."""
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    stand_ins.install(folder, _real)
    sys.modules["regex"] = re
    transformers: Any = importlib.import_module("transformers")
    transformers.PretrainedConfig = transformers.PreTrainedConfig = _HfConfig
    distributions: Any = importlib.metadata
    version = distributions.version

    def version_of(name: str) -> str:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return str(version(name))
        return "99.0.0"

    distributions.version = version_of
    platforms: Any = importlib.import_module("vllm.platforms")

    class Gpu(platforms.Platform):  # type: ignore[misc]
        _enum = platforms.PlatformEnum.CUDA
        device_name = device_type = "cuda"

        @classmethod
        def supports_v1(cls, *_: object, **__: object) -> bool:
            return True

    platforms._current_platform = platforms.current_platform = Gpu()


class Release:
    """The parser and the configuration classes of a release."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        arg_utils: Any = importlib.import_module("vllm.engine.arg_utils")
        try:
            parsers: Any = importlib.import_module("vllm.utils.argparse_utils")
        except ImportError:
            parsers = importlib.import_module("vllm.utils")
        self.arguments = arg_utils.AsyncEngineArgs
        self.parser = self.arguments.add_cli_args(parsers.FlexibleArgumentParser())
        self.config = arg_utils.SpeculativeConfig
        self.engine_config = getattr(arg_utils, "VllmConfig", None)
        for name in (self.config.__module__, "vllm.config"):
            home: Any = sys.modules[name]
            home.ModelConfig, home.ParallelConfig = _ModelConfig, _Config
        # 0.10 looks at the checkpoint, which may speculate by itself
        checkpoints: Any = importlib.import_module("vllm.transformers_utils.config")
        checkpoints.get_config = lambda model, *_, **__: _ModelConfig(model).hf_config
        whole: Any = sys.modules[self.engine_config.__module__] if self.engine_config else None
        if hasattr(whole, "HAS_TRITON"):
            whole.HAS_TRITON = True
        for of in (self.arguments, type(self.parser), self.config):
            assert of.__module__.startswith("vllm."), f"{of} is a stand-in"

    def keys(self) -> list[str]:
        """The keys of a speculative configuration."""
        if dataclasses.is_dataclass(self.config):
            return sorted(f.name for f in dataclasses.fields(self.config) if f.init)
        return sorted(set(inspect.signature(self.config.maybe_create_spec_config).parameters))

    def methods(self) -> list[str]:
        """`SpeculativeMethod`, where the release has it."""
        literal = getattr(sys.modules[self.config.__module__], "SpeculativeMethod", None)
        return sorted(_values(literal)) if literal is not None else []

    def threshold_read_by(self) -> list[str]:
        """The engines whose code looks at `disable_by_batch_size`."""
        engines = {"V0": "spec_decode", "V1": "v1"}

        def reads(folder: Path) -> bool:
            return any("disable_by_batch_size" in path.read_text() for path in folder.rglob("*.py"))

        return [engine for engine, folder in engines.items() if reads(self.folder / "vllm" / folder)]

    def flags(self) -> list[str]:
        """The flags that speak of speculation."""
        ours = re.compile(r"--?(sc$|spec|num-spec|ngram|per-request-spec|typical|disable-logprobs-d)")
        return sorted(flag for flag in self.parser._option_string_actions if ours.match(flag))

    def ask(self, words: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
        """What becomes of a server started with these words."""
        os.environ.pop("VLLM_USE_V1", None)
        os.environ.update(env)
        stage, said = "parser", io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parsed = self.parser.parse_args(list(words))
            stage = "engine"
            arguments = self.arguments.from_cli_args(parsed)
            engine = self._engine(arguments)
            stage = "configuration"
            config = self._config(arguments, engine)
        except SystemExit:
            return {"refused_by": stage, "message": said.getvalue().strip().splitlines()[-1]}
        except Exception as error:  # whatever a release raises is its answer
            return {"refused_by": stage, "message": f"{type(error).__name__}: {error}"}
        if config is None:
            return {"engine": engine, "config": None}
        runner = self._model_runner(config, arguments) if engine == "V1" else None
        answer = {"engine": engine, "model_runner": runner, "config": self._fields(config, arguments)}
        with contextlib.suppress(LookupError):
            answer |= {"drafter": drafter(self.folder, runner or "V1", config)} if engine == "V1" else {}
        return answer

    def _engine(self, arguments: Any) -> str:
        """V0 or V1. Raises what the release raises for a feature that its engine does not have."""
        model = _ModelConfig(
            TARGET, dtype=sys.modules["torch"].bfloat16, task="generate", is_v1_compatible=True, supports_v1=True
        )
        if (choose := getattr(arguments, "_is_v1_supported_oracle", None)) is not None:
            return "V1" if choose(model) else "V0"
        if (check := getattr(arguments, "_check_feature_supported", None)) is not None:
            check(*[model] * len(inspect.signature(check).parameters))
            return "V1"
        return "V0"

    def _config(self, arguments: Any, engine: str) -> Any:
        model = _ModelConfig(arguments.model)
        given = {
            "target_model_config": model,
            "target_parallel_config": _parallel(arguments),
            "target_dtype": "auto",
            "enable_chunked_prefill": engine == "V1",
            "disable_log_stats": False,
        }
        if (create := getattr(arguments, "create_speculative_config", None)) is not None:
            config = create(**{name: given[name] for name in inspect.signature(create).parameters})
            return config if config is None else self._in_force(config, arguments)
        create = self.config.maybe_create_spec_config
        given["draft_token_acceptance_method"] = arguments.spec_decoding_acceptance_method
        given["disable_logprobs"] = arguments.disable_logprobs_during_spec_decoding
        wanted = inspect.signature(create).parameters
        return create(**{name: given[name] if name in given else getattr(arguments, name) for name in wanted})

    def _in_force(self, config: Any, arguments: Any) -> Any:
        """The configuration after the engine's own look at it, which may drop K by batch size."""
        whole = self._whole(config, arguments)
        for name in ("_maybe_disable_dynamic_sd_for_data_parallel", "_maybe_disable_dynamic_sd_for_v1"):
            if (look := getattr(whole, name)) is not None:
                look()
        return config

    def _whole(self, config: Any, arguments: Any) -> Any:
        return _whole(self.engine_config)(
            speculative_config=config,
            parallel_config=_parallel(arguments),
            model_config=_ModelConfig(arguments.model),
            attention_config=_Config(),
            cache_config=_Config(),
            compilation_config=_Config(pass_config=_Config()),
            scheduler_config=_Config(),
        )

    def _fields(self, config: Any, arguments: Any) -> dict[str, Any]:
        def read(name: str) -> Any:
            older = (name, f"speculative_{name}", f"ngram_{name}")
            return next((getattr(config, key) for key in older if hasattr(config, key)), None)

        draft, parallel = config.draft_model_config, config.draft_parallel_config
        method = read("method")
        if method is None:  # up to 0.8.1 the worker asks for the kind of checkpoint (spec_decode/spec_decode_worker.py)
            kind = draft.hf_config.model_type
            drafters = ("medusa", "mlp_speculator", "eagle")
            method = "ngram" if read("prompt_lookup_max") else kind if kind in drafters else "draft_model"
        schedule = read("num_speculative_tokens_per_batch_size")
        return {
            "method": method,
            "num_speculative_tokens": config.num_speculative_tokens,
            "prompt_lookup_min": read("prompt_lookup_min"),
            "prompt_lookup_max": read("prompt_lookup_max"),
            "disable_by_batch_size": read("disable_by_batch_size"),
            "model": getattr(config, "model", None) or getattr(draft, "model", None),
            "quantization": getattr(draft, "quantization", None),
            "max_model_len": getattr(draft, "max_model_len", None),
            "draft_tensor_parallel_size": getattr(parallel, "tensor_parallel_size", None),
            "k_by_batch_size": None if schedule is None else self._lookup(schedule, config.num_speculative_tokens),
        }

    def _lookup(self, schedule: Any, k: int) -> list[int]:
        """K at each batch size up to `MAX_NUM_SEQS`, as the scheduler looks it up."""
        module: Any = importlib.import_module("vllm.v1.spec_decode.dynamic.utils")
        build = module.build_dynamic_sd_schedule_lookup
        table = build(schedule, MAX_NUM_SEQS, k)
        return [int(table[b]) for b in range(1, MAX_NUM_SEQS + 1)]

    def _model_runner(self, config: Any, arguments: Any) -> str | None:
        """V1 or V2 on a GPU; None where the release has only one."""
        if not hasattr(self.engine_config, "use_v2_model_runner"):
            return None
        return "V2" if self._whole(config, arguments).use_v2_model_runner else "V1"


def _parallel(arguments: Any) -> _Config:
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    return _Config(
        **{name: getattr(arguments, name, 1) for name in sizes},
        world_size=1,
        prefill_context_parallel_size=1,
        decode_context_parallel_size=1,
    )


def _whole(engine_config: Any) -> type[_Config]:
    """The whole configuration of an engine with the release's own methods and properties."""

    class Whole(_Config):
        def __getattr__(self, name: str) -> Any:
            own = inspect.getattr_static(engine_config, name, None)
            if hasattr(own, "__get__") and not name.startswith("__"):
                return own.__get__(self)
            return super().__getattr__(name)

    return Whole


def _values(literal: Any) -> Iterable[str]:
    for value in get_args(literal):
        if isinstance(value, str):
            yield value
        else:
            yield from _values(value)


def main() -> None:
    """Answers the cases on standard input."""
    folder = Path(sys.argv[1])
    start(folder)
    logging.disable(logging.WARNING)
    release = Release(folder)
    cases = json.load(sys.stdin)
    answers = {name: release.ask(case["words"], case["env"]) for name, case in cases.items()}
    padded = answers["n-gram"].get("model_runner") == "V2"
    loggers = folder / "vllm/v1/metrics/loggers.py"
    engines = {
        "V0": (folder / "vllm/spec_decode").exists(),
        "V1": loggers.exists() and "def record(" in loggers.read_text(),  # not complete before 0.8
    }
    written = {
        f"{engine} {profile}": pages(_Config, engine == "V0", speculates=profile == "ngram", padded=padded)
        for engine, there in engines.items()
        if there
        for profile in ("off", "ngram")
    }
    found = {
        "pages": written,
        "keys": release.keys(),
        "methods": release.methods(),
        "flags": release.flags(),
        "threshold_read_by": release.threshold_read_by(),
        "answers": answers,
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
