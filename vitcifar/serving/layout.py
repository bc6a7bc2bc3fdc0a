"""The page: an image in; probabilities, timing and the version out. Also its one API endpoint, `/predict`.

Gradio is imported when the page is built, with its telemetry off; nothing on the page connects to another machine.
"""

import atexit
import functools
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcifar.data.image import readable_name
from vitcifar.errors import ImageError, VitCifarError
from vitcifar.inference.session import Prediction
from vitcifar.registry.registry import select
from vitcifar.serving import html
from vitcifar.serving.decoder import read_isolated
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.rest import decode_base64

if TYPE_CHECKING:
    import gradio
    from gradio.data_classes import ImageData

LOG = logging.getLogger(__name__)
CLEANUP_SECONDS, MAX_FILE_AGE_SECONDS = 300, 3300  # together less than the hour that the page promises
MAX_EXAMPLES = 12
MAX_PATH = 4096  # characters
MAX_SESSION_NAME = 64  # characters; Gradio's own have 11
MAX_SPEC = 100  # characters of what names a version


@functools.cache
def private_folder() -> Path:
    """A folder of this process for uploads and examples, deleted when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="vitcifar-page-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def load_gradio() -> Any:
    """Gradio, imported without anything that connects to other machines."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(private_folder() / "uploads")
    import annotated_types
    import gradio
    from gradio import data_classes, processing_utils, state_holder

    async def reject_download(*args: Any, **kwargs: Any) -> str:
        raise gradio.Error(
            "Send the image itself, not its address: this page downloads nothing.", print_exception=False
        )

    # A request may name a web address instead of an uploaded file, and Gradio would download it.
    processing_utils.async_ssrf_protected_download = reject_download
    # Gradio would keep the last inputs of every session, images of 30 MB among them, for its "deep links".
    setattr(state_holder.SessionState, "_update_value_in_config", lambda *args: None)  # noqa: B010
    # The name that a client gives its session is kept for as long as the session.
    for body in (data_classes.PredictBody, data_classes.PredictBodyInternal, data_classes.SimplePredictBody):
        body.model_fields["session_hash"].metadata.append(annotated_types.MaxLen(MAX_SESSION_NAME))
        body.model_rebuild(force=True)
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


def predict_upload(pool: ModelPool, upload: "ImageData | None", spec: str) -> tuple[Prediction | None, LoadedModel]:
    """Classify an upload (a file or a base64 data: URL) with a version; no upload gives no prediction.

    Raises VitCifarError with one sentence.
    """
    model = pool.get(spec[:MAX_SPEC] if spec else "")
    if upload is None:
        return None, model
    name = readable_name(b"", upload.orig_name or "")
    return model.classifier.predict(read_upload(upload, name), name, read=read_isolated), model


def read_upload(upload: "ImageData", name: str) -> bytes | Path:
    """The bytes of an upload, or its file, which must lie in our folder: a forged request may name any other.

    Raises ImageError.
    """
    if upload.url and upload.url.startswith("data:"):
        return decode_base64(upload.url, name)
    path = os.path.normpath((upload.path or "")[:MAX_PATH])  # before `resolve`, which reads the folders of a path
    if Path(path).is_relative_to(private_folder()) and Path(path).resolve().is_relative_to(private_folder()):
        return Path(path)
    raise ImageError(f"{name} was not uploaded: send the image itself.")


def sentence_for_visitors(pool: ModelPool, error: VitCifarError, spec: str) -> str:
    """What the page says of an error. What names files and addresses of the server goes to its log instead."""
    if isinstance(error, ImageError):
        return str(error)
    LOG.warning("%s", error)
    spec = (spec or "")[:MAX_SPEC] or pool.spec
    if select(pool.state.versions, spec):
        return f"Version {spec} cannot be loaded: choose another."
    known = ", ".join(str(version.number) for version in pool.state.versions[:20])
    return f"There is no version {spec!r}: choose one of {known}."


def upload_card(pool: ModelPool, upload: "ImageData | None", spec: str) -> str:
    """The card for an upload."""
    try:
        prediction, model = predict_upload(pool, upload, spec)
    except VitCifarError as error:
        return html.error_card(sentence_for_visitors(pool, error, spec))
    return html.prediction_card(prediction, model, pool.state) if prediction else html.empty_card(model, pool.state)


