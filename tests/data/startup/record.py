"""Makes vLLM fail to start in every way that its CPU build can, and keeps the end of what it wrote.

See README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).parent
HUB = ("127.0.0.99", 8099)
ADDRESS = ("127.0.0.98", 8098)
LINES = 200
WIDTH = 2000
LIMIT = 180.0
READY = "Application startup complete"


@dataclass(frozen=True)
class Case:
    """One way to fail: arguments, and what is made of the models before."""

    name: str
    args: tuple[str, ...] = ()
    speculative: object = None
    target: str = "tiny"
    env: dict[str, str] = field(default_factory=dict)
    before: Callable[[Path], contextlib.AbstractContextManager[None]] | None = None
    """What must be so while it starts."""
    kill: str | None = None
    """A line of the log at which the engine's process is killed, as the kernel does when memory runs out."""


def draft(**changes: object) -> dict[str, object]:
    return {"method": "draft_model", "model": "MODELS/tiny", "num_speculative_tokens": 3} | changes


def ngram(**changes: object) -> dict[str, object]:
    return {"method": "ngram", "num_speculative_tokens": 3} | changes


def broken(name: str, **config: object) -> Callable[[Path], contextlib.AbstractContextManager[None]]:
    """A copy of `tiny` with a changed configuration; a value of None takes the file of that name away or cuts it."""

    @contextlib.contextmanager
    def made(models: Path) -> Iterator[None]:
        folder = models / name
        shutil.copytree(models / "tiny", folder, dirs_exist_ok=True)
        for key, value in config.items():
            if key == "cut":
                weights = folder / "model.safetensors"
                weights.write_bytes(weights.read_bytes()[:1000])
            elif key == "without":
                (folder / str(value)).unlink()
        path = folder / "config.json"
        if path.exists():
            settings = json.loads(path.read_text()) | {k: v for k, v in config.items() if k not in ("cut", "without")}
            path.write_text(json.dumps(settings))
        yield

    return made


