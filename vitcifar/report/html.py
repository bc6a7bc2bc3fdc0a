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
class Table:
    """Rows of text and of floats; a float is a share and gets a bar. Columns in `numeric` are right-aligned."""

    title: str = ""
    header: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    numeric: Sequence[int] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """One part of a report; its fields appear in this order."""

    title: str
    text: str = ""
    headline: Evaluation | None = None  # its accuracy, large
    verdict: str = ""
    tone: Tone = "plain"  # of the verdict
    numbers: Sequence[Number] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    tiles: Sequence[Tile] = ()
    columns: int = 0  # of the tiles; 0 = as many as fit
    logged_as: str = ""  # the name under which a run logs the last figure, or the tiles as one image; "" = not at all


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
    environment.filters |= {"percent": "{:.1%}".format, "titles": _titles, "svg_url": _svg_url, "png_url": _png_url}
    return environment.get_template("report.html.j2")


def _titles(figure: Figure) -> str:
    return "; ".join(filter(None, (axes.get_title(loc="left") for axes in figure.axes))) or "figure"


def _svg_url(figure: Figure) -> str:
    """As an image, a figure is a document of its own, so its ids cannot collide with another's."""
    return "data:image/svg+xml;base64," + base64.b64encode(style.to_svg(figure).encode()).decode()


def _png_url(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
