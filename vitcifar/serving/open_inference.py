"""The Open Inference Protocol, version 2 (KServe, Triton): encoded images as BYTES, or pixels as UINT8."""

import itertools
import json
import math
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from vitcifar import __version__
from vitcifar.errors import ImageError, VitCifarError
from vitcifar.inference.session import Prediction
from vitcifar.serving.api import Predictor, Sent
from vitcifar.serving.examples import INFER_REQUEST
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.prediction_queue import Turn
from vitcifar.serving.rest import COLUMN, MAX_IMAGES, MAX_REQUEST_SECONDS, read_pixels

PREFIX = "/v2/models/{name}"
VERSION = PREFIX + "/versions/{version}"
JSON_LENGTH = "inference-header-content-length"  # of the JSON before the binary data


def open_inference_routes(predictor: Predictor) -> APIRouter:
    """The routes that need the password."""
    router = APIRouter(tags=["Open Inference Protocol"])

    def find(request: Request, name: str, version: str) -> LoadedModel:
        if name != predictor.pool.state.current.model_name:
            raise HTTPException(404, f"There is no model {name[:100]!r} here.")
        return predictor.model(request, version)

    @router.get("/v2")
    async def server() -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return {"name": "vitcifar", "version": __version__, "extensions": ["binary_tensor_data"]}

    @router.get(PREFIX)
    @router.get(VERSION, name="version_metadata")
    async def metadata(request: Request, name: str, version: str = "") -> JSONResponse:
        """The tensors of a model."""
        try:
            model = await run_in_threadpool(find, request, name, version)
        except HTTPException as error:
            return error_response(error)
        numbers = [str(row.number) for row in predictor.pool.state.versions]
        return JSONResponse({"name": name, "versions": numbers, "platform": "onnxruntime_onnx", **tensors(model)})

    @router.get(PREFIX + "/ready")
    @router.get(VERSION + "/ready", name="version_ready")
    async def ready(request: Request, name: str, version: str = "") -> JSONResponse:
        """Whether a model is loaded; a version that is not loaded is loaded for it."""
        try:
            await run_in_threadpool(find, request, name, version)
        except HTTPException as error:
            return error_response(error)
        return JSONResponse({"name": name, "ready": True})

    @router.post(PREFIX + "/infer", openapi_extra={"requestBody": INFER_REQUEST})
    @router.post(VERSION + "/infer", openapi_extra={"requestBody": INFER_REQUEST}, name="version_infer")
    async def infer(request: Request, name: str, version: str = "") -> JSONResponse:
        """Classify images."""

        def work(turn: Turn) -> dict[str, Any]:
            query, images = read_query(body, request.headers.get(JSON_LENGTH, ""))
            model = find(request, name, version)
            deadline = time.monotonic() + MAX_REQUEST_SECONDS
            predictions = [predictor.predict(model, sent, turn, deadline) for sent in images]
            return answer(model, query, predictions)

        try:
            predictor.queue.check()
            body = await request.body()
            return JSONResponse(await predictor.queue.run(request, len(body), work))
        except VitCifarError as error:
            found = predictor.http_error(error, version)
            return error_response(HTTPException(400, found.detail) if found.status_code == 422 else found)
        except HTTPException as error:
            return error_response(error)

    return router


