"""A report as one HTML file that opens offline, can be mailed and printed: everything inline, no script.

A report is a title, facts and sections; `report.html.j2` lays them out and escapes every text.
"""

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from vitcifar.data.contact_sheet import Tile, Tone
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.report import style

THUMBNAIL = 192  # pixels: larger images are scaled down to this


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """One number on a card, already formatted."""

    name: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence of a summary."""

    text: str
    tone: Tone = "plain"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text and of floats; a float is a share and gets a bar. Columns in `numeric` are right-aligned.

    The first cell of a row is its header.
    """

    title: str = ""
    note: str = ""
    header: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    numeric: Sequence[int] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heat:
    """A cell of a heat map: its strength, 0 to 1, in the colour of its tone, and what it says."""

    strength: float
    tone: Tone
    text: str = ""  # in the cell
    hint: str = ""  # shown by a pointer that rests on it


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A table of coloured cells; `upright` writes the names of its columns from the bottom to the top."""

    title: str
    note: str = ""
    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str
    column_title: str
    cells: Sequence[Sequence[Heat | None]]  # None = empty
    upright: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Raster:
    """Pixels uint8 (H, W, 4) with what they show, enlarged without smoothing."""

    title: str
    note: str = ""
    alt: str
    pixels: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """One part of a report; its fields appear in this order."""

    title: str
    text: str = ""
    headline: Evaluation | None = None  # its accuracy, large
    chance: float | None = None  # on the scale of the headline
    verdict: str = ""
    tone: Tone = "plain"  # of the verdict
    findings: Sequence[Finding] = ()
    numbers: Sequence[Number] = ()
    command: str = ""
    figures: Sequence[Figure] = ()
    raster: Raster | None = None
    heat_maps: Sequence[HeatMap] = ()
    tables: Sequence[Table] = ()
    tiles: Sequence[Tile] = ()
    columns: int = 0  # of the tiles; 0 = as many as fit
    logged_as: str = ""  # the name under which a run logs the tiles as one image; "" = not at all


def html_report(
    title: str, sections: Sequence[Section], *, subtitle: str = "", facts: Mapping[str, str] | None = None
) -> str:
    """The page as one string of HTML; `facts` are short pairs shown under the title."""
    return _template().render(title=title, sections=sections, subtitle=subtitle, facts=facts or {})


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": "{:.1%}".format, "options": _options, "titles": _titles}
    environment.filters |= {"svg_url": _svg_url, "png_url": _png_url}
    return environment.get_template("report.html.j2")


def _options(text: str) -> Markup:
    """The text, escaped, in which no line breaks within the name of an option."""
    option = Markup('<span class="option">{}</span>')
    return Markup(" ").join(option.format(word) if word.startswith("--") else escape(word) for word in text.split(" "))


def _titles(figure: Figure) -> str:
    """What a figure shows in words: the titles of its axes, with the notes that say their numbers."""
    parts = []
    for axes in figure.axes:
        notes = [text.get_text() for text in axes.texts if text.get_label() == style.NOTE]
        parts.append(": ".join(filter(None, [axes.get_title(loc="left"), *notes])))
    return "; ".join(filter(None, parts)) or "figure"


def _svg_url(figure: Figure) -> str:
    """As an image, a figure is a document of its own, so its ids cannot collide with another's."""
    return "data:image/svg+xml;base64," + base64.b64encode(style.to_svg(figure).encode()).decode()


def _png_url(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    if image.mode == "RGB":  # a tile; a raster has its size
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
