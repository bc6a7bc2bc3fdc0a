"""REST through MLflow's own server: `mlflow models serve -m models:/vitcifar@champion --env-manager local`.

MLflow calls `_load_pyfunc` with the folder of the version; the model it returns classifies images sent as base64:
{"inputs": ["iVBORw0…"]} or {"dataframe_records": [{"image": "iVBORw0…"}]}. Pixels in nested lists do as well.
"""

import base64
import binascii
import contextlib
import json
import os
import re
import time
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from vitcifar.data.image import MAX_NAME
from vitcifar.errors import BusyError, ImageError
from vitcifar.serving.decoder import MAX_SECONDS, read_isolated
from vitcifar.serving.loaded_model import LoadedModel, open_folder

COLUMN = "image"
MAX_IMAGES = 100  # in one request
MAX_REQUEST_SECONDS = 30.0  # to decode the images of one request
MAX_REQUEST_PIXELS = 200_000_000  # of all images of one request, which are decoded before the first is classified
URL_SAFE = str.maketrans("-_", "+/")
SERVER = "__pyfunc_model_path__"  # a variable of MLflow's server: its model answers requests, whose size is limited
USAGE = 'send {"inputs": ["…"]} with one base64 image each'


class BadRequest(MlflowException):
    """An error that MLflow's server sends with one sentence, without the request it would echo; status 400 or 503."""

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": self.error_code, "message": str(self)})


class ImageModel:
    """The model that `mlflow.pyfunc.load_model` returns for a release; outside a server tables may have any length.

    `output` is "prediction", or "label" to return the labels alone, as `mlflow.models.evaluate` compares them.
    """

    def __init__(self, model: LoadedModel, *, served: bool = True, output: str = "prediction") -> None:
        self.model = model
        self.served = served
        self.output = output

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[Any]:
        """Classify images; each prediction has label, probabilities (largest first), model, version, release_id, and
        `confident` (at or above the threshold, None without one).

        `model_input` is a DataFrame or dict with the column `image`, or a list, of base64 text (a data: URL too) or
        the bytes of image files, or of pixels (H, W, 3); or an array (N, H, W, 3), or (H, W, 3) for one image, of
        whole numbers from 0 to 255. Raises BadRequest with one sentence.
        """
        if not self.served and hasattr(model_input, "iloc") and len(model_input) > MAX_IMAGES:  # of Spark, or evaluate
            starts = range(0, len(model_input), MAX_IMAGES)
            return [row for start in starts for row in self.predict(model_input.iloc[start : start + MAX_IMAGES])]
        try:
            images = read_images(model_input)
            if self.served:
                check_count(len(images))
            predictions = self.model.classifier.predict_images(images)
        except BusyError as error:
            raise BadRequest(str(error), TEMPORARILY_UNAVAILABLE) from error
        except ImageError as error:
            raise BadRequest.invalid_parameter_value(str(error)) from error
        if self.output == "label":
            return [prediction.label for prediction in predictions]
        return [
            {
                **prediction.to_dict(self.model.model_name, self.model.version),
                "confident": self.model.manifest.is_confident(prediction.probability),
            }
            for prediction in predictions
        ]


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> ImageModel:
    """Verify and open the release in a folder; `model_config` may be {"output": "label"}. Raises ReleaseError.

    Every published version names this function as `loader_module: vitcifar.serving.rest`: it must stay here.
    """
    model = open_folder(Path(path))
    return ImageModel(model, served=SERVER in os.environ, output=(model_config or {}).get("output", "prediction"))


def read_images(model_input: Any) -> list[np.ndarray]:
    """The input of a pyfunc model -> images, each uint8 (H, W, 3). Raises ImageError with one sentence."""
    values = _numbers_from_text(_column(model_input))
    if _is_numbers(values):
        with contextlib.suppress(ValueError):  # images of several sizes are no array
            pixels = read_pixels(np.asarray(values), "The array")
            return list(pixels) if pixels.ndim == 4 else [pixels]
        items = list(values)
    else:
        items = np.asarray(values, dtype=object).ravel().tolist()
    if not items:
        raise ImageError(f"There is no image in the request: {USAGE}.")
    check_count(len(items))
    images, deadline = [], time.monotonic() + MAX_REQUEST_SECONDS
    for number, item in enumerate(items, 1):
        seconds = min(MAX_SECONDS, max(0.0, deadline - time.monotonic()))
        images.append(_read(item, f"Image {number}" if len(items) > 1 else "The image", seconds))
        if sum(image.size for image in images) > 3 * MAX_REQUEST_PIXELS:
            raise ImageError(f"The images have more than {MAX_REQUEST_PIXELS:,} pixels together: send fewer at once.")
    return images


