"""`POST /v1/predict`: images as files of a form, as the body or as base64 in JSON; a prediction or error for each."""

import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from vitcifar.data.image import readable_name
from vitcifar.errors import BusyError, ImageError, VitCifarError
from vitcifar.inference.session import Prediction
from vitcifar.registry.registry import select
from vitcifar.serving.decoder import MAX_SECONDS, read_isolated
from vitcifar.serving.examples import PREDICT_REQUEST, PREDICT_RESPONSES
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.metrics import Metrics
from vitcifar.serving.model_pool import MAX_SPEC, ModelPool, sentence_for_visitors
from vitcifar.serving.prediction_queue import RETRY_AFTER, PredictionQueue, Turn
from vitcifar.serving.rest import MAX_IMAGES, MAX_REQUEST_SECONDS, decode_base64

USAGE = "send files as a form, an image as the body, or JSON with base64 text in images"


@dataclasses.dataclass(frozen=True)
class Sent:
    """One image of a request: the bytes of a file, base64 text, or pixels. `name` is what errors call it."""

    name: str
    content: bytes | str | np.ndarray

    def read(self, max_seconds: float) -> np.ndarray:
        """The pixels uint8 (H, W, 3). Raises ImageError."""
        if isinstance(self.content, np.ndarray):
            return self.content
        content = decode_base64(self.content, self.name) if isinstance(self.content, str) else self.content
        return read_isolated(content, self.name, max_seconds)


class Predictor:
    """Answers requests with the versions of a pool, through one queue."""

    def __init__(self, pool: ModelPool, queue: PredictionQueue, metrics: Metrics) -> None:
        self.pool = pool
        self.queue = queue
        self.metrics = metrics

    def model(self, request: Request, spec: str) -> LoadedModel:
        """The version that a request asks for. Raises HTTPException."""
        try:
            model = self.pool.get(spec[:MAX_SPEC])
        except VitCifarError as error:
            raise self.http_error(error, spec) from error
        request.state.version = model.version
        return model

    def http_error(self, error: VitCifarError, spec: str) -> HTTPException:
        """422 for an image, 503 while no decoder is free for it or a version does not work, 404 for an unknown one."""
        detail = sentence_for_visitors(self.pool, error, spec)
        if isinstance(error, BusyError):
            return HTTPException(503, detail, headers={"Retry-After": str(RETRY_AFTER)})
        if isinstance(error, ImageError):
            return HTTPException(422, detail)
        known = select(self.pool.state.versions, spec[:MAX_SPEC] or self.pool.spec)
        return HTTPException(503 if known else 404, detail)

    def predict(self, model: LoadedModel, sent: Sent, turn: Turn, deadline: float) -> Prediction:
        """Decode and classify one image. Raises ImageError."""
        seconds = min(MAX_SECONDS, deadline - time.monotonic())
        try:
            if turn.left or seconds <= 0:
                raise ImageError(f"{sent.name} was not classified, the request takes too long: send fewer images.")
            prediction = model.classifier.predict(b"", sent.name, read=lambda data, name: sent.read(seconds))
        except ImageError:
            self.metrics.observe(model.version, None, turn.queue_ms)
            raise
        self.metrics.observe(model.version, prediction.timing, turn.queue_ms)
        return prediction

    def rows(self, model: LoadedModel, images: Sequence[Sent], turn: Turn, spec: str, top_k: int) -> list[Any]:
        """A row for each image. A single image that cannot be read raises ImageError, one of several has its error."""
        rows: list[Any] = []
        deadline = time.monotonic() + MAX_REQUEST_SECONDS
        for sent in images:
            try:
                prediction = self.predict(model, sent, turn, deadline)
            except ImageError as error:
                if len(images) == 1:
                    raise
                rows.append({"name": sent.name, "error": str(error)})
            else:
                rows.append(self.row(model, sent, prediction, turn, spec, top_k))
        return rows

    def row(
        self, model: LoadedModel, sent: Sent, prediction: Prediction, turn: Turn, spec: str, top_k: int
    ) -> dict[str, Any]:
        """A prediction as it is sent; `alias` is the one that was asked for."""
        asked = (spec or self.pool.spec).strip().removeprefix("@")
        fields = prediction.to_dict(model.model_name, model.version)
        timing = {"queue_ms": turn.queue_ms, **fields.pop("timing")}
        timing["total_ms"] += turn.queue_ms
        ranked = list(prediction.probabilities.items())
        return {
            "name": sent.name,
            **fields,
            "probabilities": dict(ranked[: top_k or None]),
            "confident": model.manifest.is_confident(prediction.probability),
            "alias": None if asked.lstrip("vV").isdecimal() else asked,
            "release_digest": model.digest,
            "timing": timing,
        }


def predict_route(predictor: Predictor) -> APIRouter:
    """The route `/v1/predict`."""
    router = APIRouter(tags=["predict"])

    @router.post("/v1/predict", openapi_extra={"requestBody": PREDICT_REQUEST}, responses=PREDICT_RESPONSES)
    async def predict(
        request: Request,
        version: Annotated[
            str, Query(description="A number, an alias or latest; by default what the server serves.")
        ] = "",
        top_k: Annotated[int, Query(ge=0, description="How many probabilities (0 = every class).")] = 0,
    ) -> JSONResponse:
        """Classify images.

        Send files as a form, one image as the body, or JSON with base64 text. Of several images, one that cannot be
        read has an `error` in its row.
        """
        predictor.queue.check()
        images = await read_images(request)

        def work(turn: Turn) -> list[Any]:
            return predictor.rows(predictor.model(request, version), images, turn, version, top_k)

        try:
            rows = await predictor.queue.run(request, sum(len(sent.content) for sent in images), work)
        except VitCifarError as error:
            raise predictor.http_error(error, version) from error
        return JSONResponse({"predictions": rows})

    return router


async def read_images(request: Request) -> list[Sent]:
    """The images of a request, not yet decoded. Raises HTTPException with status 415 or 422."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images = await _form(request)
    elif kind == "application/json":
        images = await run_in_threadpool(_json, await request.body())
    elif kind.startswith("image/") or kind == "application/octet-stream":
        images = [Sent("The image", await request.body())]
    else:
        raise HTTPException(415, f"The content type {kind[:MAX_SPEC]!r} is no image: {USAGE}.")
    if not images or not len(images[0].content):
        raise HTTPException(422, f"There is no image in the request: {USAGE}.")
    if len(images) > MAX_IMAGES:
        raise HTTPException(
            422, f"There are {len(images)} images in the request, the limit is {MAX_IMAGES}: send fewer."
        )
    return images


async def _form(request: Request) -> list[Sent]:
    try:
        async with request.form() as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            names = [readable_name(b"", file.filename or "") for file in files]
            contents = await asyncio.gather(*(file.read() for file in files))
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise HTTPException(422, f"The form cannot be read ({error.detail}): send each image as a file.") from error
    return [Sent(name, content) for name, content in zip(names, contents, strict=True)]


def _json(body: bytes) -> list[Sent]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"The body is not JSON ({error}): {USAGE}.") from None
    values = values.get("images", values.get("image")) if isinstance(values, dict) else values
    items = [values] if isinstance(values, str) else values
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise HTTPException(422, 'The JSON has no base64 text: send {"images": ["…"]} with one text for each image.')
    return [Sent(f"Image {number}" if len(items) > 1 else "The image", item) for number, item in enumerate(items, 1)]
