"""Asks a container how it is, the way a kubelet does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import httpx

from specdecode.lab.environment import Json, port_number
from specdecode.lab.probes import Probe

Execute = Callable[[Sequence[str], float], Awaitable[bool]]
"""Runs a command in the container for at most so many seconds; whether it ended with status 0."""


def http_client() -> httpx.AsyncClient:
    """A client as a kubelet's: no proxies, no certificate checks, a new connection for each request."""
    return httpx.AsyncClient(
        verify=False, trust_env=False, follow_redirects=True, limits=httpx.Limits(max_keepalive_connections=0)
    )


async def succeeds(probe: Probe, container: Json, pod_ip: str, http: httpx.AsyncClient, execute: Execute) -> bool:
    """Makes one attempt. Raises `ConfigError` for a named port that the container lacks."""
    handler = probe.handler
    if "httpGet" in handler:
        return await http_get(handler["httpGet"], container, pod_ip, http, probe.timeout)
    if "tcpSocket" in handler:
        return await _connects(handler["tcpSocket"], container, pod_ip, probe.timeout)
    if "exec" in handler:
        return await execute(handler["exec"]["command"], probe.timeout)
    return False  # grpc: see docs/lab.md


async def http_get(action: Json, container: Json, pod_ip: str, http: httpx.AsyncClient, timeout: float) -> bool:
    """An `httpGet` of a probe or of a lifecycle hook; success is a status from 200 to 399."""
    host, port = action.get("host") or pod_ip, port_number(container, action["port"])
    url = f"{action.get('scheme', 'HTTP').lower()}://{host}:{port}/{action.get('path', '/').removeprefix('/')}"
    headers = {header["name"]: header["value"] for header in action.get("httpHeaders", [])}
    try:
        async with asyncio.timeout(timeout):
            return 200 <= (await http.get(url, headers=headers, timeout=timeout)).status_code < 400
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
        return False


async def _connects(action: Json, container: Json, pod_ip: str, timeout: float) -> bool:
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(
                action.get("host") or pod_ip, port_number(container, action["port"])
            )
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
