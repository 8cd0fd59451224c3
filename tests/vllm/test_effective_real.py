"""What real engines show of their speculation, against arguments that say something else."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from specdecode.cluster.scrape import Scraper
from specdecode.lab.realvllm import installation
from specdecode.vllm.capabilities import capabilities
from specdecode.vllm.effective import Mismatch, Told, disagreements, read_text
from specdecode.vllm.metrics import Page
from specdecode.vllm.speculation import BatchRange, Method, Speculation
from specdecode.vllm.version import Version
from support.real_vllm import MODEL, RealServer, serving

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SCHEDULE = (BatchRange(1, 8, 3), BatchRange(9, 16, 0))
CONFIG = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_max": 4,
    "num_speculative_tokens_per_batch_size": [[1, 8, 3], [9, 16, 0]],
}
NGRAM = Speculation(Method.NGRAM, 3, prompt_lookup_max=4, schedule=SCHEDULE)
CAN = capabilities(Version(0, 32, 0))


@pytest.fixture(scope="module")
def speculating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A server whose configuration file turns speculation on, so that no argument shows it."""
    folder = tmp_path_factory.mktemp("speculating")
    file = folder / "vllm.yaml"
    file.write_text(json.dumps({"speculative-config": CONFIG}))
    # `/server_info` lists packages: with pip or uv, and fails where there is neither.
    environment = {
        "VLLM_SERVER_DEV_MODE": "1",
        "VIRTUAL_ENV": str(installation.find().python.parents[1]),
        "PATH": f"{os.environ['PATH']}:{Path(sys.executable).parent}",
    }
    with serving("127.0.0.84", folder, ["--config", str(file)], environment) as server:
        yield server


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with serving("127.0.0.85", tmp_path_factory.mktemp("plain")) as server:
        yield server


async def seen(server: RealServer) -> tuple[Page, Told | None]:
    """The page after a request, and what the server tells."""
    body = {"model": MODEL, "prompt": "one two three one two three one two", "max_tokens": 20, "temperature": 0}
    async with httpx.AsyncClient(timeout=60) as http:
        (await http.post(f"{server.url}/v1/completions", json=body)).raise_for_status()
    scraper = Scraper(timeout=60)
    try:
        page = (await scraper.scrape({"pod": f"{server.url}/metrics"}))["pod"].page
        assert page is not None
        return page, await scraper.told(server.url)
    finally:
        await scraper.close()


def reasons(speculation: Speculation | None, page: Page | None, told: Told | None) -> list[Mismatch]:
    return [d.reason for d in disagreements(speculation, CAN, 1, page, told)]


async def test_an_engine_that_speculates_unasked_shows_it_on_its_page_and_tells_it(speculating: RealServer) -> None:
    page, told = await seen(speculating)
    assert told == Told("ngram", 3, SCHEDULE)
    assert reasons(NGRAM, page, told) == []
    assert reasons(None, page, None) == reasons(None, None, told) == [Mismatch.SPECULATES_UNASKED]
    other = Speculation(Method.NGRAM, 5)
    assert reasons(other, page, None) == reasons(other, None, told) == [Mismatch.OTHER_NUMBER_OF_TOKENS]


async def test_an_engine_that_does_not_speculate_shows_no_series(plain: RealServer) -> None:
    page, told = await seen(plain)
    assert told is None, "it has no such endpoint by default"
    assert reasons(None, page, told) == []
    assert reasons(NGRAM, page, told) == [Mismatch.DOES_NOT_SPECULATE]


def test_the_log_of_both_tells_it(speculating: RealServer, plain: RealServer) -> None:
    assert read_text(speculating.log.read_text()) == Told("ngram", 3)
    assert read_text(plain.log.read_text()) == Told(None)


def test_it_takes_no_argument_for_it(speculating: RealServer) -> None:
    assert isinstance(speculating.process.args, list)
    assert not [a for a in speculating.process.args if re.match("--spec", str(a))]
    assert Path(str(speculating.process.args[-1])).suffix == ".yaml"
