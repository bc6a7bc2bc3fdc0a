"""Pictures that were sent as text: base64, alone or as a data: URL."""

import base64
import binascii

from vitcifar.data.picture import MAX_BYTES
from vitcifar.errors import PictureError

# The longest request that can hold one picture as base64, with something around it.
MAX_REQUEST_BYTES = MAX_BYTES * 4 // 3 + 2**20


def decode_base64(text: str, name: str) -> bytes:
    """The bytes that base64 text stands for. Raises PictureError with one sentence that starts with `name`."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise PictureError(f"{name} is a data: URL without base64: send data:image/png;base64,…")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise PictureError(f"{name} is not base64: send the bytes of the file as base64 text.") from None
