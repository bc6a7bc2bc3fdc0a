"""How every figure looks: colours that colour-blind readers tell apart, one font, no clutter.

Figures are made without pyplot, so nothing is kept alive and any thread can draw.
"""

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK = "#1a2233"
MUTED = "#5d6b82"
GRID = "#d9dfe8"
PANEL = "#f3f5f9"
PAPER = "#ffffff"
# Okabe & Ito's palette (2008), blue a little darker so that white text on it can be read.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#1f6fb2", "#e69f00", "#009e73", "#d55e00", "#a8548a", "#56b4e9"
SERIES = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)
BLUES = LinearSegmentedColormap.from_list("right", ["#e6f0f9", "#8fbde0", "#1f6fb2", "#0e3f6b"])
ORANGES = LinearSegmentedColormap.from_list("wrong", ["#fdf0dc", "#f5bd6b", "#d55e00", "#8a3a00"])


def new_figure(width: float, height: float, pad: float = 0.13) -> Figure:
    """An empty figure of so many inches on white paper, with so many inches around each of its axes."""
    engine = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=(width, height), dpi=144, layout=engine, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


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
    axes.xaxis.label.set(color=MUTED, size=9)
    axes.yaxis.label.set(color=MUTED, size=9)
    if title:
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=24 if note else 10)
    if note:
        axes.annotate(
            note, (0, 1), xytext=(0, 8), xycoords="axes fraction", textcoords="offset points", fontsize=9, color=MUTED
        )


def text_on(colour: object) -> str:
    """Ink or paper, whichever is easier to read on this colour."""
    red, green, blue = to_rgb(colour)  # type: ignore[arg-type]
    return "#10182a" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.58 else "#fdfdfd"


def to_png(figure: Figure, dpi: int = 144) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def to_svg(figure: Figure, salt: str) -> str:
    """The figure as SVG with real text and no background; `salt` keeps the ids of two figures on one page apart."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
