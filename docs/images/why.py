"""The picture of the README: tokens per second of each way to speculate, over those without, by batch size.

    python docs/images/why.py

Step times `T` are measured (operator/specdecode/data/README.md). Tokens per second are `B E / T`, with `E` tokens per
step from the acceptance that was set while measuring: each drafted token is accepted with 0.7 as long as all before it
were.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from specdecode.sim.surfaces import load_surface
from specdecode.vllm.speculation import Method

SURFACE = load_surface("h200-llama32b-draft1b")
ACCEPTANCE = 0.7
FILE = Path(__file__).with_name("why.svg")

BATCHES = (1, 4, 16, 32, 64, 128, 256)
NGRAM, DRAFT, HELD = "n-gram, K = 5", "1B draft model, K = 3", "n-gram engine, held at K = 0"


def ratios() -> dict[str, dict[int, float]]:
    """Tokens per second over those without speculation, by batch size, at the batch sizes that were measured."""
    return {
        NGRAM: {b: _ratio(Method.NGRAM, 5, b) for b in BATCHES},
        DRAFT: {b: _ratio(Method.DRAFT_MODEL, 3, b) for b in BATCHES},
        HELD: {b: _ratio(Method.NGRAM, 0, b, scheduled=True) for b in (1, 16, 64, 256)},
    }


def _ratio(method: Method, k: int, batch: int, *, scheduled: bool = False) -> float:
    tokens_per_step = sum(ACCEPTANCE**i for i in range(k + 1))
    seconds = SURFACE.step_seconds(method, k, batch, scheduled=scheduled)
    return tokens_per_step * SURFACE.step_seconds(Method.DISABLED, 0, batch) / seconds


def draw(file: Path) -> None:
    """Writes the picture, always the same bytes."""
    mpl.rcParams |= {"svg.hashsalt": "specdecode", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    figure, axis = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    figure.patch.set_facecolor("white")
    axis.axhline(1.0, color="#555555", lw=1.5)
    axis.text(1, 1.04, "off", color="#555555")
    # The height of each label at the right end: the two curves come close there.
    styles = {NGRAM: ("#0072b2", "o-", -10), DRAFT: ("#d55e00", "s-", 4), HELD: ("#999999", "^:", 4)}
    for name, points in ratios().items():
        colour, style, height = styles[name]
        axis.plot(list(points), list(points.values()), style, color=colour, label=name, ms=5)
        for batch, offset in ((1, (6, 4)), (256, (6, height))):
            if name != HELD:
                text = f"{points[batch]:.1f}x" if points[batch] > 1 else f"{points[batch]:.2f}x"
                axis.annotate(text, (batch, points[batch]), xytext=offset, textcoords="offset points", color=colour)
    axis.set_xscale("log", base=2)
    axis.set_xticks(BATCHES, [str(b) for b in BATCHES])
    axis.set_xlim(0.85, 400)
    axis.set_ylim(0, 3)
    axis.set_xlabel("batch size: requests that run in the engine")
    axis.set_ylabel("tokens/s, as a ratio to off")
    axis.set_title(
        f"vLLM {SURFACE.vllm}, {SURFACE.gpu}, {SURFACE.target}, acceptance {ACCEPTANCE} per token", fontsize=10
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper right")
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(FILE)
