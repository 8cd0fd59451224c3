"""How long a container that ended waits for its restart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackOff:
    """A kubelet's crash-loop back-off, in seconds: the first restart is immediate, the second waits `base`, each
    further one twice as long up to `cap`. A run longer than twice `cap` clears it (kubelet: 10 s and 5 min)."""

    base: float = 10.0
    cap: float = 300.0

    def delay(self, restarts: int) -> float:
        """The wait before restart number `restarts` + 1 of an unbroken series."""
        if restarts == 0:
            return 0.0
        # 2**30 tens of seconds are beyond any cap; the bound keeps the power a float.
        return min(self.cap, self.base * 2.0 ** min(restarts - 1, 30))

    def series_after(self, restarts: int, ran_for: float) -> int:
        """The length of the series that counts for the next delay, after a run of `ran_for` seconds."""
        return 0 if ran_for > 2 * self.cap else restarts
