"""Charts as SVG elements that take the colour of the page's text, light or dark."""

import io
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#012345"
"""Drawn in the colour of the page's text: no other colour of a chart is this one."""

COLOURS = ("#0082c8", "#e07b00", "#2a9d57", "#c0539a", "#8a8d00", "#d04a3a", "#6a6fd0")
"""Told apart on white and on black, also by most who see few colours."""

STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#88888855",
    "axes.grid": True,
    "legend.frameon": False,
    "path.simplify": True,
}


def svg(draw: Callable[[Axes], None], key: str, size: tuple[float, float] = (4.6, 3.0)) -> str:
    """What `draw` draws, as an <svg> element; `key` keeps its ids apart from other charts'."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": key}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    # Names that nothing refers to are the same in every chart.
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] * (found[1] in used), text)
    # It fills the width that the page gives it.
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    return re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)


def lines(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    key: str,
    x: str,
    y: str,
    logx: bool = False,
    logy: bool = False,
    marks: Sequence[tuple[float, float]] = (),
) -> str:
    """Lines by name: (their x, their y); `marks` are points to be seen."""

    def draw(axes: Axes) -> None:
        for name, (left, up) in series.items():
            axes.plot(left, up, label=name, linewidth=1.3, marker="." if len(left) < 15 else None)
        for left, up in marks:
            axes.plot([left], [up], "o", color=COLOURS[5])
        axes.set_xscale("log" if logx else "linear")
        axes.set_yscale("log" if logy else "linear")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if len(series) > 1:
            axes.legend(fontsize=8)

    return svg(draw, key)


def shares(
    groups: Mapping[str, tuple[np.ndarray, np.ndarray]], key: str, x: str, at: float | None
) -> str:
    """Steps by name: (edges [n + 1], share in each bin [n]); a vertical line `at` a threshold."""

    def draw(axes: Axes) -> None:
        for (name, (edges, share)), colour in zip(groups.items(), COLOURS, strict=False):
            axes.stairs(share, edges, fill=True, alpha=0.45, color=colour, label=name)
        if at is not None:
            axes.axvline(at, color=COLOURS[5], linestyle="--", label="threshold at the EER")
        axes.set_xlabel(x)
        axes.set_ylabel("share of pairs")
        axes.legend(fontsize=8)

    return svg(draw, key)


def points(
    place: np.ndarray, colour: np.ndarray, key: str, axis_names: tuple[str, str] = ("", "")
) -> str:
    """Points [N, 2] in the colours [N] of a cycle; as a picture inside, for there may be many."""

    def draw(axes: Axes) -> None:
        axes.scatter(
            *place.T, c=np.array(COLOURS)[colour % len(COLOURS)], s=9, alpha=0.75, rasterized=True
        )
        if any(axis_names):
            axes.set_xlabel(axis_names[0])
            axes.set_ylabel(axis_names[1])
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8)
        else:
            axes.set_xticks([])
            axes.set_yticks([])

    return svg(draw, key, (4.6, 4.2))


def bars(values: Mapping[str, float], key: str, y: str) -> str:
    """A bar for each name; names are shown where they are few."""

    def draw(axes: Axes) -> None:
        axes.bar(np.arange(len(values)), list(values.values()), color=COLOURS[0], width=0.85)
        few = len(values) <= 12
        axes.set_xticks(np.arange(len(values)) if few else [], list(values) if few else None)
        axes.set_ylabel(y)

    return svg(draw, key)
