"""Starts vLLM servers fast: imports vLLM once, and forks each server from there.

Nearly all of a start of `vllm serve` is spent in imports. Run by the Python that has vLLM (`serve`) and by any Python
(`run`); neither has this package.

Usage: forkserver.py serve SOCKET        imports vLLM, prints "ready", then forks a server for every client
       forkserver.py run SOCKET ARGS…    is `vllm ARGS…`: stays in the foreground with the server's output, environment,
                                         signals and exit code; a client that is killed takes its server with it

vLLM's code is what was installed; only the way in which it starts its engine's process is changed, from spawn to fork.
The working directory of the servers is that of `serve`: where the models are.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading

PRELOADED = (
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.openai",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.cli.launch",
    "vllm.entrypoints.cli.benchmark.main",
    "vllm.entrypoints.cli.collect_env",
    "vllm.entrypoints.cli.run_batch",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.engine.core_client",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.spec_decode.draft_model",
    "vllm.model_executor.models.llama",
    "vllm.v1.attention.backends.cpu_attn",
    "cv2",
)
"""Not the n-gram proposer: it imports numba, and vLLM's registration of kernels fails where that came first."""

_HEADER = 1 << 20
_STREAMS = 3


def serve(path: str) -> None:
    """Imports vLLM, then forks a server for each client, for ever."""
    system_utils = importlib.import_module("vllm.utils.system_utils")
    system_utils.get_mp_context = lambda: multiprocessing.get_context("fork")  # type: ignore[attr-defined]
    for module in PRELOADED:
        try:
            importlib.import_module(module)
        except ImportError as e:
            print(f"not preloaded: {module}: {e}", file=sys.stderr)  # a start takes longer, and works
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    gc.collect()
    gc.freeze()  # the servers share these pages until they write to them
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # brokers are not waited for
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _broker(connection)
        connection.close()


def _broker(connection: socket.socket) -> None:
    """A process of its own: forks the server that a client asks for, and stands between the two until it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, streams = _receive(connection)
    server = os.fork()
    if server == 0:
        connection.close()
        _become_server(request, streams)
    for stream in streams:
        os.close(stream)
    threading.Thread(target=_forward_signals, args=(connection, server), daemon=True).start()
    _, status = os.waitpid(server, 0)
    with contextlib.suppress(OSError):
        os.killpg(server, signal.SIGKILL)  # its engine, if that is left
    with contextlib.suppress(OSError):
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _receive(connection: socket.socket) -> tuple[dict[str, object], list[int]]:
    message, streams = b"", array.array("i")
    while not message.endswith(b"\n"):
        part, ancillary, *_ = connection.recvmsg(_HEADER, socket.CMSG_SPACE(_STREAMS * streams.itemsize))
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                streams.frombytes(data)
        if not part:
            os._exit(1)  # the client is gone
        message += part
    return json.loads(message), list(streams)


def _become_server(request: dict[str, object], streams: list[int]) -> None:
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    sys.argv = ["vllm", *request["arguments"]]  # type: ignore[misc]
    main = importlib.import_module("vllm.entrypoints.cli.main").main
    main()
    sys.stdout.flush()
    sys.exit(0)


def _forward_signals(connection: socket.socket, server: int) -> None:
    while True:
        received = connection.recv(1)
        with contextlib.suppress(OSError):
            if not received:
                os.killpg(server, signal.SIGKILL)
                return
            os.kill(server, received[0])


def run(path: str, arguments: list[str]) -> int:
    """Asks for a server and stays with it; its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        message = json.dumps({"environment": dict(os.environ), "arguments": arguments}).encode() + b"\n"
        socket.send_fds(connection, [message[:1]], list(range(_STREAMS)))
        connection.sendall(message[1:])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: connection.sendall(bytes([received])))
        answer = b""
        while not answer.endswith(b"\n"):
            if not (part := connection.recv(64)):
                return 1
            answer += part
    code = int(answer)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(run(sys.argv[2], sys.argv[3:]))
