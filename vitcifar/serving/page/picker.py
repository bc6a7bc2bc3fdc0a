"""The component that takes an image: a file, a drop, the clipboard, an example or a live camera (picker.js)."""

import base64
import dataclasses
import functools
import io
import json
import threading
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vitcifar.data.image import MAX_BYTES
from vitcifar.errors import ImageError, VitCifarError
from vitcifar.inference.machine import available_cores
from vitcifar.serving.decoder import read_isolated
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page.gradio_setup import load_gradio, private_folder
from vitcifar.serving.page.uploads import read_upload

if TYPE_CHECKING:
    import gradio
    from gradio.data_classes import ImageData

SCRIPT = Path(__file__).with_name("picker.js")
MAX_EXAMPLES = 12
THUMBNAIL, PREVIEW = 96, 1024  # pixels of the longer side
PREVIEW_SECONDS = 2  # that a preview waits for others: it holds one of the few threads that answer
# A photo is reduced to this, or to so many times the network's input: probabilities differ by at most 0.016 then, and
# by 0.03 at 512 pixels (vit_tiny of the digits, 12 photos of 5.8 megapixels, Chromium 156, Pillow 12.3).
MIN_SIDE, SIDE_FACTOR = 1024, 4
BUSY_MS = 100  # before a camera tries again
LIVE_SIDE = 320  # of a frame of the camera, at least
KEEP_BYTES = 512 * 1024  # a smaller file is sent as it is
CHOOSE = (
    '<button type="button" class="choose big"><svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 16V5m0 0L7.5 '
    '9.5M12 5l4.5 4.5M5 15v3.5h14V15"/></svg><b>Choose an image</b>'
    "<span>or drop it here, or paste it<i> (Ctrl+V)</i></span></button>"
)
TOOLS = "".join(
    f'<button type="button" class="{name}"{attributes}>{text}</button>'
    for name, text, attributes in (
        ("choose", "Choose", ""),
        ("paste", "Paste", ""),
        ("camera", "Camera", ""),
        ("remove", "Remove", ' aria-label="Remove Image" hidden'),
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """An example image in the release: its file, and its true class if its name says it."""

    file: Path
    class_name: str


def build_picker(pool: ModelPool, live_card: Callable[[str, str], str], max_bytes: int) -> "gradio.HTML":
    """The component; its value reaches Python as ImageData or None. `live_card(data URL, spec)` answers the camera."""
    model = pool.state.current
    examples = find_examples(model)
    at_once = threading.BoundedSemaphore(max(2, available_cores()))

    def preview(sent: Any) -> dict[str, str]:
        """What the server decodes of an upload, as a PNG: no browser shows a TIFF, and each animates a GIF."""
        pixels = None
        try:
            upload = as_upload(sent)
            if upload and at_once.acquire(timeout=PREVIEW_SECONDS):
                try:
                    pixels = read_isolated(read_upload(upload, "image"), "image")
                finally:
                    at_once.release()
        except (VitCifarError, ValueError):  # the card says what is wrong
            pass
        return {"image": "" if pixels is None else thumbnail(pixels, PREVIEW)}

    def example(index: Any) -> dict[str, str]:
        known = isinstance(index, int) and index in range(len(examples))
        return {"path": str(examples[index].file) if known else ""}

    def thumbnails(_: Any) -> list[str]:
        """The example images, when the page is open: Gradio would keep a copy of the component for every session."""
        return [example_image(one) for one in examples]

    def live(sent: Any) -> dict[str, Any]:
        """The card of a frame, an empty one of no frame, or how many milliseconds to wait for others."""
        match sent:
            case {"image": str(image), "version": str(version)} if at_once.acquire(blocking=False):
                try:
                    return {"card": live_card(image, version)}
                finally:
                    at_once.release()
        return {"wait": BUSY_MS}

    picker: gradio.HTML = load_gradio().HTML(
        None,
        html_template=template(examples, model, max_bytes),
        js_on_load=SCRIPT.read_text(encoding="utf-8"),
        apply_default_css=False,
        server_functions=[preview, example, thumbnails, live],
        elem_id="image",
    )
    setattr(picker, "preprocess", as_upload)  # noqa: B010
    return picker


def template(examples: list[Example], model: LoadedModel, max_bytes: int) -> str:
    """The HTML of the component, which picker.js works with; it sends at most `max_bytes`."""
    side = max(MIN_SIDE, SIDE_FACTOR * model.manifest.image_size)
    limits = {
        "maxBytes": MAX_BYTES,
        "sendBytes": max_bytes,
        "keepBytes": KEEP_BYTES,
        "side": side,
        "liveSide": max(LIVE_SIDE, model.manifest.image_size),
    }
    shown = "".join(
        f'<li><button type="button" class="example" data-index="{index}" data-name="{text(example.file.name)}">'
        f'<img alt=""><span>{text(example.class_name or f"example {index + 1}")}</span>'
        "</button></li>"
        for index, example in enumerate(examples)
    )
    strip = f'<p class="strip-label">Examples, with their true class</p><ul class="examples">{shown}</ul>'
    return (
        f'<div class="stage" data-state="empty">{CHOOSE}<img class="shown" alt="The image that is classified">'
        f'<video muted playsinline aria-label="The camera"></video><span class="rate"></span></div>'
        f'<div class="tools">{TOOLS}</div>'
        f'<p class="picker-note note problem" role="alert" hidden></p>{strip if examples else ""}'
        '<p class="spoken" role="status" aria-live="polite"></p>'
        '<input type="file" accept="image/*" tabindex="-1" aria-label="Image file" hidden>'
        f'<span class="limits" hidden>{escape(json.dumps(limits), quote=False)}</span>'
    )


def text(value: str) -> str:
    """Text of a Gradio template: escaped for HTML, for Handlebars and for JavaScript's template strings."""
    return "".join(f"&#{ord(c)};" if c in "`$\\{}" else c for c in escape(value))


def as_upload(value: Any) -> "ImageData | None":
    """What a client sent as the component's value, as Gradio's own image component has it. Raises ValueError."""
    load_gradio()
    from gradio.data_classes import ImageData

    if not isinstance(value, dict):
        return None
    return ImageData(path=value.get("path"), url=value.get("url"), orig_name=value.get("orig_name"))


def find_examples(model: LoadedModel) -> list[Example]:
    """The example images in the release, copied to our folder; a file is named by the index of its class."""
    files = sorted(model.manifest.path("examples").glob("*.png"))[:MAX_EXAMPLES]
    folder = private_folder() / "examples" / model.manifest.release_id
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for file in files:
        copy = folder / file.name
        copy.write_bytes(file.read_bytes())
        known = file.stem.isdecimal() and int(file.stem) < len(model.class_names)
        found.append(Example(file=copy, class_name=model.class_names[int(file.stem)] if known else ""))
    return found


@functools.lru_cache(maxsize=64)
def example_image(example: Example) -> str:
    """A small data: URL of an example; empty if it cannot be decoded."""
    try:
        return thumbnail(read_isolated(example.file), THUMBNAIL)
    except ImageError:
        return ""


def thumbnail(image: Any, side: int) -> str:
    """Pixels uint8 (H, W, 3) as the data: URL of a PNG with at most `side` pixels on the longer side."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((side, side))
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
