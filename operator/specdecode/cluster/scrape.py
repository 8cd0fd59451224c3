"""Reads the pods' pages: concurrently, with a time and a size limit. A failed scrape is a problem, no bad result."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from specdecode.vllm.effective import Told, read_server_info
from specdecode.vllm.metrics import Page, PageError, read_page
from specdecode.vllm.version import Version

TIMEOUT = 5.0
"""Seconds for one page. vLLM answers from memory; a server that takes longer is in trouble."""
SIZE_LIMIT = 8 * 1024 * 1024
"""Bytes of one page. vLLM's are below 100 kB per engine."""
CONCURRENCY = 32
"""Pods that are read at once."""


@dataclass(frozen=True)
class Scrape:
    """What came of one attempt: a page, or a problem."""

    page: Page | None = None
    problem: str | None = None


class Scraper:
    """Reads metrics pages. Use it as an async context manager."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None, timeout: float = TIMEOUT) -> None:
        # A cluster's HTTP proxy has no business between the operator and its pods; nor has compression, which would
        # let a small answer become a large page.
        self._http = httpx.AsyncClient(
            transport=transport, timeout=timeout, trust_env=False, headers={"Accept-Encoding": "identity"}
        )
        self._timeout = timeout
        self._turn = asyncio.Semaphore(CONCURRENCY)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def scrape(self, urls: Mapping[str, str]) -> dict[str, Scrape]:
        """Reads the page of each pod; `urls` by pod name."""
        results = await asyncio.gather(*(self._page(url) for url in urls.values()))
        return dict(zip(urls, results, strict=True))

    async def version(self, base_url: str) -> Version | None:
        """What the server's `/version` says; None when it does not answer or is not vLLM's."""
        try:
            body = await self._get(f"{base_url}/version")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError):
            return None
        return Version.parse(body.decode(errors="replace"))

    async def told(self, base_url: str) -> Told | None:
        """What the server's `/server_info` says of its speculation; None: as a rule it has no such endpoint.

        Raises `TimeoutError`.
        """
        try:
            return read_server_info(await self._get(f"{base_url}/server_info?config_format=json"))
        except httpx.TimeoutException as e:
            raise TimeoutError from e
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return None

    async def _page(self, url: str) -> Scrape:
        try:
            return Scrape(page=read_page(await self._get(url)))
        except (TimeoutError, httpx.TimeoutException):
            return Scrape(problem=f"{url} did not answer within {self._timeout:g} s")
        except httpx.HTTPError as e:
            return Scrape(problem=f"{url}: {str(e) or type(e).__name__}")
        except (PageError, ValueError, httpx.InvalidURL) as e:
            return Scrape(problem=f"{url}: {e}")

    async def _get(self, url: str) -> bytes:
        """The body. The time limit is on the whole answer: a server may also drip."""
        async with self._turn, asyncio.timeout(self._timeout), self._http.stream("GET", url) as response:
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"HTTP status {response.status_code}")
            if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
                raise ValueError(f"the page is compressed ({encoding}) though it was not asked to be")
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > SIZE_LIMIT:
                    raise ValueError(f"the page is larger than {SIZE_LIMIT} bytes")
            return bytes(body)
