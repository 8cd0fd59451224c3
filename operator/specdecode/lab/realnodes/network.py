"""The network of the lab's real nodes: a bridge between them, and this process's sockets in it.

It lives in network namespaces alone; nothing of it leads to this machine's own networks.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Self

from specdecode.lab.errors import LabError
from specdecode.lab.realnodes.guest import Guest

MACHINES = IPv4Network("10.99.0.0/24")
PODS = IPv4Network("10.88.0.0/16")
HUB = MACHINES[1]
"""The control plane's address."""

_CLONE_NEWNET = 0x40000000
_PIECE = 65536


def address(index: int) -> IPv4Address:
    """Of a node; the first has index 1."""
    return MACHINES[1 + index]


def pod_network(index: int) -> IPv4Network:
    """Of a node's pods."""
    return list(PODS.subnets(new_prefix=24))[index]


async def make_hub(hub: Guest) -> None:
    """The bridge, in the control plane's namespace."""
    await _ip(
        hub, ["link set lo up", "link add nodes type bridge", f"addr add {HUB}/24 dev nodes", "link set nodes up"]
    )


async def attach(hub: Guest, node: Guest, index: int, nodes: int) -> None:
    """Puts a node of `nodes` on the bridge, with routes to all pods."""
    await _ip(
        hub,
        [
            f"link add node{index} type veth peer name eth0 netns {node.pid}",
            f"link set node{index} master nodes up",
            f"route add {pod_network(index)} via {address(index)}",
        ],
    )
    others = [other for other in range(1, nodes + 1) if other != index]
    await _ip(
        node,
        [
            "link set lo up",
            f"addr add {address(index)}/24 dev eth0",
            "link set eth0 up",
            # Addresses of Services need some route before kube-proxy's rules replace them.
            f"route add default via {HUB}",
            *(f"route add {pod_network(other)} via {address(other)}" for other in others),
        ],
    )


async def _ip(guest: Guest, commands: Sequence[str]) -> None:
    for command in commands:
        # In the guest's network alone: a process is named here by the number that it has on this machine.
        argv = [*guest.enter("net"), "ip", *command.split()]
        process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
        said = (await process.communicate())[1].decode(errors="replace")
        if process.returncode:
            raise LabError(f"`ip {command}` failed in {guest.name}: {said}")


class Sockets:
    """Makes this process's sockets in the network of a guest. A socket stays in the namespace that it was made in, and
    threads may be in different ones: one thread enters the guest's and makes them."""

    def __init__(self, guest: Guest) -> None:
        self._thread = ThreadPoolExecutor(1, f"sockets of {guest.name}", _enter_network, (guest.pid,))

    def open(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A new socket, for any thread."""
        return self._thread.submit(socket.socket, family, kind, protocol).result()

    def close(self) -> None:
        """Ends the thread; sockets stay as they are."""
        self._thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _enter_network(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is there from Python 3.12 on
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if libc.setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(namespace)


@asynccontextmanager
async def forward(sockets: Sockets, host: str, port: int) -> AsyncIterator[int]:
    """Opens a port of this machine's loopback network that leads to one in a guest's network; its number."""
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_connect(sockets, (host, port), reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _connect(
    sockets: Sockets, far: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    near = sockets.open()
    near.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(near, far)
    except OSError:
        near.close()
        writer.close()
        return
    far_reader, far_writer = await asyncio.open_connection(sock=near)
    try:
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
    finally:
        writer.close()
        far_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
