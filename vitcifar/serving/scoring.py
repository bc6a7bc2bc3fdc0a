"""`/invocations` and `/ping`, as MLflow's own scoring server answers; requests are parsed by MLflow."""

import json
import logging

from fastapi import APIRouter
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from starlette.requests import Request
from starlette.responses import Response

from vitcifar.serving.api import Predictor
from vitcifar.serving.examples import INVOCATIONS_REQUEST
from vitcifar.serving.prediction_queue import Turn
from vitcifar.serving.rest import ImageModel

LOG = logging.getLogger(__name__)
MAX_MESSAGE = 1000  # characters of MLflow's messages, which quote the request


class ServedModel(ImageModel):
    """The model that MLflow's server would have loaded; there is no signature to check the input against."""

    metadata = None


def scoring_routes(predictor: Predictor) -> APIRouter:
    """The routes that need the password."""
    router = APIRouter(tags=["MLflow"])

    @router.post("/invocations", openapi_extra={"requestBody": INVOCATIONS_REQUEST})
    async def invocations(request: Request) -> Response:
        """Classify images as MLflow's scoring server does: `inputs`, `instances` or `dataframe_…`, or CSV."""
        predictor.queue.check()
        content_type = request.headers.get("content-type", "")
        body = await request.body()
        if "parquet" in content_type:  # a small file can hold gigabytes
            return Response("Parquet is not read here: send JSON or CSV.", 415, media_type="text/plain")

        def work(turn: Turn) -> Response:
            model = ServedModel(predictor.model(request, ""))
            result = scoring_server.invocations(body, content_type, model, None)  # type: ignore[no-untyped-call]
            return Response(result.response, result.status, media_type=result.mimetype)

        try:
            return await predictor.queue.run(request, len(body), work)
        except MlflowException as error:  # its own JSON could hold a stack trace and the whole request
            LOG.info("%s", error)
            message = str(error) if len(str(error)) <= MAX_MESSAGE else f"{str(error)[:MAX_MESSAGE]}…"
            text = json.dumps({"error_code": error.error_code, "message": message})
            status = error.get_http_status_code()  # type: ignore[no-untyped-call]
            return Response(text, status, media_type="application/json")

    return router
