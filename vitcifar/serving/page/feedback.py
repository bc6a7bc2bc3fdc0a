"""Under the prediction: is it right, or what is it? What people answer is stored, as `POST /v1/feedback` stores it."""

import functools
from html import escape
from typing import TYPE_CHECKING, Any

from vitcifar.errors import VitCifarError
from vitcifar.serving.decoder import read_isolated
from vitcifar.serving.feedback import FeedbackStore, record
from vitcifar.serving.feedback_route import refusal
from vitcifar.serving.model_pool import MAX_SPEC, ModelPool, sentence_for_visitors
from vitcifar.serving.page.dropdown import build_dropdown
from vitcifar.serving.page.gradio_setup import load_gradio
from vitcifar.serving.page.uploads import name_of, read_upload

if TYPE_CHECKING:
    from gradio.data_classes import ImageData

UNKNOWN, NONE_OF_THESE = "", "/"  # values of entries; no class has such a name
CONSENT = "Keep my image with it, so that the next version can learn from it"
STORED = (
    "Stored for those who run this page: your answer, the prediction, the version and a checksum of the image. If you "
    "agree, the image too, at most 1024 pixels a side and without its file's place and time: it is then not deleted."
)


def add_feedback(pool: ModelPool, store: FeedbackStore, image: Any, version: Any, status: Any) -> None:
    """The buttons, the consent and the line of thanks; feedback.css hides them while there is no prediction."""
    gradio = load_gradio()
    with gradio.Column(elem_id="feedback"):
        gradio.HTML("<h2>Is this right?</h2>", apply_default_css=False)
        with gradio.Row(elem_id="feedback-row"):
            right = gradio.Button("Right", elem_id="feedback-right", min_width=60)
            truth = build_dropdown(choices(pool, ""), UNKNOWN, label="It is a …", elem_id="feedback-truth")
            wrong = gradio.Button("Send", elem_id="feedback-wrong", min_width=60)
        keep = gradio.Checkbox(value=True, label=CONSENT, info=STORED, elem_id="feedback-keep", container=False)
        answer = gradio.HTML(line(""), elem_id="feedback-answer")
    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gradio.on(
        [image.change, version.input, status.change],
        functools.partial(offer, pool),
        version,
        [truth, answer],
        queue=False,
        **private,
    )
    send = functools.partial(store_answer, pool, store)
    right.click(functools.partial(send, True), [image, version, keep, truth], answer, **private)
    wrong.click(functools.partial(send, False), [image, version, keep, truth], answer, **private)


def choices(pool: ModelPool, spec: str) -> list[tuple[str, str]]:
    """The classes of a version, and none of them; of the current one when it cannot be loaded."""
    try:
        model = pool.get((spec or "")[:MAX_SPEC])
    except VitCifarError:  # the card shows the error
        model = pool.state.current
    classes = [(name, name) for name in model.class_names]
    return [("Choose a class", UNKNOWN), *classes, ("none of these classes", NONE_OF_THESE)]


def offer(pool: ModelPool, spec: str) -> list[Any]:
    """The list and the line for another image or version."""
    return [load_gradio().HTML(UNKNOWN, choices=choices(pool, spec)), line("")]


def store_answer(
    pool: ModelPool,
    store: FeedbackStore,
    right: bool,
    upload: "ImageData | None",
    spec: str,
    keep_image: bool,
    truth: str,
) -> str:
    """Store what somebody says of the image that is shown; the line of thanks, or what is wrong."""
    if upload is None:
        return line("There is no image yet.")
    if not right and truth == UNKNOWN:
        return line("Choose in the list what it is, then send.")
    try:
        model, name = pool.get((spec or "")[:MAX_SPEC]), name_of(upload)
        pixels = read_isolated(read_upload(upload, name), name)
        said = "" if right or truth == NONE_OF_THESE else str(truth)
        entry, is_new = record(
            store, model, pixels, right=right, truth=said, keep_image=bool(keep_image), source="page"
        )
    except VitCifarError as error:
        refused = refusal(error)
        return line(refused.detail if refused else sentence_for_visitors(pool, error, spec))
    verdict = "right" if entry.is_right else f"wrong: it is {entry.truth or 'none of these classes'}"
    thanks = f"Thank you. “{entry.label}” by version {entry.version} is marked as {verdict}."
    return line(thanks if is_new else f"{thanks} It was already.")


def line(text: str) -> str:
    """The line that screen readers read when it changes; it keeps its height when it is empty."""
    return f'<p class="feedback-line" role="status" aria-live="polite">{escape(text)}&nbsp;</p>'