def predict_api(pool: ModelPool, image: "ImageData | None", version: str) -> dict[str, Any]:
    """The response of `/predict`. Raises gradio.Error with one sentence."""
    try:
        prediction, model = predict_upload(pool, image, version)
        if prediction is None:
            raise ImageError("There is no image in the request.")
    except VitCifarError as error:
        raise load_gradio().Error(sentence_for_visitors(pool, error, version), print_exception=False) from error
    return prediction.to_dict(model.model_name, model.version)


def version_choices(pool: ModelPool) -> list[tuple[str, str]]:
    """The entries of the version list: the default first, then every version, the newest first."""
    state = pool.state
    choices = [(" · ".join([f"version {v.number}", *v.aliases]), str(v.number)) for v in state.versions]
    if pool.spec in [value for _, value in choices]:
        return choices
    return [(f"{pool.spec} (now version {state.current.version})", pool.spec), *choices]


def example_files(model: LoadedModel) -> list[Path]:
    """The example images in the release, copied to our folder, from which Gradio may serve them."""
    files = sorted(model.manifest.path("examples").glob("*.png"))[:MAX_EXAMPLES]
    folder = private_folder() / "examples" / model.manifest.release_id
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(file, folder / file.name)) for file in files]


def build_page(pool: ModelPool, poll_seconds: float) -> Any:
    """The components of the page, their events, and the endpoint `/predict`, which takes an image and a version."""
    gradio = load_gradio()
    model = pool.state.current
    title = f"{model.model_name}: {len(model.class_names)} classes"
    cleanup = (CLEANUP_SECONDS, MAX_FILE_AGE_SECONDS)
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=cleanup) as blocks:
        with gradio.Row(elem_id="top"):
            gradio.HTML(html.heading(model.model_name, model.class_names), elem_id="head", scale=3)
            version = gradio.Dropdown(
                version_choices(pool), value=pool.spec, label="Version", elem_id="version", filterable=False
            )
        status = gradio.HTML(html.status(pool.state, 0), elem_id="status")
        with gradio.Row():
            with gradio.Column(min_width=320):
                image = gradio.Image(
                    label="Image",
                    show_label=False,
                    alt_text="The uploaded image",
                    placeholder="# Drop an image here\nor click to choose one",
                    sources=["upload", "clipboard", "webcam"],
                    height=440,
                    elem_id="image",
                    buttons=[],
                    webcam_options=gradio.WebcamOptions(mirror=False),
                )
            with gradio.Column(min_width=320):
                card = gradio.HTML(html.empty_card(model, pool.state), elem_id="card")
        add_examples([str(file) for file in example_files(model)], image)
        gradio.HTML(html.FOOTER, elem_id="foot")
        # Gradio would decode the image without our limits, and check the version against the list at its start.
        setattr(image, "preprocess", lambda upload: upload)  # noqa: B010
        setattr(version, "preprocess", str)  # noqa: B010
        # Classify again after a new image, another selection or a move of the alias; poll the pool for changes.
        seen = gradio.State(0)
        at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        version.input(functools.partial(show_status, pool), [version, seen], status, **at_once)
        gradio.on(
            [image.change, version.input, status.change],
            functools.partial(upload_card, pool),
            [image, version],
            card,
            trigger_mode="always_last",
            api_visibility="private",
        )
        for trigger in (blocks.load, gradio.Timer(poll_seconds).tick):
            trigger(functools.partial(poll, pool), [seen, version], [seen, status, version], **at_once)
        gradio.on(
            [],
            functools.partial(predict_api, pool),
            [image, gradio.Textbox(value=pool.spec, label="version", visible=False)],
            gradio.JSON(visible=False, label="prediction"),
            api_name="predict",
            api_description="Classify one image: label, probabilities, model, version, release_id, timing in "
            "milliseconds.",
        )
    return blocks


def add_examples(files: list[str], image: "gradio.Image") -> None:
    """A row of example images; a click selects one as if it had been uploaded."""
    if not files:
        return
    gradio = load_gradio()
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


def show_status(pool: ModelPool, spec: str, seen_serial: int) -> str:
    """The status for a page that has shown the state `seen_serial`."""
    try:
        selected = pool.get(spec[:MAX_SPEC])
    except VitCifarError:  # the card shows the error
        selected = None
    return html.status(pool.state, seen_serial, selected)


def poll(pool: ModelPool, seen_serial: int, spec: str) -> tuple[Any, ...]:
    """The serial, the status and the version list of a page, when the pool has changed since `seen_serial`."""
    gradio, serial = load_gradio(), pool.state.serial
    if seen_serial == serial:
        return gradio.skip(), gradio.skip(), gradio.skip()
    return serial, show_status(pool, spec, seen_serial), gradio.Dropdown(version_choices(pool), value=spec)
