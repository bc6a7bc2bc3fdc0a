"""Contact sheets: labelled images in a grid, as one RGB image."""

import dataclasses
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vitcifar.data.dataset import ImageDataset
from vitcifar.data.fonts import drawable

GAP = 8  # pixels
MARGIN = 20
MAX_CLASSES = 60  # rows of a sheet of classes
INK, MUTED, PAPER, PANEL = "#1a2233", "#5d6b82", "#ffffff", "#f0f2f5"
Tone = Literal["good", "bad", "plain"]
Text = tuple[str, ImageFont.FreeTypeFont]
COLOURS = {"good": "#00805e", "bad": "#c24f00", "plain": INK}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """A uint8 (H, W, 3) image with a title in the colour of its tone and a note; `id` is shown in HTML only."""

    image: np.ndarray
    title: str = ""
    note: str = ""
    id: str = ""
    tone: Tone = "plain"


def contact_sheet(dataset: ImageDataset, per_class: int = 8) -> Image.Image:
    """One row per class: its name, its number of images, and the first `per_class` of them, as an RGB image."""
    names, counts = dataset.class_names[:MAX_CLASSES], dataset.counts()
    note = f"{len(dataset):,} images, {len(dataset.class_names)} classes"
    if len(names) < len(dataset.class_names):
        note += f" (the first {len(names)} are shown)"
    tiles: list[Tile | None] = []
    for label in range(len(names)):
        members = np.flatnonzero(dataset.labels == label)[:per_class]
        tiles += [Tile(image=dataset.images[index]) for index in members]
        tiles += [None] * (per_class - len(members))
    rows = [(name, f"{counts[name]:,} images") for name in names]
    return tile_sheet(tiles, columns=per_class, note=note, rows=rows, side=72)


def tile_sheet(
    tiles: Sequence[Tile | None],
    *,
    columns: int,
    title: str = "",
    note: str = "",
    rows: Sequence[tuple[str, str]] = (),
    side: int = 120,
) -> Image.Image:
    """Tiles from left to right in rows of `columns` squares of `side` pixels, None = an empty square.

    Texts stand below the images and are cut to the width of a tile; `rows` are a name and a note at the left of each
    row. Returns an RGB image. Small images are enlarged without smoothing, so that their pixels are visible.
    """
    lines = max((2 if tile.note else 1 if tile.title else 0 for tile in tiles if tile), default=0)
    left, top = MARGIN, MARGIN + (24 if title else 0) + (20 if note else 0) + (GAP if title or note else 0)
    sides = [(_fit(name, 15, 240), _fit(below, 12, 240)) for name, below in rows]
    if sides:
        left += 2 * GAP + round(max(font.getlength(text) for row in sides for text, font in row))
    step_x, step_y = side + GAP, side + GAP + 17 * lines
    height = top + -(-len(tiles) // columns) * step_y + MARGIN - GAP
    sheet = Image.new("RGB", (left + columns * step_x - GAP + MARGIN, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        _write(draw, (MARGIN, MARGIN), _fit(title, 16, bold=True), INK)
    if note:
        _write(draw, (MARGIN, MARGIN + (24 if title else 0)), _fit(note, 13), MUTED)
    for row, (name, below) in enumerate(sides):
        y = top + row * step_y + side // 2
        _write(draw, (MARGIN, y), name, INK, anchor="ls")
        _write(draw, (MARGIN, y + 6), below, MUTED, anchor="lt")
    for position, tile in enumerate(tiles):
        x, y = left + position % columns * step_x, top + position // columns * step_y
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=PANEL)
        if tile is None:
            continue
        image = Image.fromarray(tile.image)
        resampling = Image.Resampling.NEAREST if max(image.size) < side else Image.Resampling.LANCZOS
        image = ImageOps.contain(image, (side, side), resampling)
        sheet.paste(image, (x + (side - image.width) // 2, y + (side - image.height) // 2))
        _write(draw, (x, y + side + 2), _fit(tile.title, 12, side, bold=True), COLOURS[tile.tone])
        _write(draw, (x, y + side + 18), _fit(tile.note, 12, side), MUTED)
    return sheet


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: Text, colour: str, *, anchor: str = "la") -> None:
    draw.text(place, text[0], fill=colour, font=text[1], anchor=anchor)


def _fit(text: str, size: int, width: float = math.inf, *, bold: bool = False) -> Text:
    """The text on one line with a font that has its letters; the end of one wider than `width` is an ellipsis."""
    text, file = drawable(" ".join(text.split()), bold=bold)
    font = _font(file, size)
    if font.getlength(text) > width:
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text += "…"
    return text, font


@cache
def _font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)
