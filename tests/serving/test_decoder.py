"""Images that strangers send are decoded in a child process, which may take only so long and may crash."""

import concurrent.futures
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from support.project import ROOT
from support.serving import wait_until
from support.toys import make_image

from vitcifar.data.image import read_image
from vitcifar.errors import BusyError, ImageError
from vitcifar.serving import decoder as decoding
from vitcifar.serving import system_calls
from vitcifar.serving.decoder import MAX_DECODERS, Decoder, decoders, read_isolated


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
        with pytest.raises(BusyError, match=r"^red\.png has to wait for other images: send it again"):
            read_isolated(make_image(), "red.png", 0.01)
    finally:
        for decoder in taken:
            idle.put(decoder)


def test_the_start_of_a_decoder_does_not_count_as_the_time_of_an_image(decoder):
    assert decoder.decode(make_image(), "red.png", 0.2)[0, 0].tolist() == [255, 0, 0]  # Python alone starts slower


def test_a_decoder_that_does_not_start_in_time_is_no_fault_of_the_image(decoder, monkeypatch):
    monkeypatch.setattr("vitcifar.serving.decoder.START_SECONDS", 0.01)
    with pytest.raises(BusyError, match=r"^red\.png has to wait for a decoder to start: send it again in a moment"):
        decoder.decode(make_image(), "red.png", 60)
    monkeypatch.undo()
    assert decoder.decode(make_image(), "red.png", 60)[0, 0].tolist() == [255, 0, 0]


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


CONFINED = """
import ctypes, json, os, signal, socket, sys
from vitcifar.serving.decoder import confine
confine()
tried = {}
for name, call in {
    "open a file": lambda: open("/etc/passwd"),
    "open a socket": lambda: socket.socket(),
    "make a pipe": lambda: os.pipe(),
    "start a process": lambda: os.fork(),
    "become another program": lambda: os.execv("/bin/sh", ["sh", "-c", "exit 3"]),
    "signal its parent": lambda: os.kill(os.getppid(), 0),
    "remove a file": lambda: os.unlink(sys.argv[1]),
    "list a folder": lambda: os.listdir("/"),
    "change its folder": lambda: os.chdir("/"),
    "take 3 GiB": lambda: bytearray(3 * 2**30),
}.items():
    try:
        call()
        tried[name] = "done"
    except (OSError, MemoryError) as error:
        tried[name] = type(error).__name__
os.write(1, json.dumps(tried).encode())
os._exit(0)
"""


@pytest.mark.skipif(not system_calls.is_supported(), reason="seccomp is set up on Linux on x86-64")
def test_whatever_runs_in_a_child_reaches_no_file_no_socket_and_no_process(tmp_path):
    (tmp_path / "kept").write_text("kept")
    command = [sys.executable, "-c", CONFINED, str(tmp_path / "kept")]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    tried = json.loads(done.stdout)
    assert "done" not in tried.values() and len(tried) == 10, tried
    assert done.returncode == 0 and (tmp_path / "kept").read_text() == "kept"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")
def test_a_child_knows_no_secret_of_the_server(decoder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-password")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-key")
    process = decoder.start()
    assert decoder.decode(make_image(), "red.png", 60).shape == (32, 32, 3)
    assert b"canary" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert not system_calls.is_supported() or "Seccomp:\t2" in status


