"""The style of every figure: colours that colour-blind readers tell apart, one font, no clutter.

Figures are made without pyplot, which keeps every figure alive and is not safe in threads.
"""

import io
import re
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.typing import ColorType

from vitcifar.data.contact_sheet import COLOURS
from vitcifar.data.fonts import families, glyphs

INK = "#1a2233"
MUTED = "#5d6b82"
GRID = "#d9dfe8"
PANEL = "#f0f3f8"
PAPER = "#ffffff"
# After Okabe & Ito's palette (2008), darker so that white text on them is readable. Green is right and red is wrong, in
# figures, reports and contact sheets alike; blue and orange are series.
BLUE, ORANGE, GREEN, RED = "#1f6fb2", "#e69f00", COLOURS["good"], COLOURS["bad"]
RIGHT = LinearSegmentedColormap.from_list("right", ["#e3f3ee", GREEN])
WRONG = LinearSegmentedColormap.from_list("wrong", ["#fbeee4", RED])
DASHED, DOTTED = (0, (4, 3)), (0, (1, 2))
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Helvetica Neue', Arial, sans-serif"
NOTE = "_note"  # the label of the text under a title, in no legend
# A figure in a report takes its colours from these variables, light and dark as in report.css.
DARK = {INK: "#e7ecf4", MUTED: "#9aa8bf", GRID: "#2d3748", PAPER: "#171d29", BLUE: "#6db3ea", GREEN: "#43c59e"}
DARK |= {RED: "#f2955a"}


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure; width and height in inches."""
    engine = ConstrainedLayoutEngine(w_pad=0.13, h_pad=0.13, wspace=0.01, hspace=0.01)
    return Figure(figsize=(width, height), dpi=144, layout=engine, facecolor=PAPER)


def heading(figure: Figure, title: str, note: str) -> None:
    """Title and note at the top left of a figure that has many axes."""
    width, height = figure.get_size_inches()
    figure.text(0.16 / width, 1 - 0.16 / height, title, va="top", fontsize=12, fontweight="bold", color=INK)
    figure.text(0.16 / width, 1 - 0.42 / height, note, va="top", fontsize=9, color=MUTED)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.6 / height))  # type: ignore[union-attr, call-arg]


def dress(axes: Axes, title: str = "", *, note: str = "", grid: str = "y") -> None:
    """Title and note at the left, thin grid behind the data, no box."""
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == "bottom" and grid != "none")
        axes.spines[side].set_color(GRID)
    if grid != "none":
        axes.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.tick_params(colors=MUTED, labelcolor=MUTED, labelsize=8.5, length=0)
    if grid == "x":  # horizontal rows, whose names are read
        axes.tick_params(axis="y", labelcolor=INK)
    axes.xaxis.label.set(color=MUTED, size=9)
    axes.yaxis.label.set(color=MUTED, size=9)
    if title:
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=24 if note else 10)
    if note:
        where = {"xytext": (0, 8), "xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(note, (0, 1), fontsize=9, color=MUTED, label=NOTE, **where)  # type: ignore[arg-type]


def legend(figure: Figure, axes: Axes, columns: int) -> None:
    """The legend of the axes, below the figure."""
    text = {"fontsize": 8.5, "labelcolor": MUTED}
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, **text)


def cell(axes: Axes, x: float, y: float, colour: ColorType, text: str = "", *, size: float = 8.5, bold: bool) -> None:
    """A coloured cell of a matrix around (x, y) with its text in a readable colour."""
    axes.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=colour, linewidth=0))
    red, green, blue = to_rgba(colour)[:3]
    ink = "#10182a" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.58 else "#fdfdfd"
    if text:
        weight = "bold" if bold else "normal"
        axes.text(x, y, text, ha="center", va="center", fontsize=size, color=ink, fontweight=weight)


def interval_row(axes: Axes, y: int, value: float, low: float, high: float, colour: str) -> None:
    """A point with its interval as a horizontal line."""
    axes.plot([low, high], [y, y], color=colour, linewidth=2.4, alpha=0.55)
    axes.scatter([value], [y], s=46, color=colour, zorder=3)


def plain(names: Sequence[str], longest: int = 18) -> list[str]:
    """Class names cut to a length, without what matplotlib reads as mathematics.

    A name that no font here can draw becomes its number: a figure has no boxes; a report draws its names as HTML.
    """
    drawable = frozenset().union(*map(glyphs, families().values()))
    shown = []
    for number, name in enumerate(names):
        name = name if set(map(ord, name)) <= drawable else f"class {number}"
        cut = name if len(name) <= longest else name[: longest - 1] + "…"
        shown.append(cut.replace("$", r"\$"))
    return shown


def fonts() -> list[str]:
    """Families for class names, in the order in which a glyph is looked up."""
    return list(families())


def to_svg(figure: Figure) -> str:
    """The figure as SVG with real text, the same bytes each time, dark where the reader prefers that."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vitcifar"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"font-family: [^;\"]*", f"font-family: {FONT}", buffer.getvalue())
    for colour in DARK:
        svg = svg.replace(f": {colour}", f": var(--c{colour[1:]})")
    light, dark = (
        ";".join(f"--c{name[1:]}:{value}" for name, value in pairs)
        for pairs in (zip(DARK, DARK, strict=True), DARK.items())
    )
    rules = f"svg{{{light}}}@media screen and (prefers-color-scheme: dark){{svg{{{dark}}}}}"
    return svg.replace('<style type="text/css">', f'<style type="text/css">{rules}', 1)
