"""Which parts of the image a prediction rests on, drawn over it when somebody asks for it."""

import base64
import functools
import io
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vitcifar.errors import VitCifarError
from vitcifar.inference.occlusion import Occlusion, occlude
from vitcifar.serving.decoder import read_isolated
from vitcifar.serving.model_pool import MAX_SPEC, ModelPool, sentence_for_visitors
from vitcifar.serving.page import html
from vitcifar.serving.page.gradio_setup import load_gradio
from vitcifar.serving.page.uploads import name_of, read_upload

if TYPE_CHECKING:
    from gradio.data_classes import ImageData

LONGEST_SIDE = 440  # pixels of the drawing, as of the image on the page
COLOUR = (255, 122, 0)  # visible on dark and on light images
STRONGEST = 0.75  # opacity of the colour on the part that matters most
MIN_DROP = 0.1  # of the log-odds: a probability of 50% falls to 47.5%; below, no part matters


def add_why(pool: ModelPool, image: Any, version: Any, status: Any) -> None:
    """The switch, and the drawing of every image while it is on: nothing is computed while it is off."""
    gradio = load_gradio()
    switch = gradio.Checkbox(value=False, label="Show which parts mattered", elem_id="why-switch", container=False)
    drawing = gradio.HTML("", elem_id="why")
    gradio.on(
        [switch.input, image.change, version.input, status.change],
        functools.partial(show_why, pool),
        [switch, image, version],
        drawing,
        trigger_mode="always_last",
        concurrency_limit=1,
        show_progress="hidden",
        api_visibility="private",
    )


def show_why(pool: ModelPool, wanted: bool, upload: "ImageData | None", spec: str) -> Iterator[str]:
    """First what is being done, in a frame of the drawing's size; then the drawing."""
    if wanted and upload is not None:
        yield '<p class="why-wait" role="status">Covering one part after another …</p>'
    yield why(pool, wanted, upload, spec)


def why(pool: ModelPool, wanted: bool, upload: "ImageData | None", spec: str) -> str:
    """The drawing for an upload, or what is wrong; nothing when it is not wanted."""
    if not wanted or upload is None:
        return ""
    try:
        model, name = pool.get((spec or "")[:MAX_SPEC]), name_of(upload)
        pixels = read_isolated(read_upload(upload, name), name)
        return figure(pixels, occlude(model.classifier, pixels))
    except VitCifarError as error:
        return html.error_card(sentence_for_visitors(pool, error, spec))


def draw(pixels: np.ndarray, drop: np.ndarray) -> Image.Image:
    """The image, uint8 (H, W, 3), scaled to `LONGEST_SIDE`, in colour where covering it lowers the log-odds.

    `drop` (G, G) lies over the whole image.
    """
    height, width = pixels.shape[:2]
    scale = LONGEST_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST
    image = Image.fromarray(pixels).resize(size, method)
    strength = np.clip(drop, 0, None) / max(float(drop.max()), MIN_DROP)
    mask = Image.fromarray((255 * STRONGEST * strength).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    image.paste(COLOUR, (0, 0, *size), mask)
    return image


def caption(found: Occlusion) -> str:
    """What the drawing says and does not."""
    before, after = html.percent(found.probability), html.percent(float(found.covered.flat[found.drop.argmax()]))
    if found.drop.max() < MIN_DROP:
        return f"Covering any one part changes “{found.label}” ({before}) little: it rests on no single part."
    return (
        f"Covering the most orange part changes “{found.label}” from {before} to {after}. This says which parts the "
        "prediction rests on, not whether they are a good reason."
    )


def figure(pixels: np.ndarray, found: Occlusion) -> str:
    buffer = io.BytesIO()
    draw(pixels, found.drop).save(buffer, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    alt = "The image, in orange on the parts that the prediction rests on"
    return (
        f'<figure class="why" role="status"><img src="{source}" alt="{alt}">'
        f"<figcaption>{escape(caption(found))}</figcaption></figure>"
    )
