"""Requests and responses that the OpenAPI document (`/docs`) shows."""

from typing import Any

# An image of one red pixel.
RED = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
IMAGE = {"schema": {"type": "string", "format": "binary"}}
PREDICT_REQUEST: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"images": {"type": "array", "items": {"type": "string", "format": "byte"}}},
            },
            "example": {"images": [RED]},
        },
        "image/png": IMAGE,
        "image/jpeg": IMAGE,
        "application/octet-stream": IMAGE,
    },
}
INVOCATIONS_REQUEST: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": {"type": "object"}, "example": {"inputs": [RED]}}},
}
INFER_REQUEST: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"type": "object"},
            "example": {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [RED]}]},
        }
    },
}
PREDICTION: dict[str, Any] = {
    "name": "cat.jpg",
    "label": "cat",
    "probabilities": {"cat": 0.97, "dog": 0.02, "frog": 0.01},
    "model": "vitcifar",
    "version": 3,
    "release_id": "0f3a5c7e9b1d2f46",
    "out_of_distribution": False,
    "ood_score": 0.62,
    "confident": True,
    "alias": "champion",
    "release_digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "timing": {"queue_ms": 0.1, "decode_ms": 1.2, "inference_ms": 57.5, "total_ms": 58.9},
}
FAILED = {"name": "notes.txt", "error": "notes.txt is not an image that can be read: send PNG or JPEG."}
PREDICT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"example": {"predictions": [PREDICTION, FAILED]}}}},
    **{
        status: {"description": why, "content": {"application/json": {"example": {"detail": detail}}}}
        for status, why, detail in (
            (404, "No such version", "There is no version '9': choose one of 3, 2, 1."),
            (413, "Request too large", "The request is larger than 16 MiB: send a smaller image."),
            (415, "No image", "The content type 'text/plain' is no image: send files as a form."),
            (422, "Image or parameter that cannot be read", "cat.jpg is cut off: send it again."),
            (503, "Queue full, with Retry-After, or version that cannot be loaded", "64 requests are waiting."),
        )
    },
}
