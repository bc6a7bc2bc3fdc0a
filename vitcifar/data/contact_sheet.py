"""A sheet that shows what the images of each class look like."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitcifar.data.dataset import ImageDataset

TILE = 72  # pixels
GAP = 6
MARGIN = 24
MAX_CLASSES = 60  # rows of a sheet
MAX_NAME = 24  # characters
INK, GREY, PAPER, EMPTY = "#1c1e21", "#7a7f87", "#ffffff", "#f1f2f4"


def contact_sheet(dataset: ImageDataset, per_class: int = 8) -> Image.Image:
    """One row a class: its name, its number of images, and the first `per_class` of them.

    Returns an RGB image. Small images are enlarged without smoothing, so that their pixels can be seen.
    """
    names = dataset.class_names[:MAX_CLASSES]
    counts = dataset.counts()
    name_font, small_font = ImageFont.load_default(17), ImageFont.load_default(13)
    shown_names = [name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…" for name in names]
    first = MARGIN + round(max(name_font.getlength(name) for name in shown_names)) + 3 * GAP + MARGIN // 2
    first = max(first, MARGIN + 110)
    top = MARGIN + 34
    width = first + per_class * (TILE + GAP) - GAP + MARGIN
    height = top + len(names) * (TILE + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    title = f"{len(dataset):,} images, {len(dataset.class_names)} classes"
    if len(names) < len(dataset.class_names):
        title += f" (the first {len(names)} are shown)"
    draw.text((MARGIN, MARGIN), title, fill=GREY, font=small_font)
    for row, name in enumerate(names):
        y = top + row * (TILE + GAP)
        draw.text((MARGIN, y + TILE // 2), shown_names[row], fill=INK, font=name_font, anchor="ls")
        draw.text((MARGIN, y + TILE // 2 + 7), f"{counts[name]:,} images", fill=GREY, font=small_font, anchor="lt")
        members = np.flatnonzero(dataset.labels == row)[:per_class]
        for column in range(per_class):
            x = first + column * (TILE + GAP)
            if column < len(members):
                sheet.paste(_tile(dataset.images[members[column]]), (x, y))
            else:
                draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), fill=EMPTY)
    return sheet


def _tile(pixels: np.ndarray) -> Image.Image:
    """An image in a square of TILE pixels, whole and with its shape."""
    image = Image.fromarray(pixels)
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (TILE, TILE), EMPTY)
    tile.paste(image, ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    return tile
