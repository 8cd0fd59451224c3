"""A stand-in for `vllm serve` on a GPU: vLLM's arguments, endpoints and metrics around the simulated engine."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from aiohttp import web

from specdecode.sim.acceptance import AcceptanceError, AcceptanceTable, from_unconditional, parse_acceptance
from specdecode.sim.arguments import ServeArguments
from specdecode.sim.engine import AcceptanceOf, Engine, EngineConfig, Request, bad_draft
from specdecode.sim.metrics import VllmMetrics
from specdecode.sim.openai import Answer, Limits, RequestError, read_request
from specdecode.sim.settings import Settings
from specdecode.sim.surfaces import DATA, load_surface
from specdecode.vllm.speculation import Method, Speculation
from specdecode.vllm.version import Version

LATE = 0.05
"""A step that ends so many seconds after its time was held up by this machine: its end is then the true one, as a real
stall would be."""
MAX_BODY = 64 * 1024**2


def log(message: str) -> None:
    """One line on stderr, as vLLM logs."""
    print(f"INFO {time.strftime('%m-%d %H:%M:%S')} [simulator] {message}", file=sys.stderr, flush=True)


def die(message: str) -> NoReturn:
    """End at once, as a process that crashed: connections are cut."""
    print(f"ERROR {time.strftime('%m-%d %H:%M:%S')} [simulator] {message}", file=sys.stderr, flush=True)
    os._exit(1)


class Stream:
    """The tokens of one request on their way from the engine to its HTTP handler."""

    __slots__ = ("_event", "_interval", "_sent_any", "finished", "pending")

    def __init__(self, interval: int) -> None:
        self._event = asyncio.Event()
        self._interval = interval
        self._sent_any = False
        self.pending = 0
        self.finished = False

    def push(self, tokens: int, *, finished: bool) -> None:
        """Add tokens; the handler wakes for the first, then for every `--stream-interval` of them, and at the end."""
        self.pending += tokens
        self.finished = finished
        if finished or not self._sent_any or self.pending >= self._interval:
            self._event.set()

    async def take(self) -> int:
        """Wait for the next tokens to send."""
        await self._event.wait()
        self._event.clear()
        self._sent_any = True
        tokens, self.pending = self.pending, 0
        return tokens


def build_engine(args: ServeArguments, settings: Settings, table: AcceptanceTable) -> Engine:
    """The engine that these arguments and settings describe. Raises SurfaceError."""
    surface = load_surface(settings.surface)
    method = args.speculation.method if args.speculation else Method.DISABLED
    scheduled = bool(args.speculation and args.speculation.schedule)
    kv_tokens = surface.kv_pool_tokens(method, scheduled=scheduled)
    if settings.kv_tokens:
        kv_tokens = settings.kv_tokens * kv_tokens // surface.kv_pool_tokens(Method.DISABLED)
    faults = settings.faults_of(method)
    config = EngineConfig(
        speculation=args.speculation,
        kv_tokens=kv_tokens,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        pads_drafts=settings.pads_drafts() and method is Method.NGRAM,
        slowdown=(faults.get("slow") or 1.0) / settings.speed,
    )
    rng = random.Random(f"{settings.seed}/{settings.pod_name}" if settings.seed is not None else args.seed)
    return Engine(config, surface, _acceptance_of(table, args, settings), rng)


def as_the_engine_takes_it(args: ServeArguments, settings: Settings) -> ServeArguments:
    """Engines drop some of what they are told without a word; the fault `speculation-dropped` is one that does."""
    dropped = args.speculation is not None and "speculation-dropped" in settings.faults_of(args.speculation.method)
    return replace(args, speculation=None) if dropped else args


def _as_vllm_logs(speculation: Speculation | None) -> str:
    """As vllm/config/speculative.py prints it."""
    if speculation is None:
        return "None"
    return (
        f"SpeculativeConfig(method={speculation.vllm_method!r}, model={speculation.model!r},"
        f" num_spec_tokens={speculation.num_speculative_tokens})"
    )


def load_acceptance(settings: Settings) -> AcceptanceTable:
    """The package's acceptance table, or the user's. Raises AcceptanceError."""
    path = Path(settings.acceptance) if settings.acceptance else DATA / "acceptance.json"
    try:
        return parse_acceptance(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise AcceptanceError(f"the acceptance table cannot be read: {error}") from error


def _acceptance_of(table: AcceptanceTable, args: ServeArguments, settings: Settings) -> AcceptanceOf:
    acceptance: AcceptanceOf = table.at
    if args.synthetic_rates:
        synthetic = from_unconditional(args.synthetic_rates)
        acceptance = lambda kind, method, temperature: synthetic  # noqa: E731
    method = args.speculation.method if args.speculation else Method.DISABLED
    rate = settings.faults_of(method).get("bad-draft")
    return bad_draft(acceptance, rate) if rate is not None else acceptance


class Server:
    """One pod: an engine run in real time, its page, and the HTTP endpoints."""

    def __init__(self, args: ServeArguments, settings: Settings, table: AcceptanceTable) -> None:
        self._args = args
        self._settings = settings
        self._engine = engine = build_engine(args, settings, table)
        self._faults = settings.faults_of(engine.config.method)
        self._streams: dict[Request, Stream] = {}
        self._work = asyncio.Event()
        self._ready = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._sequence = 0
        self._metrics = VllmMetrics(
            settings.version,
            engine,
            model_name=args.served_model_names[0],
            max_model_len=args.max_model_len,
            now=time.time(),
            enable_prefix_caching=args.enable_prefix_caching,
            gpu_memory_utilization=args.gpu_memory_utilization,
        )
        self._limits = Limits(
            args.served_model_names,
            args.max_model_len,
            table.kinds,
            rejects_logit_processors=args.speculation is not None and settings.version >= Version(0, 14, 0),
        )

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=MAX_BODY)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.get("/version", self._version),
                web.get("/v1/models", self._models),
                web.get("/metrics", self._page),
                web.post("/v1/completions", partial(self._complete, chat=False)),
                web.post("/v1/chat/completions", partial(self._complete, chat=True)),
            ]
        )
        return app

    async def run(self, host: str, port: int) -> None:
        """Serve until SIGTERM or SIGINT, then drain: linger, stop listening, finish what is in flight."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        runner = web.AppRunner(self.app(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, host, port)
        await site.start()
        engine, stopped = asyncio.create_task(self.run_engine()), asyncio.create_task(stop.wait())
        await asyncio.wait({engine, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if engine.done():
            engine.result()
        log("Shutting down: requests in flight are finished first.")
        if self._ready:
            await asyncio.sleep(self._settings.linger_seconds)
        await site.stop()
        await self._idle.wait()
        await runner.cleanup()
        engine.cancel()
        log("Application shutdown complete.")

    async def run_engine(self) -> None:
        """Start up as slowly as asked, then step for ever, each step lasting what the surface says."""
        if "crash-at-start" in self._faults:
            die("RuntimeError: Engine core initialization failed (fault crash-at-start).")
        await asyncio.sleep(self._settings.startup_seconds)
        if self._args.fails_late:
            die(f"ValueError: {self._args.fails_late}\nRuntimeError: Engine core initialization failed.")
        if "never-ready" in self._faults:
            await asyncio.Event().wait()
        self._ready = True
        log("Application startup complete.")
        loop = asyncio.get_running_loop()
        if (seconds := self._faults.get("crash-after")) is not None:
            loop.call_later(seconds, die, "EngineDeadError: EngineCore encountered an issue (fault crash-after).")
        end = loop.time()
        while True:
            if not self._engine.busy:
                self._work.clear()
                await self._work.wait()
                end = loop.time()
            step = self._engine.schedule(end)
            if step is None:
                raise RuntimeError(
                    "the engine has requests and schedules none: the KV pool is smaller than one prefill chunk"
                )
            end += step.seconds
            await asyncio.sleep(max(0.0, end - loop.time()))
            if loop.time() - end > LATE:
                end = loop.time()
            outcome = self._engine.complete(step, end)
            self._metrics.record(outcome)
            for output in outcome.outputs:
                if stream := self._streams.get(output.request):
                    stream.push(output.tokens, finished=output.request.finished)
            limit = self._faults.get("oom-under-load")
            if limit is not None and len(self._engine.running) >= limit:
                die("torch.OutOfMemoryError: CUDA out of memory (fault oom-under-load).")

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._ready else 503)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": str(self._settings.version)})

    async def _models(self, _: web.Request) -> web.Response:
        card = {
            "object": "model",
            "created": int(time.time()),
            "owned_by": "vllm",
            "max_model_len": self._args.max_model_len,
        }
        return web.json_response(
            {"object": "list", "data": [{"id": name, **card} for name in self._args.served_model_names]}
        )

    async def _page(self, _: web.Request) -> web.Response:
        if not self._ready or "metrics-missing" in self._faults:
            return web.Response(status=404 if self._ready else 503)
        if "metrics-hang" in self._faults:
            await asyncio.Event().wait()
        page = self._metrics.page(engine=self._args.log_stats)
        if "metrics-half" in self._faults:
            page = page[: len(page) // 2]
        return web.Response(text=page, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _complete(self, http: web.Request, *, chat: bool) -> web.StreamResponse:
        """One completion, counted whatever becomes of it."""
        began = time.monotonic()
        status, size = 500, 0
        self._in_flight += 1
        self._idle.clear()
        try:
            body = await http.read()
            response = await self._answer(http, body, chat=chat)
            status, size = response.status, response.body_length
            return response
        except RequestError as error:
            status = error.status
            return web.Response(status=status, text=error.body(), content_type="application/json")
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()
            self._metrics.record_http(
                http.path, "POST", status, time.monotonic() - began, http.content_length or 0, size
            )

    async def _answer(self, http: web.Request, body: bytes, *, chat: bool) -> web.StreamResponse:
        if not self._ready:
            raise RequestError(503, "the engine is starting", "ServiceUnavailableError")
        if (
            self._args.api_keys
            and http.headers.get("Authorization", "").removeprefix("Bearer ") not in self._args.api_keys
        ):
            raise RequestError(401, "Unauthorized", "AuthenticationError")
        generation = read_request(body, http.headers, self._limits, chat=chat)
        self._sequence += 1
        name = f"{'chatcmpl' if chat else 'cmpl'}-{self._sequence:08x}"
        request = Request(
            name,
            asyncio.get_running_loop().time(),
            generation.prompt_tokens,
            generation.max_tokens,
            generation.kind,
            generation.temperature,
        )
        answer = Answer(name, self._args.served_model_names[0], int(time.time()), generation, chat=chat)
        response: web.StreamResponse | None = None
        if generation.stream:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
            await response.prepare(http)
        stream = Stream(self._args.stream_interval if response else generation.max_tokens + 1)
        self._submit(request, stream)
        try:
            if response is None:
                while not stream.finished:
                    await stream.take()
                return web.Response(text=answer.whole(), content_type="application/json")
            finished = False
            while not finished:
                tokens = await stream.take()
                finished = stream.finished
                await response.write(answer.chunk(tokens, finished=finished))
            return response
        finally:
            del self._streams[request]
            if not request.finished:
                self._engine.abort(request)
                self._metrics.record_abort()

    def _submit(self, request: Request, stream: Stream) -> None:
        try:
            self._engine.add(request)
        except ValueError as error:
            raise RequestError(400, str(error)) from error
        self._streams[request] = stream
        self._work.set()


def serve(args: ServeArguments, settings: Settings) -> None:
    """Run one simulated server until it is told to stop. Raises SurfaceError or AcceptanceError before it listens."""
    table = load_acceptance(settings)
    args = as_the_engine_takes_it(args, settings)
    host = settings.pod_ip if args.host in (None, "", "0.0.0.0") and settings.pod_ip else args.host or "0.0.0.0"
    log(f"vLLM API server version {settings.version}, simulated: {settings.surface}; http://{host}:{args.port}")
    log(
        f"Initializing a V1 LLM engine (v{settings.version}) with config: model={args.model!r},"
        f" speculative_config={_as_vllm_logs(args.speculation)}, seed={args.seed or 0}"
    )
    asyncio.run(_serve(args, settings, table, host))


async def _serve(args: ServeArguments, settings: Settings, table: AcceptanceTable, host: str) -> None:
    await Server(args, settings, table).run(host, args.port)
