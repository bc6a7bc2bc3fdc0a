"""The page: an image in; probabilities, timing and the version that answered out; and its one endpoint for programs.

Gradio is imported when the page is built, with its telemetry off; nothing the page does leaves this machine.
"""

import atexit
import dataclasses
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vitcifar.errors import ImageError, VitCifarError
from vitcifar.inference.session import Prediction
from vitcifar.serving import html
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.rest import decode_base64

SWEEP_SECONDS, KEPT_SECONDS = 300, 3300  # uploaded images are gone from the disk within the hour
MAX_EXAMPLES = 12


@functools.cache
def private_folder() -> Path:
    """A folder of this process for what is uploaded and shown; it goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="vitcifar-page-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def load_gradio() -> Any:
    """Gradio, imported with everything off that would talk to other machines."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(private_folder() / "uploads")
    import gradio
    from gradio import processing_utils

    async def refuse(*args: Any, **kwargs: Any) -> str:
        raise gradio.Error("Send the image itself, not its address: this page fetches nothing.", print_exception=False)

    # A request may name a web address in place of an uploaded file; Gradio would fetch it.
    processing_utils.async_ssrf_protected_download = refuse
    return gradio


def theme() -> Any:
    gradio = load_gradio()
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    return gradio.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=mono, text_size="md", radius_size="md"
    ).set(
        body_background_fill="#f6f8fb", body_background_fill_dark="#0d1422", block_label_background_fill="transparent"
    )


@dataclasses.dataclass(frozen=True)
class Sent:
    """An image as a browser or a client sent it: a file in our folder, or a data: URL."""

    content: Path | bytes
    name: str


def receive(payload: Any) -> Sent | str | None:
    """What Gradio's image component got, not yet decoded: the limits of `read_image` come first.

    A sentence when it cannot even be received.
    """
    if payload is None:
        return None
    name = payload.orig_name or "The image"
    if payload.url and payload.url.startswith("data:"):
        try:
            return Sent(decode_base64(payload.url, name), name)
        except ImageError as error:
            return str(error)
    return Sent(Path(payload.path), name) if payload.path else None


def respond(pool: ModelPool, sent: Sent | str | None, choice: str) -> tuple[Prediction | None, LoadedModel]:
    """The answer of the chosen version, none without an image. Raises VitCifarError with one sentence."""
    if isinstance(sent, str):
        raise ImageError(sent)
    opened = pool.get(choice or "")
    return (opened.classifier.predict(sent.content, sent.name) if sent else None), opened


def card(pool: ModelPool, sent: Sent | str | None, choice: str) -> str:
    """The card that answers an image, for the page."""
    try:
        answer, opened = respond(pool, sent, choice)
    except VitCifarError as error:
        return html.failure(str(error))
    return html.prediction(answer, opened, pool.state) if answer else html.waiting(opened, pool.state)


def answer_client(pool: ModelPool, image: Sent | str | None, version: str) -> dict[str, Any]:
    """The answer to an image, for programs. Raises gradio.Error with one sentence."""
    try:
        answer, opened = respond(pool, image, version)
        if answer is None:
            raise ImageError("There is no image in the request.")
    except VitCifarError as error:
        raise load_gradio().Error(str(error), print_exception=False) from error
    return {
        "label": answer.label,
        "probabilities": answer.probabilities,
        "model": opened.model_name,
        "version": opened.version,
        "release_id": answer.release_id,
        "timing": dataclasses.asdict(answer.timing),
    }


def choices(pool: ModelPool) -> list[tuple[str, str]]:
    """The version list: what is followed first, then every version, the newest first."""
    state = pool.state
    listed = []
    for version in state.versions:
        aliases = f" · {', '.join(version.aliases)}" if version.aliases else ""
        listed.append((f"version {version.number}{aliases}", str(version.number)))
    if pool.spec in [value for _, value in listed]:
        return listed
    return [(f"{pool.spec} (now version {state.current.version})", pool.spec), *listed]


