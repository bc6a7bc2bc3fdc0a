"""The tab Classify: an image in; probabilities, timing and the version out. Also the endpoint `/predict`."""

import functools
import itertools
from typing import TYPE_CHECKING, Any

from vitcifar.errors import ImageError, VitCifarError
from vitcifar.serving.feedback import FeedbackStore
from vitcifar.serving.model_pool import ModelPool, sentence_for_visitors
from vitcifar.serving.page import html
from vitcifar.serving.page.feedback import add_feedback
from vitcifar.serving.page.gradio_setup import load_gradio
from vitcifar.serving.page.picker import build_picker
from vitcifar.serving.page.recent import RecentTimes
from vitcifar.serving.page.uploads import predict_upload
from vitcifar.serving.page.why import add_why

if TYPE_CHECKING:
    import gradio
    from gradio.data_classes import ImageData

NUMBERS = itertools.count(1)  # of errors


def build_classify(
    pool: ModelPool,
    version: "gradio.HTML",
    status: "gradio.HTML",
    store: FeedbackStore | None = None,
    *,
    max_bytes: int,
) -> None:
    """The tab, which classifies again after a new image, another selection or a move of the alias."""
    gradio = load_gradio()
    times = RecentTimes()
    with gradio.Row(elem_id="classify"):
        with gradio.Column(min_width=320):
            image = build_picker(pool, functools.partial(live_card, pool, times), max_bytes)
        with gradio.Column(min_width=320):
            card = gradio.HTML(html.empty_card(pool.state.current, pool.state), elem_id="card")
            if store:
                add_feedback(pool, store, image, version, status)
            add_why(pool, image, version, status)
    gradio.on(
        [image.change, version.input, status.change],
        functools.partial(upload_card, pool, times=times),
        [image, version],
        card,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    )
    add_endpoint(pool)


def add_endpoint(pool: ModelPool) -> None:
    """`/predict` of Gradio's own API. Programs do better with REST."""
    gradio = load_gradio()
    image = gradio.Image(visible=False, label="image")
    # Gradio would decode the image without our limits.
    setattr(image, "preprocess", lambda upload: upload)  # noqa: B010
    gradio.on(
        [],
        functools.partial(predict_api, pool),
        [image, gradio.Textbox(value=pool.spec, label="version", visible=False)],
        gradio.JSON(visible=False, label="prediction"),
        api_name="predict",
        api_description="Classify one image: label, probabilities, model, version, release_id, timing in milliseconds.",
    )


def upload_card(pool: ModelPool, upload: "ImageData | None", spec: str, times: RecentTimes | None = None) -> str:
    """The card for an upload."""
    try:
        prediction, model = predict_upload(pool, upload, spec)
    except VitCifarError as error:
        return html.error_card(sentence_for_visitors(pool, error, spec), next(NUMBERS))
    if prediction is None:
        return html.empty_card(model, pool.state)
    return html.prediction_card(prediction, model, pool.state, times.add(model, prediction) if times else ())


def live_card(pool: ModelPool, times: RecentTimes, image: str, spec: str) -> str:
    """The card for a frame of a camera, a data: URL; the card of no image for an empty one."""
    from gradio.data_classes import ImageData

    return upload_card(pool, ImageData(url=image, orig_name="The frame") if image else None, spec, times)


def predict_api(pool: ModelPool, image: "ImageData | None", version: str) -> dict[str, Any]:
    """The response of `/predict`. Raises gradio.Error with one sentence."""
    try:
        prediction, model = predict_upload(pool, image, version)
        if prediction is None:
            raise ImageError("There is no image in the request.")
    except VitCifarError as error:
        raise load_gradio().Error(sentence_for_visitors(pool, error, version), print_exception=False) from error
    return prediction.to_dict(model.model_name, model.version)
