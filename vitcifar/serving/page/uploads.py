"""Images that a visitor sends: read from the request or from our folder alone, and classified."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vitcifar.data.image import readable_name
from vitcifar.errors import ImageError
from vitcifar.inference.session import Prediction
from vitcifar.serving.decoder import read_isolated
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.model_pool import MAX_SPEC, ModelPool
from vitcifar.serving.page.gradio_setup import private_folder
from vitcifar.serving.rest import decode_base64

if TYPE_CHECKING:
    from gradio.data_classes import ImageData

MAX_PATH = 4096  # characters
MAX_UPLOADS = 5_000  # files of gradio_client, which are kept for an hour: the page sends its images with the requests
MAX_UPLOAD_BYTES = 2 * 2**30  # of all of them together


class UploadLimit:
    """Responds with status 503 to an upload while as many are kept as the server has room for."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_upload = scope["type"] == "http" and scope["path"].rstrip("/").endswith("/gradio_api/upload")
        if is_upload and await run_in_threadpool(uploads_are_full):
            detail = (
                "The server keeps as many uploads as it has room for: send the image with the request, by /v1/predict."
            )
            return await JSONResponse({"detail": detail}, 503)(scope, receive, send)
        await self.app(scope, receive, send)


def uploads_are_full() -> bool:
    """Whether the folder of uploads has reached one of its limits."""
    num_files = num_bytes = 0
    for folder, _, names in os.walk(private_folder() / "uploads"):
        for name in names:
            with contextlib.suppress(OSError):  # just deleted
                num_files, num_bytes = num_files + 1, num_bytes + os.stat(os.path.join(folder, name)).st_size
    return num_files >= MAX_UPLOADS or num_bytes >= MAX_UPLOAD_BYTES


def predict_upload(pool: ModelPool, upload: "ImageData | None", spec: str) -> tuple[Prediction | None, LoadedModel]:
    """Classify an upload (a file or a base64 data: URL) with a version; no upload gives no prediction.

    Raises VitCifarError with one sentence.
    """
    model = pool.get(spec[:MAX_SPEC] if spec else "")
    if upload is None:
        return None, model
    name = name_of(upload)
    return model.classifier.predict(read_upload(upload, name), name, read=read_isolated), model


def name_of(upload: "ImageData") -> str:
    """What messages call an upload."""
    return readable_name(b"", upload.orig_name or "")


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