def error_response(error: HTTPException) -> JSONResponse:
    """An error in the form of the protocol."""
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def tensors(model: LoadedModel) -> dict[str, Any]:
    """The inputs and outputs in the metadata of a model."""
    num_classes = len(model.class_names)
    outputs = [("label", "BYTES", [-1]), ("probabilities", "FP32", [-1, num_classes])]
    outputs += [("confident", "BOOL", [-1])] if model.manifest.threshold != 0 else []
    outputs += [("class_names", "BYTES", [num_classes])]
    return {
        "inputs": [{"name": COLUMN, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [dict(zip(("name", "datatype", "shape"), output, strict=True)) for output in outputs],
    }


def answer(model: LoadedModel, query: dict[str, Any], predictions: list[Prediction]) -> dict[str, Any]:
    """The response; the columns of `probabilities` are in the order of `class_names`."""
    names, count = list(model.class_names), len(predictions)
    values: dict[str, list[Any]] = {
        "label": [prediction.label for prediction in predictions],
        "probabilities": [prediction.probabilities[name] for prediction in predictions for name in names],
        "confident": [model.manifest.is_confident(prediction.probability) for prediction in predictions],
        "class_names": names,
    }
    asked = query.get("outputs")
    wanted = [str(output.get("name")) for output in asked if isinstance(output, dict)] if asked else list(values)
    outputs = [
        {**tensor, "shape": [count if size == -1 else size for size in tensor["shape"]], "data": values[tensor["name"]]}
        for tensor in tensors(model)["outputs"]
        if tensor["name"] in wanted
    ]
    parameters = {"release_id": model.manifest.release_id, "release_digest": model.digest}
    response = {"model_name": model.model_name, "model_version": str(model.version), "outputs": outputs}
    return {**response, "parameters": parameters, **({"id": query["id"]} if "id" in query else {})}


def read_query(body: bytes, json_length: str) -> tuple[dict[str, Any], list[Sent]]:
    """The JSON of a request and its images. Raises ImageError with one sentence."""
    length = int(json_length) if re.fullmatch(r"[0-9]{1,12}", json_length) else len(body)
    try:
        query = json.loads(body[:length])
        str.encode(query.get("id", ""))  # it is sent back
        (tensor,) = query["inputs"]
        name, kind, shape = str(tensor["name"])[:100], tensor["datatype"], [int(size) for size in tensor["shape"]]
        in_binary = "binary_data_size" in (tensor.get("parameters") or {})
        values = body[length:] if in_binary else tensor["data"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ImageError(f"The request is not JSON with one tensor in inputs: send {COLUMN!r} as BYTES.") from None
    if kind == "UINT8":
        return query, pixels(values, shape, f"The tensor {name!r}")
    if kind != "BYTES":
        raise ImageError(f"The tensor {name!r} is {str(kind)[:100]}: send encoded images as BYTES, or pixels as UINT8.")
    items = list(itertools.islice(elements(values), MAX_IMAGES + 1)) if isinstance(values, bytes) else values
    if not isinstance(items, list) or not all(isinstance(item, str | bytes) for item in items):
        raise ImageError(f"The tensor {name!r} has no base64 text: send one text for each image.")
    if len(items) > MAX_IMAGES:
        raise ImageError(f"There are more than {MAX_IMAGES} images in the request, the limit: send fewer.")
    if len(items) != math.prod(shape) or not items:
        raise ImageError(f"The tensor {name!r} of shape {shape} has {len(items)} images.")
    return query, [Sent(f"Image {number}", item) for number, item in enumerate(items, 1)]


def elements(values: bytes) -> Iterator[bytes]:
    """The elements of a binary BYTES tensor: each has its length before it, 4 bytes, little-endian."""
    start = 0
    while start < len(values):
        size = int.from_bytes(values[start : start + 4], "little")
        yield values[start + 4 : start + 4 + size]
        start += 4 + size


def pixels(values: Any, shape: list[int], name: str) -> list[Sent]:
    """A UINT8 tensor, flat or nested or binary -> its images. Raises ImageError."""
    try:
        array = np.frombuffer(values, np.uint8) if isinstance(values, bytes) else np.asarray(values)
        array = read_pixels(array.reshape(shape), name)
    except (ValueError, TypeError, OverflowError):
        raise ImageError(f"{name} does not have the shape {shape}: send (images, height, width, 3).") from None
    images = list(array) if array.ndim == 4 else [array]
    if not 0 < len(images) <= MAX_IMAGES:
        raise ImageError(f"{name} has {len(images)} images: send at least 1, and at most {MAX_IMAGES}.")
    return [Sent(f"Image {number}", image) for number, image in enumerate(images, 1)]
