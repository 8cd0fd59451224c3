"""What the simulator costs: CPU of one server under streams, and steps a second of its engine in virtual time.

    python benchmarks/bench_sim.py [--streams 64] [--seconds 10]

The server must stay well below a quarter of a core, so that a lab of several fits on a small machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

from specdecode.sim.acceptance import Acceptance
from specdecode.sim.engine import Engine, EngineConfig, Request
from specdecode.sim.load import LoadGenerator, Record, new_session
from specdecode.sim.surfaces import load_surface
from specdecode.sim.workload import Phase
from specdecode.vllm.speculation import Method, Speculation

URL = "http://127.0.0.1:18999"
NGRAM = '{"method":"ngram","num_speculative_tokens":5}'


def virtual_time(batch: int, steps: int) -> float:
    """Engine steps a second of CPU with so many requests running."""
    config = EngineConfig(Speculation(Method.NGRAM, 5), kv_tokens=10**9)
    engine = Engine(config, load_surface(), lambda *_: Acceptance((0.8,), match=0.6), random.Random(1))
    for i in range(batch):
        engine.add(Request(str(i), 0.0, 200, 10**6))
    now, began = 0.0, time.process_time()
    for _ in range(steps):
        step = engine.schedule(now)
        assert step is not None
        now += step.seconds
        engine.complete(step, now)
    return steps / (time.process_time() - began)


def start(*args: str) -> tuple[subprocess.Popen[bytes], float]:
    """A server and the seconds until it was ready."""
    began = time.monotonic()
    words = [sys.executable, "-m", "specdecode.sim", "serve", "m", "--host", "127.0.0.1", "--port", "18999", *args]
    server = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while True:
        try:
            urllib.request.urlopen(URL + "/health", timeout=1)
            return server, time.monotonic() - began
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.01)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(streams: int, seconds: float) -> list[Record]:
    """Closed load."""
    records: list[Record] = []
    async with new_session() as session:
        clients = LoadGenerator(session, lambda: [URL], records.append, rng=random.Random(1))
        await clients.run([Phase("p", seconds, clients=streams, prompt_tokens=(200, 200), output_tokens=(200, 300))])
    return records


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10)
    asked = parser.parse_args()
    for batch in (1, 16, 64, 256):
        print(f"virtual time, {batch:>3} requests: {virtual_time(batch, 40_000 // (batch + 9)):>8.0f} steps a second")
    print(f"{'server':<28}{'ready s':>8}{'TPOT ms':>9}{'server CPU':>11}{'client CPU':>11}{'failed':>7}")
    for args in ([], ["--stream-interval", "8"], ["--stream-interval", "8", "--speculative-config", NGRAM]):
        server, ready = start(*args)
        try:
            wall, server_began = time.monotonic(), cpu_seconds(server.pid)
            client_began = resource.getrusage(resource.RUSAGE_SELF)
            records = asyncio.run(load(asked.streams, asked.seconds))
            wall, ended = time.monotonic() - wall, resource.getrusage(resource.RUSAGE_SELF)
            client = ended.ru_utime + ended.ru_stime - client_began.ru_utime - client_began.ru_stime
            share = (cpu_seconds(server.pid) - server_began) / wall
            label = " ".join(a for a in args if not a.startswith("{")).replace("--", "") or "defaults"
            tpot = statistics.fmean(r.tpot for r in records if r.tpot) * 1e3
            failed = sum(r.error is not None for r in records)
            print(f"{label:<28.28}{ready:>8.2f}{tpot:>9.1f}{share:>11.1%}{client / wall:>11.1%}{failed:>7}")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
