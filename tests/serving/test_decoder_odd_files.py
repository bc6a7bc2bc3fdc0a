"""One table of odd files and what becomes of them: the same by the library, the page, REST and score."""

import base64
import csv
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from support.image_files import chunk, png_of_16_bits, save
from support.page import data_url, upload_of

from vitcifar.data.edge_cases import edge_case_files
from vitcifar.data.image import MORE_FORMATS, OTHER_FORMATS, read_image
from vitcifar.errors import ImageError
from vitcifar.serving.app import Page
from vitcifar.serving.loaded_model import predict_files
from vitcifar.serving.page.batch import answer_batch
from vitcifar.serving.page.images import Part
from vitcifar.serving.page.uploads import predict_upload
from vitcifar.serving.score import score

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))


def header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG of any size, with the pixels of one row."""
    packed = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (chunk(b"IHDR", packed), chunk(b"IDAT", zlib.compress(bytes(9))), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def animated(kind: str) -> bytes:
    return save(kind, Image.new("RGB", (9, 9), "red"), save_all=True, append_images=[Image.new("RGB", (9, 9), "blue")])


def truncated(kind: str) -> bytes:
    content = save(kind, NOISE)
    return content[: len(content) // 2]


# What the sentence about a file says; None for a file that is read.
FILES: dict[str, tuple[bytes, str | None]] = {
    **{f"truncated.{kind}": (truncated(kind), "is broken") for kind in ("jpeg", "png", "webp", "gif", "bmp")},
    "empty.png": (b"", "is empty|There is no image"),
    "text.png": (b"hello, world\n" * 99, "is not a supported image"),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is an SVG drawing"),
    "drawing.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a supported image"),
    "layers.psd": (b"8BPS\0\1" + bytes(60), "is not a supported image"),
    "icon.ico": (save("ICO", Image.new("RGBA", (16, 16), "red")), "is not a supported image"),
    "stars.fits": (b"SIMPLE  =                    T".ljust(2880), "is not a supported image"),
    "photo.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC image"),
    "paper.pdf": (b"%PDF-1.7\n", "is a PDF"),
    "page.html": (b"<!DOCTYPE html><script>alert(1)</script>", "is not a supported image"),
    "scan.tiff": (save("TIFF", NOISE), "is a TIFF image"),
    "fractions.tiff": (save("TIFF", Image.fromarray(np.ones((4, 4), np.float32))), "is a TIFF image"),
    "huge.png": (header(60_000, 60_000), "more than 50,000,000 pixels|the limit is 50,000,000"),
    "black and white.png": (header(9_500, 9_500, depth=1), "the limit is 50,000,000 pixels"),
    "narrow.png": (header(1, 6_000), "at most 32 times the shorter one"),
    "narrower.png": (header(1, 60_000), "the limit is 20,000 per side"),
    "comments.gif": (save("GIF")[:13] + bytes(0) + b"!\xfe\1a\0" * 1000, "is broken|of metadata"),
    **{Path(name).name: (content, None) for name, content in edge_case_files().items() if "very-large" not in name},
    "cmyk.jpeg": (save("JPEG", Image.new("CMYK", (9, 9), (0, 200, 200, 0))), None),
    "la.png": (save("PNG", Image.new("LA", (9, 9), (30, 128))), None),
    "half.webp": (save("WEBP", Image.new("RGBA", (9, 9), (255, 0, 0, 128)), lossless=True), None),
    "colours of 16 bits.png": (png_of_16_bits(np.full((4, 5, 3), (65_535, 0, 300), np.uint16)), None),
    **{f"animated.{kind.lower()}": (animated(kind), None) for kind in ("GIF", "WEBP", "PNG")},
    **{f"refused.{kind.lower()}": (save(kind), f"is an? {kind} image") for kind in ("AVIF", "JPEG2000", "PPM")},
    "refused.tga": (save("TGA"), "is not a supported image"),
}
ALLOWED = {  # by the environment
    **{f"allowed.{kind.lower()}": (save(kind, NOISE), None) for kind in ("TIFF", "AVIF", "JPEG2000", "PPM", "TGA")},
    "grey of 16 bits.pgm": (b"P5 2 2 65535\n" + bytes(range(0, 80, 10)), None),
    "huge.ppm": (b"P6 60000 60000 255\n" + bytes(9), "more than 50,000,000 pixels"),
    "huge.tga": (bytes([0, 0, 2, *[0] * 9, 96, 234, 96, 234, 24, 0]) + bytes(9), "more than 50,000,000 pixels"),
    "cut.jp2": (truncated("JPEG2000"), "is broken"),
    "cut.avif": (truncated("AVIF"), "is broken|not a supported image"),
}
FILES |= ALLOWED
Entry = Callable[[Page, Path], tuple[str, float] | str]


def library(server: Page, path: Path) -> tuple[str, float] | str:
    prediction = server.pool.state.current.predict(path)
    return prediction.label, prediction.probability


def command_line(server: Page, path: Path) -> tuple[str, float] | str:
    (row,) = predict_files(server.pool.state.current, [path])
    return row["error"] if "error" in row else (row["label"], row["probabilities"][row["label"]])


def page(server: Page, path: Path) -> tuple[str, float] | str:
    upload = upload_of(url=data_url(path.read_bytes()), orig_name=path.name)
    prediction, _ = predict_upload(server.pool, upload, "champion")
    assert prediction is not None
    return prediction.label, prediction.probability


def batch(server: Page, path: Path) -> tuple[str, float] | str:
    file = {"name": path.name, "url": data_url(path.read_bytes())}
    part = Part(serial="1", start=0, versions=(), files=(file,))
    (row,) = answer_batch(server.pool, part, "champion")["rows"]
    (cells,) = csv.reader([row["line"]])
    _, label, probability, *_ = cells
    return (label, float(probability)) if label else next(cell for cell in cells if cell.endswith("."))


def scored(server: Page, path: Path) -> tuple[str, float] | str:
    out = path.parent / "out" / f"{path.name}.jsonl"
    out.parent.mkdir(exist_ok=True)
    score(server.pool.state.current, [str(path)], out)
    row = json.loads(out.read_text())
    return row["error"] or (row["label"], row["probability"])


def rest(server: Page, path: Path, **request: Any) -> tuple[str, float] | str:
    answer = httpx.post(f"{server.url}/v1/predict", trust_env=False, timeout=30, **request)
    if answer.status_code != 200:
        assert answer.status_code == 422
        return answer.json()["detail"]
    (row,) = answer.json()["predictions"]
    return row["label"], row["probabilities"][row["label"]]


def form(server: Page, path: Path) -> tuple[str, float] | str:
    return rest(server, path, files={"image": (path.name, path.read_bytes())})


def body(server: Page, path: Path) -> tuple[str, float] | str:
    return rest(server, path, content=path.read_bytes(), headers={"Content-Type": "image/x"})


def text_in_json(server: Page, path: Path) -> tuple[str, float] | str:
    return rest(server, path, json={"images": [base64.b64encode(path.read_bytes()).decode()]})


def open_inference(server: Page, path: Path) -> tuple[str, float] | str:
    text = base64.b64encode(path.read_bytes()).decode()
    query = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}]}
    answer = httpx.post(f"{server.url}/v2/models/colours/infer", json=query, trust_env=False, timeout=30)
    if answer.status_code != 200:
        assert answer.status_code == 400
        return answer.json()["error"]
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    return outputs["label"][0], max(outputs["probabilities"])


def invocations(server: Page, path: Path) -> tuple[str, float] | str:
    text = base64.b64encode(path.read_bytes()).decode()
    answer = httpx.post(f"{server.url}/invocations", json={"inputs": [text]}, trust_env=False, timeout=30)
    if answer.status_code != 200:
        assert answer.status_code == 400
        return answer.json()["message"]
    (row,) = answer.json()["predictions"]
    return row["label"], row["probabilities"][row["label"]]


ENTRIES: tuple[Entry, ...] = (
    *(command_line, page, batch, scored),
    *(form, body, text_in_json, open_inference, invocations),
)
NAMES = ("The image", "Image 1")  # where none is sent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, (content, _) in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_an_odd_file_is_the_same_at_every_entry(
    server: Page, folder: Path, name: str, record_property: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MORE_FORMATS, ",".join(OTHER_FORMATS) if name in ALLOWED else "none")
    path, sentence = folder / name, FILES[name][1]

    def answer_of(entry: Entry) -> tuple[str, float] | str:
        try:
            answer = entry(server, path)
        except ImageError as error:
            answer = str(error)
        if isinstance(answer, tuple):
            return answer[0], round(answer[1], 6)
        for called in (str(path), path.name, *NAMES):
            answer = answer.removeprefix(called)
        return answer

    expected = answer_of(library)
    if sentence is None:
        assert isinstance(expected, tuple)
    else:
        assert isinstance(expected, str)
        with pytest.raises(ImageError, match=sentence):
            read_image(path)
    record_property("bad inputs refused" if sentence else "requests served", 1 + len(ENTRIES))
    for entry in ENTRIES:
        answer = answer_of(entry)
        if name == "empty.png" and isinstance(answer, str):
            assert "is empty" in answer or "no image" in answer, entry.__name__
        else:
            assert answer == expected, entry.__name__
