"""The picture that `schemes.py` draws."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def picture(results: dict[str, Any], sets: Iterable[str], file: Path) -> None:
    """Draw accuracy against the share of MACs kept.

    Args:
        results: "network layers solved,steps" -> set of schemes -> share -> accuracy.
        sets: all sets of schemes, four.
        file: to write.
    """
    names = sorted({key.split(",")[0] for key in results})
    steps = sorted({int(key.split(",")[1]) for key in results})
    figure = Figure(figsize=(3.4 * len(steps), 2.8 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(steps), squeeze=False, sharex=True, sharey=True)
    colors = dict(zip(sets, ("#0072B2", "#009E73", "#CC79A7", "#D55E00"), strict=True))
    for across, name in enumerate(names):
        for down, count in enumerate(steps):
            panel = axes[across][down]
            for kinds, by_share in results.get(f"{name},{count}", {}).items():
                points = [(100 * float(share), value) for share, value in by_share.items() if value is not None]
                panel.plot(*zip(*points, strict=True), marker="o", color=colors[kinds], label=kinds) if points else None
            panel.set_title(f"{name}, {count} steps", fontsize=8)
            panel.grid(color="#EEEEEE")
    axes[0][0].legend(fontsize=7)
    figure.supxlabel("MACs kept, %")
    figure.supylabel("accuracy on held-out images, %")
    figure.savefig(file)
