"""The page: a picture in; probabilities, timing and the version that answered out; and its one endpoint for programs.

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

from vitcifar.errors import PictureError, VitCifarError
from vitcifar.inference.session import Answer
from vitcifar.serving import look
from vitcifar.serving.opened import Opened
from vitcifar.serving.sent import decode_base64
from vitcifar.serving.shelf import Shelf

SWEEP_SECONDS, KEPT_SECONDS = 300, 3300  # uploaded pictures are gone from the disk within the hour
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
        raise gradio.Error(
            "Send the picture itself, not its address: this page fetches nothing.", print_exception=False
        )

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
    """A picture as a browser or a client sent it: a file in our folder, or a data: URL."""

    content: Path | bytes
    name: str


def receive(payload: Any) -> Sent | str | None:
    """What Gradio's picture component got, not yet decoded: the limits of `read_picture` come first.

    A sentence when it cannot even be received.
    """
    if payload is None:
        return None
    name = payload.orig_name or "The picture"
    if payload.url and payload.url.startswith("data:"):
        try:
            return Sent(decode_base64(payload.url, name), name)
        except PictureError as error:
            return str(error)
    return Sent(Path(payload.path), name) if payload.path else None


def respond(shelf: Shelf, sent: Sent | str | None, choice: str) -> tuple[Answer | None, Opened]:
    """The answer of the chosen version, none without a picture. Raises VitCifarError with one sentence."""
    if isinstance(sent, str):
        raise PictureError(sent)
    opened = shelf.get(choice or "")
    return (opened.classifier.answer(sent.content, sent.name) if sent else None), opened


def card(shelf: Shelf, sent: Sent | str | None, choice: str) -> str:
    """The card that answers a picture, for the page."""
    try:
        answer, opened = respond(shelf, sent, choice)
    except VitCifarError as error:
        return look.failure(str(error))
    return look.answer(answer, opened, shelf.state) if answer else look.waiting(opened, shelf.state)


def answer_client(shelf: Shelf, image: Sent | str | None, version: str) -> dict[str, Any]:
    """The answer to a picture, for programs. Raises gradio.Error with one sentence."""
    try:
        answer, opened = respond(shelf, image, version)
        if answer is None:
            raise PictureError("There is no picture in the request.")
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


def choices(shelf: Shelf) -> list[tuple[str, str]]:
    """The version list: what is followed first, then every version, the newest first."""
    state = shelf.state
    listed = []
    for version in state.versions:
        aliases = f" · {', '.join(version.aliases)}" if version.aliases else ""
        listed.append((f"version {version.number}{aliases}", str(version.number)))
    if shelf.spec in [value for _, value in listed]:
        return listed
    return [(f"{shelf.spec} (now version {state.current.version})", shelf.spec), *listed]


def example_files(opened: Opened) -> list[Path]:
    """The example pictures that the release carries, if any, copied to where Gradio may show them from."""
    files = sorted(opened.release.path("examples").glob("*.png"))[:MAX_EXAMPLES]
    folder = private_folder() / "examples" / opened.release.release_id
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(file, folder / file.name)) for file in files]


def build(shelf: Shelf, poll_seconds: float) -> Any:
    """Everything on the page, and what happens when."""
    gradio = load_gradio()
    opened = shelf.state.current
    title = f"{opened.model_name}: {len(opened.release.class_names)} classes"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS)) as blocks:
        with gradio.Row(elem_id="top"):
            gradio.HTML(look.heading(opened.model_name, opened.release.class_names), elem_id="head", scale=3)
            choice = gradio.Dropdown(
                choices(shelf), value=shelf.spec, label="Version", elem_id="choice", filterable=False
            )
        now = gradio.HTML(look.status(shelf.state, 0), elem_id="now")
        with gradio.Row():
            with gradio.Column(min_width=320):
                picture = gradio.Image(
                    label="Picture",
                    show_label=False,
                    alt_text="The picture that was sent",
                    placeholder="# Drop a picture here\nor click to choose one",
                    sources=["upload", "clipboard", "webcam"],
                    height=392,
                    elem_id="picture",
                    buttons=[],
                    webcam_options=gradio.WebcamOptions(mirror=False),
                )
            with gradio.Column(min_width=320):
                shown = gradio.HTML(look.waiting(opened, shelf.state), elem_id="answer")
        show_examples(gradio, [str(file) for file in example_files(opened)], picture)
        gradio.HTML(look.FOOT, elem_id="foot")
        # Gradio would decode the picture itself, without our limits, and hold the choice against the list of its start.
        setattr(picture, "preprocess", receive)  # noqa: B010
        setattr(choice, "preprocess", str)  # noqa: B010
        answer_people(gradio, shelf, picture, choice, shown, now, poll_seconds)
        answer_programs(gradio, shelf, picture)
    return blocks


def show_examples(gradio: Any, files: list[str], picture: Any) -> None:
    """A strip of example pictures; a click takes one as if it had been uploaded."""
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
        lambda index: files[index], examples, picture, show_progress="hidden", queue=False, api_visibility="private"
    )


def answer_people(
    gradio: Any, shelf: Shelf, picture: Any, choice: Any, shown: Any, now: Any, poll_seconds: float
) -> None:
    """A new picture, another choice or a version that moved: answer again. Look for news every few seconds."""
    seen = gradio.State(0)

    def look_again(seen: int, choice: str) -> tuple[Any, ...]:
        state = shelf.state
        if seen == state.serial:
            return gradio.skip(), gradio.skip(), gradio.skip()
        return state.serial, status(choice, seen), gradio.Dropdown(choices(shelf), value=choice)

    def status(choice: str, seen: int) -> str:
        try:
            chosen = shelf.get(choice)
        except VitCifarError:  # the card says why
            chosen = None
        return look.status(shelf.state, seen, chosen)

    choice.input(status, [choice, seen], now, queue=False, show_progress="hidden", api_visibility="private")

    gradio.on(
        [picture.change, choice.input, now.change],
        functools.partial(card, shelf),
        [picture, choice],
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


def answer_programs(gradio: Any, shelf: Shelf, picture: Any) -> None:
    """The endpoint `/predict`: a picture and, when not the one that is followed, a version."""
    asked = gradio.Textbox(value=shelf.spec, label="version", visible=False)
    as_json = gradio.JSON(visible=False, label="answer")
    gradio.on(
        [],
        functools.partial(answer_client, shelf),
        [picture, asked],
        as_json,
        api_name="predict",
        api_description="Answer one picture: label, probabilities, the version that answered, timing in milliseconds.",
    )
