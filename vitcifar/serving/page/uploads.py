"""Images that a visitor sends: read from the request or from our folder alone, and classified."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

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