def mutations(num_files: int) -> Iterator[bytes]:
    """Files of four formats with some bytes changed, moved, doubled or cut off, from a seed."""
    source = random.Random(num_files)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    kinds: list[tuple[str, dict[str, object]]] = [("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("GIF", {})]
    kinds += [("JPEG", {"progressive": True}), ("WEBP", {"lossless": True}), ("PNG", {"bits": 4})]
    kinds += [(kind, {"save_all": True, "append_images": [noise.rotate(90)]}) for kind in ("GIF", "WEBP", "PNG")]
    files = []
    for kind, options in kinds:
        buffer = io.BytesIO()
        noise.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    for _ in range(num_files):
        content = bytearray(source.choice(files))
        for _ in range(source.randint(1, 4)):
            start, size = (
                source.randrange(min(len(content), source.choice((40, 10**6)))),
                source.choice((1, 1, 2, 4, 30)),
            )
            match source.randrange(5):
                case 0:
                    content[start : start + size] = source.randbytes(size)
                case 1:
                    content[start : start + size] = bytes([source.choice((0, 1, 0x7F, 0x80, 0xFF))]) * size
                case 2:
                    content[start:start] = content[start : start + size]
                case 3:
                    del content[start : start + size]
                case _:
                    content[start] ^= 1 << source.randrange(8)
            content = content or bytearray(b"\0")
        yield bytes(content)


@pytest.mark.parametrize("num_files", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_changed_files_give_an_image_or_a_sentence_and_crash_nothing(decoder, num_files, record_property):
    process = decoder.start()
    seconds, num_images, sentences = [], 0, []
    for content in mutations(num_files):
        before = sum(psutil.Process(process.pid).cpu_times()[:2])
        try:
            num_images += decoder.decode(content, "a", 60).shape[2] == 3
        except ImageError as error:
            sentences.append(str(error))
        assert decoder.start() is process, "it has crashed"
        seconds.append(sum(psutil.Process(process.pid).cpu_times()[:2]) - before)
    assert num_images > num_files / 10 and len(sentences) > num_files / 10
    assert all(sentence.startswith("a ") and "\n" not in sentence for sentence in sentences)
    print(
        f"{num_files} files: {num_images} images, {len(sentences)} sentences, at most {max(seconds):.2f} s of CPU time"
    )
    record_property("bad inputs refused", len(sentences))
    assert max(seconds) < 2


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_files_that_ask_for_much_are_refused_at_once_and_without_memory(decoder):
    def bomb(width: int, height: int) -> bytes:
        content = bytearray(make_image())
        content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        return bytes(content)

    decoder.decode(make_image(), "warm.png", 60)
    pid = decoder.start().pid

    def peak() -> float:
        (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024

    before, began = peak(), sum(psutil.Process(pid).cpu_times()[:2])
    sizes = [(60_000, 60_000), (9_500, 9_500), (1, 6_000), (1, 60_000), (2**31 - 1, 1), (20_001, 20_001)]
    for size in sizes:
        with pytest.raises(ImageError, match=r"^a (is|has more than) .*(limit|at most|header cannot be read)"):
            decoder.decode(bomb(*size), "a", 60)
    assert peak() - before < 20
    assert sum(psutil.Process(pid).cpu_times()[:2]) - began < 0.2 * len(sizes)


def test_threads_that_come_at_once_share_the_same_decoders(monkeypatch):
    def count_slowly() -> int:
        time.sleep(0.05)
        return 2

    monkeypatch.setattr(decoding.joblib, "cpu_count", count_slowly)
    decoding._make_decoders.cache_clear()
    with concurrent.futures.ThreadPoolExecutor(6) as executor:
        found = list(executor.map(lambda _: decoders(), range(6)))
    assert len({id(one) for one in found}) == 1


@pytest.mark.slow
def test_six_images_of_87_kb_that_ask_for_813_mb_are_decoded_in_turn_and_leave_no_memory():
    buffer = io.BytesIO()
    Image.new("RGB", (7000, 7000), "red").save(buffer, "WEBP")
    peaks, done = [0.0], threading.Event()

    def memory() -> float:
        children = psutil.Process().children()
        return sum(child.memory_info().rss for child in children if "decoder" in " ".join(child.cmdline())) / 2**20

    def watch() -> None:
        while not done.wait(0.02):
            peaks.append(memory())

    watching = threading.Thread(target=watch)
    watching.start()
    with concurrent.futures.ThreadPoolExecutor(6) as executor:
        images = list(executor.map(lambda content: read_isolated(content, "a", 120), [buffer.getvalue()] * 6))
    done.set()
    watching.join()
    num_decoders = decoders().qsize()
    assert num_decoders <= MAX_DECODERS and [image.shape for image in images] == [(1024, 1024, 3)] * 6
    print(
        f"{len(buffer.getvalue())} bytes: at most {max(peaks):.0f} MiB in {num_decoders} decoders, {memory():.0f} after"
    )
    assert max(peaks) < 1200 * num_decoders
    assert memory() < 250 * num_decoders