@contextlib.contextmanager
def occupied(models: Path) -> Iterator[None]:
    """Somebody listens on the server's port."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(ADDRESS)
        s.listen()
        yield


CASES = (
    Case("unknown-argument", ("--speculative-disable-by-batch-size", "4")),
    Case("invalid-value", ("--max-num-seqs", "many")),
    Case("malformed-json", ("--speculative-config", '{"method": "ngram"')),
    Case("unknown-key", speculative=ngram(disable_by_batch_size=8)),
    Case("unknown-method", speculative=ngram(method="medusa2")),
    Case("short-and-long-flag", ("--spec-tokens", "4"), speculative=ngram()),
    Case("vocabulary", speculative=draft(), target="smollm2-135m"),
    Case("no-draft-at-path", speculative=draft(model="/models/absent")),
    Case("no-such-repository", speculative=draft(model="acme/absent")),
    Case("gated-repository", speculative=draft(model="acme/gated")),
    Case("hub-unreachable", speculative=draft(model="acme/unreachable")),
    Case("draft-without-config", speculative=draft(model="MODELS/bare"), before=broken("bare", without="config.json")),
    Case(
        "draft-without-weights",
        speculative=draft(model="MODELS/weightless"),
        before=broken("weightless", without="model.safetensors"),
    ),
    Case("corrupt-weights", speculative=draft(model="MODELS/cut"), before=broken("cut", cut=None)),
    Case(
        "unknown-architecture",
        speculative=draft(model="MODELS/alien"),
        before=broken("alien", architectures=["AlienForCausalLM"]),
    ),
    Case(
        "unknown-model-type",
        speculative=draft(model="MODELS/odd"),
        before=broken("odd", model_type="odd", architectures=["OddForCausalLM"]),
    ),
    Case(
        "remote-code",
        speculative=draft(model="MODELS/remote"),
        before=broken("remote", model_type="remote", auto_map={"AutoConfig": "configuration.Config"}),
    ),
    Case("draft-quantization", speculative=draft(quantization="awq")),
    Case("draft-max-model-len", speculative=draft(max_model_len=100_000)),
    Case("eagle-head-is-no-head", speculative=draft(method="eagle3")),
    Case("no-draft-named", speculative={"method": "draft_model", "num_speculative_tokens": 3}),
    Case("k-missing", speculative={"method": "ngram"}),
    Case("k-zero", speculative=ngram(num_speculative_tokens=0)),
    Case("k-negative", speculative=draft(num_speculative_tokens=-1)),
    Case("k-no-number", speculative=ngram(num_speculative_tokens="three")),
    Case("lookup-range", speculative=ngram(prompt_lookup_min=5, prompt_lookup_max=2)),
    Case("schedule-start", speculative=ngram(num_speculative_tokens_per_batch_size=[[2, 4, 3]])),
    Case("schedule-overlap", speculative=ngram(num_speculative_tokens_per_batch_size=[[1, 8, 3], [4, 16, 1]])),
    Case("schedule-shape", speculative=ngram(num_speculative_tokens_per_batch_size=[[1, 8]])),
    Case("no-arctic-inference", speculative=ngram(method="suffix")),
    Case("draft-tensor-parallel", speculative=draft(draft_tensor_parallel_size=2)),
    Case("tensor-parallel-key", speculative=draft(tensor_parallel_size=2)),
    Case("tensor-parallel-too-many", ("--tensor-parallel-size", "64"), speculative=draft()),
    Case("pipeline-parallel", ("--pipeline-parallel-size", "2"), speculative=draft()),
    Case("lora-budget", ("--enable-lora", "--max-num-batched-tokens", "32"), speculative=ngram()),
    Case("async-scheduling", ("--async-scheduling",), speculative=ngram()),
    Case(
        "logits-processors",
        ("--logits-processors", "vllm.v1.sample.logits_processor:MinPLogitsProcessor"),
        speculative=ngram(),
    ),
    Case("request-metrics-without-speculation", ("--per-request-spec-decode-metrics", "summary")),
    Case("kv-cache-too-small", ("--kv-cache-memory-bytes", "4M"), speculative=ngram(), target="smollm2-135m"),
    Case("kv-cache-none", ("--kv-cache-memory-bytes", "1"), speculative=ngram(), target="smollm2-135m"),
    Case("allocation-failed", ("--kv-cache-memory-bytes", "4000G"), speculative=ngram()),
    Case("max-model-len", ("--max-model-len", "1000000"), speculative=ngram()),
    Case("no-target", target="absent"),
    Case("port-in-use", before=occupied),
    Case("engine-killed", speculative=ngram(), kill=r"EngineCore pid=(\d+).*(?:Initializing|Starting|weights|load)"),
)


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for what it has not, and for what it does not give to everybody."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        if "unreachable" in self.path:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        gated = "gated" in self.path
        text = b'{"error": "Repository not found"}'
        if gated:
            text = b'{"error": "Access to model acme/gated is restricted. You must be authenticated to access it."}'
        self.send_response(401 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("X-Error-Message", "Access to model acme/gated is restricted" if gated else "not found")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if body:
            self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


def run(case: Case, serve: list[str], models: Path) -> tuple[str, int | None]:
    """What the server wrote, and its exit code; None: it started, and was stopped."""
    settings = {"--max-model-len": "1024", "--max-num-seqs": "16", "--kv-cache-memory-bytes": "256M"}
    own = case.args
    if own and own[0] in settings:
        settings[own[0]], own = own[1], ()
    speculative: tuple[str, ...] = ()
    if case.speculative is not None:
        speculative = ("--speculative-config", json.dumps(case.speculative).replace("MODELS", str(models)))
    words = [
        *serve,
        str(models / case.target),
        "--host",
        ADDRESS[0],
        "--port",
        str(ADDRESS[1]),
        "--enforce-eager",
        *(w for pair in settings.items() for w in pair),
        *speculative,
        *own,
    ]
    env = (
        os.environ
        | {
            "HF_ENDPOINT": f"http://{HUB[0]}:{HUB[1]}",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "OMP_NUM_THREADS": "1",
            "NUMBA_NUM_THREADS": "1",
        }
        | case.env
    )
    with tempfile.TemporaryFile("w+") as out, (case.before or (lambda _: contextlib.nullcontext()))(models):
        process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        ended = time.monotonic() + LIMIT
        killed = False
        while process.poll() is None and time.monotonic() < ended:
            time.sleep(0.2)
            text = os.pread(out.fileno(), 10_000_000, 0).decode(errors="replace")
            if case.kill and not killed and (found := re.search(case.kill, text)):
                os.kill(int(found[1]), signal.SIGKILL)
                killed = True
            if READY in text:
                process.terminate()
                process.wait(30)
                return text, None
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        return out.read(), process.returncode


def cleaned(text: str, models: Path) -> str:
    """The last lines, with the places of this machine named as an image has them."""
    text = text.replace(str(models), "/models")
    text = re.sub(r"/[^\s\"':(]*/site-packages/", "/usr/local/lib/python3.12/dist-packages/", text)
    text = re.sub(r"/[^\s\"':(]*/lib/python3\.\d+/(?!dist-packages)", "/usr/lib/python3.12/", text)
    text = re.sub(r"/[^\s\"']*/(prefork\.py|bin/vllm)", "/usr/local/bin/vllm", text)
    lines = [f"{line[:WIDTH]}\n" for line in text.splitlines()]
    return "".join(lines[-LINES:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--serve", default="vllm serve")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--keep", type=Path, default=HERE)
    chosen = parser.parse_args()
    hub = ThreadingHTTPServer(HUB, Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        models.mkdir()
        for model in ("tiny", "smollm2-135m"):
            shutil.copytree(chosen.models / model, models / model, copy_function=os.symlink)
        for case in CASES:
            if chosen.only and case.name not in chosen.only:
                continue
            text, code = run(case, shlex.split(chosen.serve), models)
            print(f"{case.name}: {'started' if code is None else f'exit code {code}'}", flush=True)
            if code is not None:
                (chosen.keep / f"{case.name}.log").write_text(cleaned(text, models), encoding="utf-8")
    hub.shutdown()


if __name__ == "__main__":
    main()
