"""Draw docs/overview.svg: what happens to a call. Run it after a change of the picture: python scripts/draw_overview.py."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, ACCENT, SOFT, LINE = "#1d2733", "#b5490f", "#fdf3ec", "#8a97a6"


def box(axes: Any, x: float, y: float, width: float, height: float, title: str, text: str, *, accent: bool = False) -> None:
    """Draw a box with its lower left corner there."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=1.2",
            facecolor=SOFT if accent else "white",
            edgecolor=ACCENT if accent else LINE,
            linewidth=1.4,
        )
    )
    axes.text(x + width / 2, y + height - 3.2, title, ha="center", va="center", weight="bold", fontsize=10.5, color=INK)
    axes.text(
        x + width / 2, y + (height - 4.5) / 2, text, ha="center", va="center", fontsize=8.6, color=INK, linespacing=1.45
    )


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], label: str, *, above: bool = True) -> None:
    """Draw a labelled arrow."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=INK, linewidth=1.2))
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + (1.3 if above else -1.5)
    axes.text(x, y, label, ha="center", va="bottom" if above else "top", fontsize=8.4, color=ACCENT)


def draw() -> Figure:
    """Return the picture."""
    figure = Figure(figsize=(10, 3.9))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100), ylim=(0, 39))
    axes.axis("off")
    box(axes, 2, 15, 15, 17, "callers", "curl, browser\nPython SDK\ncommand line\nnotebook")
    box(
        axes,
        32,
        15,
        22,
        17,
        "server",
        "checks the request\nnames the job by its content\nnever imports your code",
        accent=True,
    )
    box(axes, 32, 1.5, 22, 9, "ledger", "SQLite, fsync before 202", accent=True)
    box(axes, 69, 24, 29, 11, "agent", "dials home, supervises\nholds outcomes until they are on disk")
    box(axes, 69, 4, 29, 13.5, "worker processes", "warm; run your functions\nand Dask graphs")
    arrow(axes, (17, 27), (32, 27), "POST parameters")
    arrow(axes, (32, 20), (17, 20), "job, result", above=False)
    arrow(axes, (43, 15), (43, 10.5), "")
    axes.text(44.2, 12.7, "every change", ha="left", va="center", fontsize=8.4, color=ACCENT)
    arrow(axes, (54, 31), (69, 31), "start")
    arrow(axes, (69, 27), (54, 27), "outcome", above=False)
    arrow(axes, (80, 24), (80, 17.5), "")
    arrow(axes, (87, 17.5), (87, 24), "")
    return figure


def main() -> None:
    """Write the picture; --png as well as PNG, to look at."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--png", type=Path)
    options = parser.parse_args()
    # Text as shapes, to look the same everywhere; a fixed salt and no date, to change only when the picture does.
    mpl.rcParams.update({"svg.hashsalt": "fleet", "font.family": "DejaVu Sans"})
    figure = draw()
    figure.savefig(Path(__file__).parent.parent / "docs" / "overview.svg", metadata={"Date": None}, facecolor="white")
    if options.png:
        figure.savefig(options.png, dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
