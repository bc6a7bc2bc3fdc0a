"""Images that strangers send are decoded in a child process, which may take only so long and may crash."""

import concurrent.futures
import io
import os
import signal
import threading

import numpy as np
import pytest
from PIL import Image
from support.serving import wait_until
from support.toys import make_image

from vitcifar.data.image import read_image
from vitcifar.errors import ImageError
from vitcifar.serving.decoder import Decoder, decoders, read_isolated


@pytest.fixture
def decoder():
    decoder = Decoder()
    yield decoder
    decoder.stop()


def slow_image() -> bytes:
    """A PNG of 100 kB within every limit whose 49 million pixels take Pillow a part of a second."""
    buffer = io.BytesIO()
    Image.new("L", (7000, 7000)).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_pixels_are_those_of_read_image(tmp_path):
    for kind, size in (("PNG", (30, 20)), ("JPEG", (3000, 2000)), ("WEBP", (7, 9))):
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, kind)
        np.testing.assert_array_equal(read_isolated(buffer.getvalue()), read_image(buffer.getvalue()))
    (tmp_path / "red.png").write_bytes(make_image())
    np.testing.assert_array_equal(read_isolated(tmp_path / "red.png"), read_image(tmp_path / "red.png"))


@pytest.mark.parametrize("content", [b"", b"no image", make_image()[:60], make_image(size=(400, 4))])
def test_the_errors_are_those_of_read_image(content):
    with pytest.raises(ImageError) as expected:
        read_image(content, "cat \n.png")
    with pytest.raises(ImageError) as actual:
        read_isolated(content, "cat \n.png")
    assert str(actual.value) == str(expected.value)


def test_an_image_that_takes_too_long_is_stopped_and_the_next_one_is_decoded(decoder):
    decoder.decode(make_image(), "warm.png", 60)
    with pytest.raises(ImageError, match=r"^slow\.png takes longer than 0\.05 seconds to decode: save it again"):
        decoder.decode(slow_image(), "slow.png", 0.05)
    assert decoder.decode(make_image("blue"), "blue.png", 60)[0, 0].tolist() == [0, 0, 255]


def test_an_image_that_waits_too_long_for_the_others_is_answered():
    idle = decoders()
    taken = [idle.get() for _ in range(idle.qsize())]
    try:
        with pytest.raises(ImageError, match=r"^red\.png has to wait for other images: send it again"):
            read_isolated(make_image(), "red.png", 0.01)
    finally:
        for decoder in taken:
            idle.put(decoder)


def test_a_crash_of_the_decoder_is_one_sentence_and_the_next_image_is_decoded(decoder):
    process = decoder.start()
    os.kill(process.pid, signal.SIGSTOP)  # so that it is killed before it answers
    threading.Timer(0.2, process.kill).start()
    with pytest.raises(ImageError, match=r"^red\.png crashes its decoder"):
        decoder.decode(make_image(), "red.png", 60)
    assert decoder.decode(make_image(), "red.png", 60).shape == read_image(make_image()).shape


def test_the_answers_of_many_threads_are_not_mixed_up():
    colours = {"red": [255, 0, 0], "lime": [0, 255, 0], "blue": [0, 0, 255]}
    names = list(colours) * 10
    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        images = executor.map(lambda name: read_isolated(make_image(name)), names)
        assert [image[0, 0].tolist() for image in images] == [colours[name] for name in names]


def test_the_child_ends_with_its_parent(decoder):
    process = decoder.start()
    assert process.stdin is not None
    process.stdin.close()
    wait_until(lambda: process.poll() == 0, "the child goes on")
