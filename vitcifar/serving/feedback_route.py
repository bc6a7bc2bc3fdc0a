"""`POST /v1/feedback`: an image, and whether its prediction is right or what it really is."""

import logging
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from vitcifar.errors import ServingError, VitCifarError
from vitcifar.serving.api import Predictor, read_images
from vitcifar.serving.decoder import MAX_SECONDS
from vitcifar.serving.examples import PREDICT_REQUEST
from vitcifar.serving.feedback import FeedbackRefused, FeedbackStore, record
from vitcifar.serving.prediction_queue import Turn

LOG = logging.getLogger(__name__)
UNREACHABLE = "The feedback cannot be stored now: send it again later."


def feedback_route(predictor: Predictor, store: FeedbackStore) -> APIRouter:
    """The route of a server that takes feedback."""
    router = APIRouter(tags=["feedback"])

    @router.post("/v1/feedback", openapi_extra={"requestBody": PREDICT_REQUEST})
    async def feedback(
        request: Request,
        verdict: Annotated[Literal["right", "wrong"], Query(description="Whether the prediction is right.")],
        truth: Annotated[
            str, Query(description="If it is wrong: the true class; nothing for none of the version's classes.")
        ] = "",
        version: Annotated[
            str, Query(description="The version in the prediction; by default what the server serves.")
        ] = "",
        keep_image: Annotated[bool, Query(description="Keep the image, for training; otherwise its hash only.")] = True,
    ) -> JSONResponse:
        """Say of one image whether its prediction is right; the image is sent as for a prediction."""
        predictor.queue.check()
        images = await read_images(request)
        if len(images) > 1:
            raise HTTPException(422, f"There are {len(images)} images in the request: send one for each feedback.")

        def work(turn: Turn) -> dict[str, Any]:
            model, pixels = predictor.model(request, version), images[0].read(MAX_SECONDS)
            entry, is_new = record(
                store, model, pixels, right=verdict == "right", truth=truth, keep_image=keep_image, source="rest"
            )
            return {
                "new": is_new,
                "image_hash": entry.image_hash,
                "model": entry.model,
                "version": entry.version,
                "release_digest": entry.release_digest,
                "label": entry.label,
                "truth": entry.truth,
            }

        try:
            return JSONResponse(await predictor.queue.run(request, len(images[0].content), work))
        except VitCifarError as error:
            raise refusal(error) or predictor.http_error(error, version) from error

    return router


def refusal(error: VitCifarError) -> HTTPException | None:
    """The status and the sentence of feedback that was not stored; None for other errors."""
    if isinstance(error, FeedbackRefused):
        return HTTPException(error.status, str(error))
    if not isinstance(error, ServingError):
        return None
    LOG.warning("%s", error)  # with the address of the store, which no visitor reads
    return HTTPException(503, UNREACHABLE)
