"""Reading the pods' pages, whatever answers."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from specdecode.cluster.scrape import CONCURRENCY, SIZE_LIMIT, Scraper
from specdecode.vllm.version import Version

PAGE = gzip.decompress((Path(__file__).parents[2] / "data/vllm-metrics/0.24.0-h200/off/0005.prom.gz").read_bytes())
URL = "http://10.0.0.1:8000/metrics"

Handler = Callable[[httpx.Request], httpx.Response]


async def problem(handler: Handler, url: str = URL, timeout: float = 5.0) -> str:
    async with Scraper(httpx.MockTransport(handler), timeout) as scraper:
        scrape = (await scraper.scrape({"p": url}))["p"]
    assert scrape.page is None and scrape.problem is not None
    assert url in scrape.problem, "whoever reads it wants to try it"
    return scrape.problem


def answers(*args: object, **kwargs: object) -> Handler:
    return lambda _: httpx.Response(*args, **kwargs)  # type: ignore[arg-type]


def raises(error: Exception) -> Handler:
    def handler(_: httpx.Request) -> httpx.Response:
        raise error

    return handler


async def test_every_pods_page_is_read_and_one_that_fails_is_that_pods_problem() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=PAGE) if request.url.host == "10.0.0.1" else httpx.Response(503)

    async with Scraper(httpx.MockTransport(handler)) as scraper:
        scrapes = await scraper.scrape({"good": URL, "bad": "http://[fd00::2]:8000/metrics"})
        assert await scraper.scrape({}) == {}
    assert scrapes["good"].page is not None and scrapes["good"].problem is None
    assert scrapes["good"].page.engines[0].generation_tokens is not None
    assert scrapes["bad"].page is None and scrapes["bad"].problem == "http://[fd00::2]:8000/metrics: HTTP status 503"


BAD: dict[str, tuple[Handler, str]] = {
    "not found": (answers(404), "HTTP status 404"),
    "a redirection is not followed": (answers(302, headers={"Location": "http://169.254.169.254/"}), "HTTP status 302"),
    "no content": (answers(204), "HTTP status 204"),
    "an empty page": (answers(200, content=b""), "empty"),
    "another server's page": (answers(200, content=b"<html>hello</html>"), ""),
    "garbage": (answers(200, content=bytes(range(256)) * 10), ""),
    "half a page": (answers(200, content=PAGE[: len(PAGE) // 2]), ""),
    "a page that is compressed though it was not asked for": (
        answers(200, content=gzip.compress(PAGE), headers={"Content-Encoding": "gzip"}),
        "compressed (gzip)",
    ),
    "nobody listens": (raises(httpx.ConnectError("connection refused")), "connection refused"),
    "an error without words": (raises(httpx.ReadError("")), "ReadError"),
    "a read that takes too long": (raises(httpx.ReadTimeout("")), "did not answer within 5 s"),
}


@pytest.mark.parametrize("case", BAD)
async def test_what_is_no_page_is_a_problem_not_a_bad_result(case: str) -> None:
    handler, text = BAD[case]
    assert text in await problem(handler)


async def test_a_redirection_asks_nobody_else() -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(301, headers={"Location": "http://10.9.9.9/metrics"})

    await problem(handler)
    assert asked == ["10.0.0.1"]


async def test_a_path_that_makes_no_address_is_a_problem_of_the_pod_not_of_the_tick() -> None:
    assert "invalid" in (await problem(answers(200), URL + "/\n")).lower()


async def test_a_server_that_drips_is_given_up_after_the_time_of_a_whole_page() -> None:
    async def drops() -> AsyncIterator[bytes]:
        while True:
            yield b"# drip\n"
            await asyncio.sleep(0.001)

    assert "did not answer within 0.02 s" in await problem(lambda _: httpx.Response(200, content=drops()), timeout=0.02)


async def test_a_page_that_is_too_large_is_not_read_to_its_end() -> None:
    read = 0

    async def flood() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"#" * 1_000_000

    assert str(SIZE_LIMIT) in await problem(lambda _: httpx.Response(200, content=flood()))
    assert read <= SIZE_LIMIT / 1_000_000 + 2


async def test_no_proxy_stands_between_the_operator_and_its_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:3128")
    async with Scraper() as scraper:
        assert scraper._http._mounts == {}


async def test_only_so_many_pods_are_asked_at_once() -> None:
    now = most = 0

    async def handler(_: httpx.Request) -> httpx.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return httpx.Response(200, content=PAGE)

    async with Scraper(httpx.MockTransport(handler)) as scraper:
        scrapes = await scraper.scrape({str(n): f"http://10.0.0.{n}/metrics" for n in range(2 * CONCURRENCY)})
    assert len(scrapes) == 2 * CONCURRENCY and most <= CONCURRENCY


@pytest.mark.parametrize(
    ("handler", "version"),
    [
        (answers(200, json={"version": "0.24.0"}), Version(0, 24, 0)),
        (answers(200, json={"version": "0.10.2.dev3+gabc"}), Version(0, 10, 2)),
        (answers(200, content=b"\xff\xfe"), None),
        (answers(404), None),
        (raises(httpx.ConnectError("refused")), None),
        (raises(httpx.ReadTimeout("")), None),
    ],
)
async def test_the_version_is_what_the_server_says_or_nothing(handler: Handler, version: Version | None) -> None:
    async with Scraper(httpx.MockTransport(handler)) as scraper:
        assert await scraper.version("http://10.0.0.1:8000") == version