def example_files(opened: LoadedModel) -> list[Path]:
    """The example images that the release carries, if any, copied to where Gradio may show them from."""
    files = sorted(opened.release.path("examples").glob("*.png"))[:MAX_EXAMPLES]
    folder = private_folder() / "examples" / opened.release.release_id
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(file, folder / file.name)) for file in files]


def build(pool: ModelPool, poll_seconds: float) -> Any:
    """Everything on the page, and what happens when."""
    gradio = load_gradio()
    opened = pool.state.current
    title = f"{opened.model_name}: {len(opened.release.class_names)} classes"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS)) as blocks:
        with gradio.Row(elem_id="top"):
            gradio.HTML(html.heading(opened.model_name, opened.release.class_names), elem_id="head", scale=3)
            choice = gradio.Dropdown(
                choices(pool), value=pool.spec, label="Version", elem_id="choice", filterable=False
            )
        now = gradio.HTML(html.status(pool.state, 0), elem_id="now")
        with gradio.Row():
            with gradio.Column(min_width=320):
                image = gradio.Image(
                    label="Image",
                    show_label=False,
                    alt_text="The image that was sent",
                    placeholder="# Drop an image here\nor click to choose one",
                    sources=["upload", "clipboard", "webcam"],
                    height=392,
                    elem_id="image",
                    buttons=[],
                    webcam_options=gradio.WebcamOptions(mirror=False),
                )
            with gradio.Column(min_width=320):
                shown = gradio.HTML(html.waiting(opened, pool.state), elem_id="answer")
        show_examples(gradio, [str(file) for file in example_files(opened)], image)
        gradio.HTML(html.FOOT, elem_id="foot")
        # Gradio would decode the image itself, without our limits, and hold the choice against the list of its start.
        setattr(image, "preprocess", receive)  # noqa: B010
        setattr(choice, "preprocess", str)  # noqa: B010
        answer_people(gradio, pool, image, choice, shown, now, poll_seconds)
        answer_programs(gradio, pool, image)
    return blocks


def show_examples(gradio: Any, files: list[str], image: Any) -> None:
    """A strip of example images; a click takes one as if it had been uploaded."""
    if not files:
        return
    examples = gradio.Dataset(
        components=[gradio.Image(visible=False)],
        samples=[[file] for file in files],
        type="index",
        label="Examples",
        elem_id="examples",
        samples_per_page=MAX_EXAMPLES,
    )
    examples.click(
        lambda index: files[index], examples, image, show_progress="hidden", queue=False, api_visibility="private"
    )


def answer_people(
    gradio: Any, pool: ModelPool, image: Any, choice: Any, shown: Any, now: Any, poll_seconds: float
) -> None:
    """A new image, another choice or a version that moved: answer again. Look for news every few seconds."""
    seen = gradio.State(0)

    def look_again(seen: int, choice: str) -> tuple[Any, ...]:
        state = pool.state
        if seen == state.serial:
            return gradio.skip(), gradio.skip(), gradio.skip()
        return state.serial, status(choice, seen), gradio.Dropdown(choices(pool), value=choice)

    def status(choice: str, seen: int) -> str:
        try:
            chosen = pool.get(choice)
        except VitCifarError:  # the card says why
            chosen = None
        return html.status(pool.state, seen, chosen)

    choice.input(status, [choice, seen], now, queue=False, show_progress="hidden", api_visibility="private")

    gradio.on(
        [image.change, choice.input, now.change],
        functools.partial(card, pool),
        [image, choice],
        shown,
        trigger_mode="always_last",
        api_visibility="private",
    )
    for trigger in (gradio.context.Context.root_block.load, gradio.Timer(poll_seconds).tick):
        trigger(
            look_again,
            [seen, choice],
            [seen, now, choice],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )


def answer_programs(gradio: Any, pool: ModelPool, image: Any) -> None:
    """The endpoint `/predict`: an image and, when not the one that is followed, a version."""
    asked = gradio.Textbox(value=pool.spec, label="version", visible=False)
    as_json = gradio.JSON(visible=False, label="answer")
    gradio.on(
        [],
        functools.partial(answer_client, pool),
        [image, asked],
        as_json,
        api_name="predict",
        api_description="Answer one image: label, probabilities, the version that answered, timing in milliseconds.",
    )
