"""`python -m specdecode.sim`: a simulated vLLM server, or (`load`) the clients that load one.

Whatever a container's command says is taken as a server's command line: `vllm serve M …`, `serve M …`,
`python3 -m vllm.entrypoints.openai.api_server --model M …`, or the bare arguments.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run one command line; the exit status is the one vLLM would have."""
    if argv[:1] == ["load"]:
        from specdecode.sim.load_cli import main as load

        return load(argv[1:])
    return serve(argv)


def serve(argv: Sequence[str]) -> int:
    """Check the arguments as the emulated vLLM would, then serve."""
    from specdecode.sim.arguments import ArgumentsError, parse_arguments
    from specdecode.sim.settings import SettingsError, settings_from_env

    try:
        settings = settings_from_env(os.environ)
        args = parse_arguments(argv, settings.version)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except ArgumentsError as error:
        print(error, file=sys.stderr)
        return error.status
    from specdecode.model.surface import SurfaceError
    from specdecode.sim.acceptance import AcceptanceError
    from specdecode.sim.server import serve as run

    try:
        run(args, settings)
    except (SurfaceError, AcceptanceError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
