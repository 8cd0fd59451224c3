"""A part of the loopback network that one lab has for itself, so that several labs live side by side.

Linux answers on all of 127.0.0.0/8 without any set-up, which gives each pod an address of its own without root.
"""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack

from specdecode.lab.errors import LabError

_FIRST, _LAST = 10, 254


class Subnet:
    """127.`number`.0.0/16, ours until `close` or until our process ends."""

    def __init__(self, number: int, claim: socket.socket) -> None:
        self.number = number
        self._claim = claim
        self._used: set[str] = set()
        self._cursor = 0

    @classmethod
    def claim(cls) -> Subnet:
        """The first one that nobody on this machine holds. The claim is a name in Linux's abstract socket namespace,
        which the kernel frees with its owner and which spans exactly the processes that share one loopback network."""
        if not sys.platform.startswith("linux"):
            raise LabError("the lab needs Linux: it gives each pod an own address out of 127.0.0.0/8")
        for number in range(_FIRST, _LAST + 1):
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0specdecode-lab-127.{number}")
            except OSError:
                claim.close()
            else:
                return cls(number, claim)
        raise LabError(f"all loopback subnets 127.{_FIRST}.0.0 to 127.{_LAST}.0.0 are taken by running labs")

    @property
    def host(self) -> str:
        """The address of the control plane and of the node itself."""
        return f"127.{self.number}.0.1"

    def free_ports(self, count: int) -> list[int]:
        """Ports on `host` that nobody listens on right now."""
        with ExitStack() as held:
            ports = []
            for _ in range(count):
                probe = held.enter_context(socket.socket())
                probe.bind((self.host, 0))
                ports.append(int(probe.getsockname()[1]))
            return ports

    def take(self) -> str:
        """An address for a pod; the one that was free for the longest time."""
        for _ in range(255 * 254):
            address = f"127.{self.number}.{1 + self._cursor // 254 % 255}.{1 + self._cursor % 254}"
            self._cursor += 1
            if address not in self._used:
                self._used.add(address)
                return address
        raise LabError("no pod address is left on this node")

    def give_back(self, address: str) -> None:
        """Frees a pod's address."""
        self._used.discard(address)

    def close(self) -> None:
        """Gives up the claim."""
        self._claim.close()
