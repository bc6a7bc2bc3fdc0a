"""Decodes images in child processes: one that takes too long, or crashes its decoder, costs a child, not a thread.

`python -m vitcifar.serving.decoder` is the child. It gets one JSON line and the bytes of a file, and answers one JSON
line and the pixels; nothing that it sends is unpickled.
"""

import atexit
import contextlib
import functools
import io
import json
import os
import queue
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import joblib
import numpy as np
from PIL import Image

from vitcifar.data.image import MORE_FORMATS, known_formats, read_file, read_image, readable_name
from vitcifar.errors import BusyError, ImageError
from vitcifar.serving.system_calls import refuse_other_calls

MAX_SECONDS = 5.0  # per image; 50 megapixels of PNG take 2 s
START_SECONDS = 30.0  # of a child, on a busy machine
# What the child gets of the environment: where Python and its libraries are, and no password or token.
ENVIRONMENT = {
    "PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "SYSTEMROOT",
}
# Bytes: glibc would keep the memory of a large image, and give that of a small one back, which takes time.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(8 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20)}
MAX_MEMORY = 2 * 2**30  # bytes of address space of a child
MAX_DECODERS = 8  # of a process: each may take that much memory
ROOT = Path(__file__).parents[2]
MAKING = threading.Lock()


class Decoder:
    """A child process that decodes; a new one is started after one that was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def decode(self, content: bytes, name: str, max_seconds: float) -> np.ndarray:
        """Decode like `read_image`. Raises ImageError, also when it takes too long or the child crashes."""
        process = self.start()
        assert process.stdin is not None and process.stdout is not None
        late = False
        try:
            self._await_start(process.stdout, name)
            request = {"name": name, "length": len(content), "more_formats": os.environ.get(MORE_FORMATS, "")}
            process.stdin.write(json.dumps(request).encode() + b"\n" + content)
            process.stdin.flush()
            if late := not _readable(process.stdout, max_seconds):
                raise OSError
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            if "error" not in answer:
                pixels = process.stdout.read(int(np.prod(answer["shape"])))
                return np.frombuffer(pixels, np.uint8).reshape(answer["shape"])
        except (OSError, ValueError):  # it has died
            self.stop()
            reason = f"takes longer than {max_seconds:g} seconds to decode" if late else "crashes its decoder"
            raise ImageError(f"{name} {reason}: save it again as PNG or JPEG.") from None
        raise ImageError(answer["error"])

    def _await_start(self, answers: IO[bytes], name: str) -> None:
        """Read the line that a child writes when it has started: an image does not pay for that with its time.

        Raises BusyError when it takes too long, OSError when the child has died.
        """
        if not self._ready:
            if not _readable(answers, START_SECONDS):
                self.stop()
                raise BusyError(f"{name} has to wait for a decoder to start: send it again in a moment.")
            if not answers.readline():
                raise OSError
            self._ready = True

    def start(self) -> "subprocess.Popen[bytes]":
        """The child, started if there is none."""
        if self._process is None or self._process.poll() is not None:
            self._ready = False
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pipesize=2**20,  # bytes; the default of 64 KiB makes a large file slower
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if name in ENVIRONMENT} | GIVE_BACK,
            )
        return self._process

    def stop(self) -> None:
        """Kill the child, if there is one."""
        if self._process is not None:
            with contextlib.suppress(OSError), self._process as process:  # closes the pipes and waits
                process.kill()
            self._process = None


def _readable(stream: IO[bytes], max_seconds: float) -> bool:
    """Whether a pipe, of which nothing is buffered, has something to read in time."""
    poll = select.poll()  # `select.select` cannot watch a file descriptor above 1023
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(1e3 * max_seconds))


def decoders() -> "queue.LifoQueue[Decoder]":
    """The idle decoders of this process, one for each core, up to 8; their children start when they are needed."""
    with MAKING:  # threads that come at once would each make some
        return _make_decoders()


@functools.cache
def _make_decoders() -> "queue.LifoQueue[Decoder]":
    idle: queue.LifoQueue[Decoder] = queue.LifoQueue()
    for _ in range(min(joblib.cpu_count(), MAX_DECODERS)):
        decoder = Decoder()
        atexit.register(decoder.stop)
        idle.put(decoder)
    return idle


def start_decoder() -> None:
    """Start the child that the first image needs."""
    decoder = decoders().get()
    decoder.start()
    decoders().put(decoder)


def read_isolated(source: bytes | Path, name: str = "", max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """`read_image` in a child process, for files that strangers send.

    Raises ImageError, after `max_seconds` too, and BusyError when no child is free until then.
    """
    known_formats()
    name = readable_name(source, name)
    content = source if isinstance(source, bytes) else read_file(source, name)
    idle = decoders()
    try:
        decoder = idle.get(timeout=max_seconds)
    except queue.Empty:
        raise BusyError(f"{name} has to wait for other images: send it again in a moment.") from None
    try:
        return decoder.decode(content, name, max_seconds)
    except ImageError:
        raise
    except BaseException:  # the child may be in the middle of an answer
        decoder.stop()
        raise
    finally:
        idle.put(decoder)


def confine() -> None:
    """Limit what this process can do, whatever a file makes of its decoder: memory, files and system calls."""
    Image.init()  # imports every format, as Pillow does later for a file that it does not know
    warm_up = io.BytesIO()
    Image.new("RGB", (1, 1)).save(warm_up, "PNG")
    read_image(warm_up.getvalue())
    with contextlib.suppress(ImportError):  # Windows has no limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            resource.setrlimit(kind, (0, 0))  # opens nothing more, neither files nor sockets
    refuse_other_calls()


def main() -> None:
    """Decode what comes on standard input until it ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    confine()
    answers.write(b"ready\n")
    answers.flush()
    while line := requests.readline():
        request = json.loads(line)
        os.environ[MORE_FORMATS] = request["more_formats"]
        try:
            image = read_image(requests.read(request["length"]), request["name"])
        except ImageError as error:
            answers.write(json.dumps({"error": str(error)}).encode() + b"\n")
        else:
            answers.write(json.dumps({"shape": image.shape}).encode() + b"\n")
            answers.write(np.ascontiguousarray(image).data)
        answers.flush()


if __name__ == "__main__":
    main()
