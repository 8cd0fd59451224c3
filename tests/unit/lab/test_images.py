import subprocess
from pathlib import Path

import pytest

from specdecode.lab.images import DEFAULT_IMAGES, Image, find


def test_the_first_pattern_that_matches_wins() -> None:
    special, general = Image(("a",)), Image(("b",))
    images = {"acme/vllm*": special, "*vllm*": general}
    assert find(images, "acme/vllm:1") is special
    assert find(images, "vllm/vllm-openai:v0.24.0") is general
    assert find(images, "nginx") is None


@pytest.mark.parametrize(
    ("image", "variables"),
    [
        ("vllm/vllm-openai:v0.24.0", {"SPECDECODE_SIM_VLLM_VERSION": "0.24.0"}),
        ("registry.example:5000/vllm/vllm-openai:latest", {}),
    ],
)
def test_the_simulator_emulates_the_version_of_the_images_tag(image: str, variables: dict[str, str]) -> None:
    stand_in = find(DEFAULT_IMAGES, image)
    assert stand_in is not None
    assert stand_in.variables(image) == variables


def test_a_program_of_an_image_runs_its_replacement_with_the_arguments(tmp_path: Path) -> None:
    image = Image(programs={"vllm": ("echo", "it's", "simulated")})
    folder = image.install(tmp_path / "bin")
    said = subprocess.run([folder / "vllm", "serve", "a b"], capture_output=True, text=True, check=True).stdout
    assert said == "it's simulated serve a b\n"


def test_a_replaced_use_of_a_program_leaves_its_other_uses_alone(tmp_path: Path) -> None:
    folder = Image(programs={"python3 -m some.server": ("echo", "server")}).install(tmp_path / "bin")
    replaced = subprocess.run([folder / "python3", "-m", "some.server", "--port", "1"], capture_output=True, text=True)
    assert replaced.stdout == "server --port 1\n"
    other = subprocess.run([folder / "python3", "-S", "-c", "print(6 * 7)"], capture_output=True, text=True)
    assert other.stdout == "42\n"
