"""Many images on a tab: the browser sends them in parts (images.js), a part is decoded, and a row answers each image.

The server keeps nothing between two parts: the browser holds the files and the rows.
"""

import base64
import dataclasses
import io
import time
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vitcifar.data.image import MAX_BYTES, check_size, readable_name
from vitcifar.errors import ImageError, VitCifarError
from vitcifar.serving.decoder import MAX_SECONDS, read_isolated
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.model_pool import MAX_SPEC, ModelPool, PoolState, sentence_for_visitors
from vitcifar.serving.page.gradio_setup import load_gradio
from vitcifar.serving.page.uploads import read_upload
from vitcifar.serving.rest import MAX_REQUEST_SECONDS

if TYPE_CHECKING:
    import gradio

MAX_FILES = 1000  # on a tab; the browser holds their rows
PART_FILES = 8  # in one request: rows appear while the next ones are classified
PART_BYTES = 4 * 2**20  # of the files of one request, unless it has a single one
THUMBNAIL = 96  # pixels of the longer side
SCRIPT = Path(__file__).with_name("images.js")
Answer = Callable[["Part", Sequence[str]], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Some of the images of a tab. `versions` are those that answered the parts before."""

    serial: str
    start: int  # images before it
    versions: tuple[str, ...]
    files: tuple[dict[str, Any], ...]
    max_bytes: int = MAX_BYTES  # of a file


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """One image: its pixels uint8 (H, W, 3), or the error of a file that cannot be read."""

    name: str
    pixels: np.ndarray | ImageError

    def read(self, *_: Any) -> np.ndarray:
        """The pixels. Raises ImageError."""
        if isinstance(self.pixels, ImageError):
            raise self.pixels
        return self.pixels

    def thumbnail(self) -> str:
        """A small image as HTML; an empty frame for a file that cannot be read."""
        if isinstance(self.pixels, ImageError):
            return '<span class="thumb"></span>'
        image, buffer = Image.fromarray(self.pixels), io.BytesIO()
        image.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=2.0)
        image.save(buffer, "WEBP", quality=85)
        content = base64.b64encode(buffer.getvalue()).decode()
        return f'<img class="thumb" alt="" src="data:image/webp;base64,{content}">'


def read_part(sent: Any, max_bytes: int = MAX_BYTES) -> Part:
    """The request of a browser, of which nothing is taken for granted. Raises ImageError."""
    match sent:
        case {"serial": str(serial), "start": int(start), "versions": list(versions), "files": list(files)}:
            texts = [serial, *versions, *(file.get("name") if isinstance(file, dict) else None for file in files)]
            if len(files) > PART_FILES:
                raise ImageError(f"There are {len(files):,} images in the request, the limit is {PART_FILES}.")
            if len(versions) <= 2 and all(isinstance(text, str) for text in texts) and 0 <= start < MAX_FILES:
                named = tuple(version[:MAX_SPEC] for version in versions)
                return Part(
                    serial=serial[:MAX_SPEC], start=start, versions=named, files=tuple(files), max_bytes=max_bytes
                )
    raise ImageError("The request is not one of this page: reload the page and try again.")


def decode(part: Part) -> Iterator[Decoded]:
    """The images of a part, one after another."""
    deadline = time.monotonic() + MAX_REQUEST_SECONDS
    for file in part.files:
        name = readable_name(b"", file["name"])
        try:
            yield Decoded(name=name, pixels=_decode(file, name, part.max_bytes, deadline - time.monotonic()))
        except ImageError as error:
            yield Decoded(name=name, pixels=error)


def _decode(file: dict[str, Any], name: str, max_bytes: int, seconds: float) -> np.ndarray:
    from gradio.data_classes import ImageData

    if isinstance(num_bytes := file.get("bytes"), int):  # the browser does not send a file that is too large
        check_size(num_bytes, name, max_bytes)
    if not isinstance(url := file.get("url"), str):
        raise ImageError(f"{name} cannot be read by the browser: choose a file, not a folder.")
    if seconds <= 0:
        raise ImageError(f"{name} was not classified, the others took too long: send it again.")
    return read_isolated(read_upload(ImageData(url=url), name), name, min(seconds, MAX_SECONDS))


def row(number: int, image: Decoded, cells: str, *, is_button: bool = False, **keys: str) -> str:
    """A row of the table: number, thumbnail, name and more `cells`; it is sorted by `keys`, which are escaped here.

    With `is_button`, the name shows the details of the row.
    """
    data = "".join(f' data-{key}="{escape(value)}"' for key, value in keys.items())
    name = escape(image.name)
    title = f'<button type="button">{name}</button>' if is_button else name
    return (
        f'<tr data-number="{number}" data-file="{name}"{data}><td class="number">{number}</td>'
        f'<td>{image.thumbnail()}</td><th scope="row">{title}</th>{cells}</tr>'
    )


def error_row(number: int, image: Decoded, num_columns: int) -> str:
    """The row of a file that cannot be read, with its sentence."""
    cells = f'<td class="problem" colspan="{num_columns}">{escape(str(image.pixels))}</td>'
    return row(number, image, cells, error="yes")


def describe(model: LoadedModel, state: PoolState) -> str:
    """The version that answered, with its aliases."""
    aliases = "".join(f' <span class="badge">{escape(alias)}</span>' for alias in state.aliases(model.version))
    return f"<b>{escape(model.name)}</b>{aliases}"


def build_images(
    pool: ModelPool, answer: Answer, versions: Sequence["gradio.HTML"], *, skeleton: str, elem_id: str, max_bytes: int
) -> Any:
    """The part of a tab that takes images and shows a row for each, which `answer` makes with one or two versions."""
    gradio = load_gradio()

    def with_one(version: Any, event: Any = None) -> dict[str, Any]:
        return answer_part(pool, event and event._data, [version], answer, max_bytes)

    def with_two(first: Any, second: Any, event: Any = None) -> dict[str, Any]:
        return answer_part(pool, event and event._data, [first, second], answer, max_bytes)

    handler = with_one if len(versions) == 1 else with_two
    handler.__annotations__["event"] = gradio.EventData  # by which Gradio finds where to pass what the script sends
    images = gradio.HTML(
        html_template=skeleton,
        js_on_load=SCRIPT.read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id=elem_id,
    )
    # "multiple": the next part is sent before Gradio has seen the end of the last one.
    images.upload(
        handler, [*versions], images, trigger_mode="multiple", show_progress="hidden", api_visibility="private"
    )
    return images


def answer_part(
    pool: ModelPool, sent: Any, specs: Sequence[str], answer: Answer, max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """What the browser gets for a part: `rows`, or `problem`, one sentence."""
    serial = ""
    try:
        part = read_part(sent, max_bytes)
        serial, specs = part.serial, part.versions or [spec[:MAX_SPEC] for spec in specs]
        return {"serial": serial, **answer(part, specs)}
    except VitCifarError as error:
        return {"serial": serial, "problem": sentence_for_visitors(pool, error, specs[0])}


def build_skeleton(
    columns: Sequence[tuple[str, str]],
    *,
    action: str,
    name: str,
    above: str = "",
    below: str = "",
    csv: str = "",
    max_bytes: int,
) -> str:
    """The HTML before any image was chosen, which takes as much room as afterwards.

    `columns` are the keys and titles after the first three, `action` what is done with the images, `name` the name of
    the table, `above` the HTML above it, `below` the text of an empty one, `csv` the name of its file, `max_bytes` what
    an image may have.
    """
    limits = f'data-files="{MAX_FILES}" data-bytes="{max_bytes}" data-part-files="{PART_FILES}"'
    download = f'<button type="button" class="csv" data-name="{csv}" disabled>Download CSV</button>' if csv else ""
    heads = f'{head("number", "#")}<th><span class="unseen">Image</span></th>{head("file", "File")}'
    heads += "".join(head(key, title) for key, title in columns)
    return f"""
<div class="many" {limits} data-part-bytes="{min(PART_BYTES, max_bytes)}" data-action="{action}">
  <label class="drop"><input type="file" multiple accept="image/*"><b>Choose images</b>
    <span>or drop them here: up to {MAX_FILES:,}, each of at most {max_bytes / 2**20:g} MiB</span></label>
  <div class="line"><p class="progress" role="status">No images yet.</p>
    <button type="button" class="go" disabled>{action} again</button>{download}
    <button type="button" class="clear" disabled>Clear</button></div>
  <progress max="1" value="0" aria-label="Images done"></progress>
  {above}
  <p class="caption"></p>
  <div class="scroll" role="region" tabindex="0" aria-label="{name}"><table>
    <thead><tr>{heads}</tr></thead>
    <tbody></tbody></table><p class="none">{below}</p></div>
</div>"""


def head(key: str, title: str) -> str:
    """The head of a column; a click sorts by it."""
    return f'<th aria-sort="none"><button type="button" data-key="{key}">{title}</button></th>'
