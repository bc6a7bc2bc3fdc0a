"""Many images on a tab: what a browser may send, and what is shown of it."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from support.toys import make_image

from vitcifar.data.image import MAX_BYTES
from vitcifar.errors import ImageError
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page import images
from vitcifar.serving.page.batch import answer_batch


def sent(*files, **changes):
    """The request of a browser for files, each a dict, or the bytes of an image."""
    described = [
        file if isinstance(file, dict) else {"name": "a.png", "bytes": len(file), "url": data_url(file)}
        for file in files
    ]
    return {"serial": "0/0", "start": 0, "versions": [], "files": described, **changes}


def data_url(content):
    return "data:image/x;base64," + base64.b64encode(content).decode()


FORGED = [
    None,
    "files",
    [1] * 10_000,
    {},
    sent(files="abc"),
    sent(files=[1]),
    sent({"url": "data:,"}),
    sent({"name": 3}),
    sent(start="0"),
    sent(start=-1),
    sent(start=10**9),
    sent(serial=1),
    sent(versions=["1", "2", "3"]),
    sent(versions=[{}]),
]


@pytest.mark.parametrize("request_", FORGED, ids=range(len(FORGED)))
def test_a_request_that_the_page_would_not_send_is_one_sentence(request_):
    with pytest.raises(ImageError, match="is not one of this page: reload"):
        images.read_part(request_)


def test_a_request_has_a_limited_number_of_images(colours):
    with pytest.raises(ImageError, match=r"There are 10,000 images in the request, the limit is 8"):
        images.read_part(sent(*[{"name": "a.png"}] * 10_000))
    pool = ModelPool(colours, "champion")
    answer = images.answer_part(pool, sent(*[{}] * 9), ["1"], lambda part, specs: answer_batch(pool, part, specs[0]))
    assert list(answer) == ["serial", "problem"]


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ({"name": "big.png", "bytes": MAX_BYTES + 2**20, "url": None}, "big.png is 33 MiB, the limit is 32 MiB"),
        ({"name": "folder", "bytes": 0, "url": None}, "folder cannot be read by the browser"),
        ({"name": "page.png", "bytes": 3, "url": "/etc/passwd"}, "page.png was not uploaded"),
        ({"name": "web.png", "bytes": 3, "url": "http://192.0.2.1/a.png"}, "web.png was not uploaded"),
        ({"name": "file.png", "bytes": 3, "url": None, "path": "/etc/hostname"}, "file.png cannot be read"),
        ({"name": "note.png", "bytes": 4, "url": data_url(b"Dear")}, "note.png is not a supported image"),
        ({"name": "x" * 5000, "bytes": 4, "url": data_url(b"")}, "x… is empty".replace("x…", "x" * 39)),
    ],
    ids=["large", "folder", "path", "address", "no content", "text", "long name"],
)
def test_a_file_that_cannot_be_read_is_a_row_with_its_sentence(colours, file, sentence):
    part = images.read_part(sent(file, make_image("green")))
    bad, good = answer_batch(ModelPool(colours, "champion"), part, "1")["rows"]
    assert sentence in bad["row"] and 'data-error="yes"' in bad["row"] and len(bad["row"]) < 1500
    assert "<td>green</td>" in good["row"], "the others are classified"


def test_images_that_take_too_long_together_are_rows_with_their_sentence(monkeypatch):
    monkeypatch.setattr(images, "MAX_REQUEST_SECONDS", 0.0)
    (late,) = images.decode(images.read_part(sent(make_image())))
    assert "a.png was not classified, the others took too long" in str(late.pixels)


@pytest.mark.parametrize("size", [(3, 1024), (1024, 700), (8, 8)])
def test_a_thumbnail_is_small_whatever_the_image(size):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    html = images.Decoded(name="noise", pixels=noise).thumbnail()
    with Image.open(io.BytesIO(base64.b64decode(html.split("base64,")[1].removesuffix('">')))) as image:
        assert max(image.size) <= images.THUMBNAIL
    assert len(html) < 20_000


def test_names_and_labels_cannot_inject_html():
    image = images.Decoded(name='"><script>', pixels=np.zeros((1, 1, 3), np.uint8))
    row = images.row(1, image, "", label='"><script>', is_button=True) + images.error_row(
        2, images.Decoded(name="b", pixels=ImageError("<script>")), 3
    )
    assert "<script>" not in row and row.count("&lt;script&gt;") == 4