def check_count(num_images: int) -> None:
    """Raise ImageError for more images than one request may have."""
    if num_images > MAX_IMAGES:
        raise ImageError(f"There are {num_images} images in the request, the limit is {MAX_IMAGES}: send fewer.")


def _column(model_input: Any) -> Any:
    """The column of images of a table; an input that is not a table is returned unchanged."""
    columns = list(getattr(model_input, "columns", model_input if isinstance(model_input, dict) else ()))
    if not columns:
        return model_input
    if COLUMN not in columns and len(columns) > 1:
        got = ", ".join(str(column)[:MAX_NAME] for column in columns[:5])
        raise ImageError(f"There is no column {COLUMN!r} among {got}: {USAGE}.")
    values = model_input[COLUMN if COLUMN in columns else columns[0]]
    return values if isinstance(values, str | bytes | np.ndarray) else list(values)


def _is_numbers(values: Any) -> bool:
    """Whether an array, or lists in lists, hold numbers and not images as text or bytes."""
    while isinstance(values, list | tuple) and values:
        values = values[0]
    if isinstance(values, np.ndarray):
        return values.dtype.kind in "biuf" and values.shape != (0,)
    return isinstance(values, int | float)


def _numbers_from_text(values: Any) -> Any:
    """Pixels in nested lists, whose numbers MLflow's server makes text, -> an array; other values unchanged."""
    first, depth = values, 0
    while isinstance(first, list) and first:
        first, depth = first[0], depth + 1
    if isinstance(first, str) and depth > 2:
        with contextlib.suppress(ValueError):  # text that is no number
            return np.asarray(values).astype(float)
    return values


def read_pixels(array: np.ndarray, name: str) -> np.ndarray:
    """Numbers (H, W, 3) or (N, H, W, 3) -> uint8. Raises ImageError with a sentence that starts with `name`."""
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape[-3:]:
        expected = "(images, height, width, 3), or (height, width, 3) for one image"
        raise ImageError(f"{name} is {array.dtype} of shape {array.shape}: expected {expected}.")
    if not array.size:
        return array.astype(np.uint8)
    if array.dtype.kind not in "biuf":
        raise ImageError(f"{name} has values that are no numbers, or too large: expected whole numbers from 0 to 255.")
    low, high, is_float = float(array.min()), float(array.max()), array.dtype.kind == "f"
    if is_float and 0 <= low <= high <= 1:
        raise ImageError(f"{name} has {array.dtype} values from 0 to 1: multiply them by 255 and round them.")
    if array.dtype.kind == "b" or not 0 <= low <= high <= 255:
        values = f"{array.dtype} values from {low:g} to {high:g}"
        raise ImageError(f"{name} has {values}: expected whole numbers from 0 to 255.")
    if is_float and (array % 1).any():
        raise ImageError(f"{name} has {array.dtype} values with fractions: expected whole numbers from 0 to 255.")
    return array.astype(np.uint8, copy=False)


def _read(item: Any, name: str, max_seconds: float) -> np.ndarray:
    if isinstance(item, dict) and COLUMN in item:
        item = item[COLUMN]
    if isinstance(item, str):
        item = decode_base64(item, name)
    if _is_numbers(item):
        try:
            return read_pixels(np.asarray(item), name)
        except ValueError:
            raise ImageError(f"{name} has rows or pixels of different lengths: expected (height, width, 3).") from None
    if not isinstance(item, bytes | bytearray):
        raise ImageError(f"{name} is {type(item).__name__}, not base64 text: {USAGE}.")
    return read_isolated(bytes(item), name, max_seconds)


def decode_base64(text: str, name: str) -> bytes:
    """Decode base64 text, also URL-safe or without padding, or a base64 data: URL.

    Raises ImageError with a sentence that starts with `name`.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ImageError(f"{name} is a data: URL without base64: send data:image/png;base64,…")
        text = urllib.parse.unquote(text)
    if "://" in text[:MAX_NAME]:
        raise ImageError(f"{name} is an address, from which nothing is downloaded: send the image as base64 text.")
    text = "".join(text.split()).rstrip("=").translate(URL_SAFE)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        wrong = re.search(r"[^A-Za-z0-9+/]", text)
        reason = f"it has the character {wrong[0]!r}" if wrong else "it is incomplete"
        raise ImageError(f"{name} is not base64, {reason}: send the bytes of the file as base64 text.") from None
