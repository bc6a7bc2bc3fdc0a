"""The tab Label: suggested images, one after another, with their prediction; what people answer is stored as feedback.

A browser names an image by its number in the table that the server was started with, never by a path.
"""

import os
import threading
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vitcifar.data.dataset import pixel_hash
from vitcifar.data.image import readable_name
from vitcifar.errors import ImageError, VitCifarError
from vitcifar.inference.machine import available_cores
from vitcifar.serving.decoder import read_isolated
from vitcifar.serving.feedback import SUGGESTED, FeedbackStore, record
from vitcifar.serving.feedback_route import refusal
from vitcifar.serving.model_pool import ModelPool, sentence_for_visitors
from vitcifar.serving.page.feedback import NONE_OF_THESE
from vitcifar.serving.page.gradio_setup import load_gradio
from vitcifar.serving.page.html import percent
from vitcifar.serving.page.picker import PREVIEW, thumbnail
from vitcifar.serving.suggest import Suggestion

WAIT_SECONDS = 5  # for others who are answered
SCRIPT = Path(__file__).with_name("label.js")
STORED = (
    "Stored for those who run this page: your answer, the prediction, the version, and the image, so that the next "
    "version can learn from it."
)
TEMPLATE = f"""
<div class="labelling">
  <p class="progress" role="status" aria-live="polite"></p>
  <figure><img alt="The image to label" hidden><p class="problem" role="alert"></p></figure>
  <div class="ask"><h2>What is it?</h2><p class="predicted"></p>
    <div class="classes" role="group" aria-label="What is it?"></div>
    <button type="button" class="skip" hidden>Skip</button>
    <p class="said" role="status" aria-live="polite"></p><p class="small">{escape(STORED)}</p></div>
</div>"""


class Labelling:
    """The suggested images of a server and which of them are labelled. Thread-safe."""

    def __init__(self, pool: ModelPool, store: FeedbackStore, suggestions: Sequence[Suggestion]) -> None:
        self.pool, self.store, self.suggestions = pool, store, suggestions
        known = store.hashes(pool.state.current.model_name)
        self._done = {index for index, one in enumerate(suggestions) if one.image_hash in known}
        self._at_once = threading.BoundedSemaphore(max(2, available_cores()))

    def label(self, sent: Any) -> dict[str, Any]:
        """Store what a browser says of an image, if it says anything, and show the next; or `problem`, a sentence."""
        if not self._at_once.acquire(timeout=WAIT_SECONDS):
            return {"problem": "Others are labelling: try again in a moment."}
        try:
            match sent:
                case {"index": int(index), "hash": str(seen), "truth": str(truth)} if index in range(
                    len(self.suggestions)
                ):
                    said = self._store(index, seen, truth)
                    return {**self._show(self._next(index)), "said": said}
                case {"index": int(index), "truth": None}:
                    return {**self._show(self._next(index)), "said": ""}
            return {"problem": "The request is not one of this page: reload the page and try again."}
        except VitCifarError as error:
            refused = refusal(error)
            return {"problem": refused.detail if refused else sentence_for_visitors(self.pool, error, "")}
        finally:
            self._at_once.release()

    def _next(self, index: int) -> int | None:
        """The image after one that is not labelled yet, from the first one on after the last; None without any."""
        total = len(self.suggestions)
        first = min(max(index, -1), total - 1) + 1
        return next((one % total for one in range(first, first + total) if one % total not in self._done), None)

    def _read(self, index: int) -> tuple[str, np.ndarray]:
        path = Path(self.suggestions[index].path)
        name = readable_name(b"", os.path.basename(path))
        return name, read_isolated(path, name)

    def _store(self, index: int, seen: str, truth: str) -> str:
        """Store an answer; the line of thanks. Raises VitCifarError."""
        name, pixels = self._read(index)
        if pixel_hash(pixels) != seen:
            raise ImageError(f"{name} has changed: reload the page and look again.")
        entry, _ = record(
            self.store,
            self.pool.state.current,
            pixels,
            right=None,
            truth="" if truth == NONE_OF_THESE else truth,
            keep_image=True,
            source=SUGGESTED,
        )
        self._done.add(index)
        return f"{name}: {entry.truth or 'none of these classes'}. Thank you."

    def _show(self, index: int | None) -> dict[str, Any]:
        """What the browser shows of an image: its pixels, prediction and classes, or why it cannot be read."""
        total, num_done = len(self.suggestions), len(self._done)
        if index is None:
            return {"index": None, "progress": f"All {total:,} images are labelled."}
        shown: dict[str, Any] = {
            "index": index,
            "progress": f"Image {index + 1:,} of {total:,}, {num_done:,} labelled",
        }
        model = self.pool.state.current
        try:
            _, pixels = self._read(index)
            prediction = model.classifier.predict_images([pixels], observed=False)[0]
        except ImageError as error:
            return {**shown, "unreadable": str(error)}
        return {
            **shown,
            "hash": pixel_hash(pixels),
            "image": thumbnail(pixels, PREVIEW),
            "label": prediction.label,
            "predicted": f"Version {model.version} predicts {prediction.label}, {percent(prediction.probability)}.",
            "classes": [*([name, name] for name in model.class_names), ["none of these classes", NONE_OF_THESE]],
        }


def build_label(pool: ModelPool, store: FeedbackStore, suggestions: Sequence[Suggestion]) -> None:
    """The tab; label.js asks for the first image when it is seen."""
    labelling = Labelling(pool, store, suggestions)

    def label(sent: Any) -> dict[str, Any]:  # Gradio takes no method
        return labelling.label(sent)

    load_gradio().HTML(
        html_template=TEMPLATE,
        js_on_load=SCRIPT.read_text(encoding="utf-8"),
        apply_default_css=False,
        server_functions=[label],
        elem_id="label",
    )
