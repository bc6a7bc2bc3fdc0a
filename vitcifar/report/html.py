"""One HTML file that can be mailed, kept and printed: everything inline, no script, no request to anywhere.

A report is a title, facts and sections; a section shows only what it was given. All text is escaped.
"""

import base64
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vitcifar.report import style
from vitcifar.report.stylesheet import CSS

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
TILE_SIDE = 192  # pixels: larger images are scaled down to this
Tone = Literal["good", "bad", "plain"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """One number on a card, already written as text."""

    name: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Headline:
    """The one number of a report, a share, with its interval."""

    value: float
    low: float
    high: float
    note: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text and of floats; a float is a share and is drawn as a bar. Columns in `numeric` are right-aligned."""

    title: str = ""
    header: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    numeric: Sequence[int] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """A uint8 (H, W, 3) image with what was answered, the truth and its id."""

    image: np.ndarray
    title: str
    note: str = ""
    id: str = ""
    tone: Tone = "bad"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """One part of a report, shown in this order."""

    title: str
    text: str = ""
    headline: Headline | None = None
    verdict: str = ""
    tone: Tone = "plain"
    numbers: Sequence[Number] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    tiles: Sequence[Tile] = ()
    columns: int = 0  # of the tiles; 0 = as many as fit


def html_report(
    title: str, sections: Sequence[Section], *, subtitle: str = "", facts: Mapping[str, str] | None = None
) -> str:
    """The whole page as one string of HTML; `facts` are short pairs shown under the title."""
    names = _anchors(sections)
    contents = "".join(
        f'<li><a href="#{name}">{escape(section.title)}</a></li>' for name, section in zip(names, sections, strict=True)
    )
    body = "\n".join(_section(section, name) for name, section in zip(names, sections, strict=True))
    told = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in (facts or {}).items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<div class="sheet">
<header>
<h1>{escape(title)}</h1>
{f"<p>{escape(subtitle)}</p>" if subtitle else ""}
{f'<dl class="facts">{told}</dl>' if told else ""}
</header>
<div class="columns">
<nav aria-label="Contents"><ol>{contents}</ol></nav>
<main>
{body}
</main>
</div>
<footer>Made by vitcifar. Intervals are 95% unless another share is told.</footer>
</div>
</body>
</html>
"""


def _section(section: Section, name: str) -> str:
    parts = [f'<section id="{name}">', f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.headline:
        parts.append(_headline(section.headline))
    if section.verdict:
        parts.append(f'<div class="verdict {section.tone}">{escape(section.verdict)}</div>')
    if section.numbers:
        parts.append('<dl class="cards">' + "".join(map(_number, section.numbers)) + "</dl>")
    if section.figures:
        drawn = (_figure(figure, f"{name}-{place}") for place, figure in enumerate(section.figures))
        parts.append('<div class="figures">' + "".join(drawn) + "</div>")
    parts += map(_table, section.tables)
    if section.tiles:
        layout = f' style="--columns:{section.columns};--least:84px"' if section.columns else ""
        tiles = "".join(map(_tile, section.tiles))
        parts.append(f'<div class="scroll"><div class="tiles"{layout}>{tiles}</div></div>')
    return "\n".join([*parts, "</section>"])


def _headline(headline: Headline) -> str:
    low, high, at = (f"{100 * share:.2f}%" for share in (headline.low, headline.high, headline.value))
    width = f"{100 * (headline.high - headline.low):.2f}%"
    return (
        f'<div class="headline"><strong>{headline.value:.1%}</strong><span>{escape(headline.note)}</span></div>'
        f'<div class="track" role="img" aria-label="{at}, interval {low} to {high}">'
        f'<i style="left:{low};width:{width}"></i><b style="left:{at}"></b></div>'
        '<div class="ends"><span>0%</span><span>100%</span></div>'
    )


def _number(number: Number) -> str:
    note = f"<small>{escape(number.note)}</small>" if number.note else ""
    return f'<div class="card"><dt>{escape(number.name)}</dt><dd>{escape(number.value)}{note}</dd></div>'


def _table(table: Table) -> str:
    def cell(place: int, value: str | float) -> str:
        if isinstance(value, float):
            bar = f'<span class="bar"><i style="width:{100 * value:.1f}%"></i></span>'
            return f'<td class="n">{bar}<span class="share">{value:.1%}</span></td>'
        return f'<td class="n">{escape(value)}</td>' if place in table.numeric else f"<td>{escape(value)}</td>"

    aligned = {place for row in table.rows for place, value in enumerate(row) if isinstance(value, float)}
    aligned |= set(table.numeric)
    head = "".join(
        f'<th class="n">{escape(name)}</th>' if place in aligned else f"<th>{escape(name)}</th>"
        for place, name in enumerate(table.header)
    )
    rows = "".join(f"<tr>{''.join(cell(*item) for item in enumerate(row))}</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _tile(tile: Tile) -> str:
    small = ' class="small"' if max(tile.image.shape[:2]) <= 96 else ""
    note = f"<span>{escape(tile.note)}</span>" if tile.note else ""
    name = f'<span class="id" title="{escape(tile.id)}">{escape(tile.id)}</span>' if tile.id else ""
    alt = escape(f"{tile.title}. {tile.note}")
    return (
        f'<figure class="tile"><img{small} alt="{alt}" src="{_data_url(tile.image)}">'
        f'<b class="{tile.tone}">{escape(tile.title)}</b>{note}{name}</figure>'
    )


def _data_url(image: np.ndarray) -> str:
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((TILE_SIDE, TILE_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    thumbnail.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _figure(figure: Figure, salt: str) -> str:
    """The figure as inline SVG whose ink, grid and panels follow the page's light or dark colours."""
    svg = style.to_svg(figure, salt)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([^;\"]*?)(\d[\d.]*px) [^;\"]*", r"font: \1\2 system-ui, sans-serif", svg)
    # Most ids name nothing that is referred to; the others get the figure's name, to be the only ones on the page.
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{salt}-", svg)
    referred = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(
        r' id="([^"]+)"', lambda match: f' id="{salt}-{match[1]}"' if f"{salt}-{match[1]}" in referred else "", svg
    )
    for colour, variable in (
        (style.INK, "--ink"),
        (style.MUTED, "--muted"),
        (style.GRID, "--grid"),
        (style.PANEL, "--panel"),
    ):
        svg = svg.replace(colour, f"var({variable})")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    label = escape("; ".join(filter(None, titles)) or "figure")
    return f'<figure role="img" aria-label="{label}">{svg}</figure>'


def _anchors(sections: Sequence[Section]) -> list[str]:
    """An id for each section that is a valid one and its own."""
    return [f"s{place}-" + (re.sub(r"[^a-z0-9]+", "-", s.title.lower()).strip("-")) for place, s in enumerate(sections)]
