"""The tab Classify: an image in; probabilities, timing and the version out. Also the endpoint `/predict`."""

import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcifar.errors import ImageError, VitCifarError
from vitcifar.serving.feedback import FeedbackStore
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.model_pool import ModelPool, sentence_for_visitors
from vitcifar.serving.page import html
from vitcifar.serving.page.feedback import add_feedback
from vitcifar.serving.page.gradio_setup import load_gradio, private_folder
from vitcifar.serving.page.uploads import predict_upload
from vitcifar.serving.page.why import add_why

if TYPE_CHECKING:
    import gradio
    from gradio.data_classes import ImageData

MAX_EXAMPLES = 12


def build_classify(
    pool: ModelPool, version: "gradio.Dropdown", status: "gradio.HTML", store: FeedbackStore | None = None
) -> None:
    """The tab, which classifies again after a new image, another selection or a move of the alias."""
    gradio = load_gradio()
    model = pool.state.current
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
            if store:
                add_feedback(pool, store, image, version, status)
            add_why(pool, image, version, status)
    add_examples([str(file) for file in example_files(model)], image)
    # Gradio would decode the image without our limits.
    setattr(image, "preprocess", lambda upload: upload)  # noqa: B010
    gradio.on(
        [image.change, version.input, status.change],
        functools.partial(upload_card, pool),
        [image, version],
        card,
        trigger_mode="always_last",
        api_visibility="private",
    )
    gradio.on(
        [],
        functools.partial(predict_api, pool),
        [image, gradio.Textbox(value=pool.spec, label="version", visible=False)],
        gradio.JSON(visible=False, label="prediction"),
        api_name="predict",
        api_description="Classify one image: label, probabilities, model, version, release_id, timing in milliseconds.",
    )


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


def example_files(model: LoadedModel) -> list[Path]:
    """The example images in the release, copied to our folder, from which Gradio may serve them."""
    files = sorted(model.manifest.path("examples").glob("*.png"))[:MAX_EXAMPLES]
    folder = private_folder() / "examples" / model.manifest.release_id
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(file, folder / file.name)) for file in files]


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
