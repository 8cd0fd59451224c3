"""Versions out of image tags and version pages."""

from __future__ import annotations

import pytest

from specdecode.vllm.version import Version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.24.0", Version(0, 24, 0)),
        ("v0.10.2.post1", Version(0, 10, 2)),
        ("0.32.0+cpu", Version(0, 32, 0)),
        ("0.10.1.1", Version(0, 10, 1)),
        ("0.11.0rc2", Version(0, 11, 0)),
        ("0.9.2.dev123+g1a2b3c4.d20250901", Version(0, 9, 2)),
        ("0.10.2-aibrix-v0.5.0-nixl-0.7.1-20251123", Version(0, 10, 2)),
        ("0.24", Version(0, 24, 0)),
        ("", None),
        ("latest", None),
        ("7", None),
        ("2025-09-01", None),
    ],
)
def test_the_first_part_that_looks_like_a_version_is_it(text: str, version: Version | None) -> None:
    assert Version.parse(text) == version


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("vllm/vllm-openai:v0.24.0", Version(0, 24, 0)),
        ("registry.example.com:5000/vllm/vllm-openai:v0.11.1", Version(0, 11, 1)),
        ("registry.example.com:5000/vllm/vllm-openai", None),
        ("vllm/vllm-openai:v0.24.0@sha256:0123456789abcdef", Version(0, 24, 0)),
        ("vllm/vllm-openai@sha256:0.24.0", None),
        ("aibrix/vllm-openai:v0.10.2-aibrix-v0.5.0-nixl-0.7.1-20251123", Version(0, 10, 2)),
        ("public.ecr.aws/deep-learning-containers/vllm:0.11.0-gpu-py312-cu128-ubuntu22.04-ec2", Version(0, 11, 0)),
        ("rocm/vllm:rocm6.4.1_vllm_0.10.1_20250909", Version(0, 10, 1)),
        ("rocm/vllm:rocm6.2-ubuntu22.04-py3.9-vllm-0.6.4", Version(0, 6, 4)),
        ("example.com/llm:cuda-12.8-vllm0.11.0", Version(0, 11, 0)),
        ("nvcr.io/nvidia/vllm:25.09-py3", None),
        ("registry.redhat.io/rhaiis/vllm-cuda-rhel9:3.2.1", None),
        ("vllm/vllm-openai:latest", None),
        ("vllm/vllm-openai:nightly-1a2b3c4d", None),
        ("", None),
    ],
)
def test_an_image_tells_its_version_by_the_tag_alone(image: str, version: Version | None) -> None:
    assert Version.from_image(image) == version


def test_versions_are_ordered_and_print_as_numbers() -> None:
    assert Version(0, 9, 2) < Version(0, 10, 0) < Version(0, 10, 1)
    assert str(Version(0, 10, 1)) == "0.10.1"
