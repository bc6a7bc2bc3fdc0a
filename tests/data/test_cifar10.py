"""CIFAR-10's real loading code on a small archive in CIFAR-10's real format, served on loopback."""

import hashlib
import http.server
import io
import itertools
import pickle
import socket
import tarfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from vitcifar.data import cifar10, download
from vitcifar.data.cifar10 import Cifar10
from vitcifar.data.splits import make_splits
from vitcifar.errors import DataError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ARCHIVE = "cifar-10-python.tar.gz"


class Archive:
    """Five training batches and a test batch of random images, pickled and packed as CIFAR-10's own are."""

    def __init__(self, num_per_batch: int = 40) -> None:
        generator = np.random.default_rng(0)
        self.pixels, self.labels, files = [], [], {}
        for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
            rows = generator.integers(0, 256, (num_per_batch, 3072), dtype=np.uint8)  # all red, all green, all blue
            labels = [(place * 7 + len(files)) % 10 for place in range(num_per_batch)]
            files[name] = pickle.dumps({"data": rows, "labels": labels, "batch_label": name}, protocol=2)
            self.pixels.append(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            self.labels.append(labels)
        files["batches.meta"] = pickle.dumps({"label_names": NAMES, "num_vis": 3072}, protocol=2)
        self.md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        self.content = packed.getvalue()

    def dataset(self, url: str) -> type:
        """torchvision's CIFAR10, with the address and the checksums of this archive."""
        from vitcifar.data.torchvision_compat import torchvision

        batches = [name for name in self.md5 if name.startswith("data_batch_")]
        changes = {
            "url": url,
            "tgz_md5": hashlib.md5(self.content).hexdigest(),
            "train_list": [[name, self.md5[name]] for name in batches],
            "test_list": [["test_batch", self.md5["test_batch"]]],
            "meta": {"filename": "batches.meta", "key": "label_names", "md5": self.md5["batches.meta"]},
        }
        return type("SmallCifar10", (torchvision.datasets.CIFAR10,), changes)


class Server:
    """Serves one archive on loopback, whole or misbehaving."""

    def __init__(self, content: bytes) -> None:
        self.content, self.num_downloads, self.behaviour = content, 0, "whole"
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(404 if server.behaviour == "missing" else 200)
                self.send_header("Content-Length", str(len(server.content)))
                self.end_headers()

            def do_GET(self):
                self.do_HEAD()
                if self.headers.get("Method") == "HEAD" or server.behaviour == "missing":
                    return  # torchvision looks for redirects with a GET that says HEAD
                server.num_downloads += 1
                content = server.content
                if server.behaviour == "wrong":
                    content = bytes(len(content))
                if server.behaviour in ("cut", "stalled"):
                    content = content[: len(content) // 2]
                self.wfile.write(content)
                if server.behaviour == "stalled":
                    server.released.wait(20)

            def log_message(self, *args):
                pass

        self.released = threading.Event()
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/{ARCHIVE}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(scope="module")
def archive() -> Archive:
    return Archive()


@pytest.fixture
def server(archive, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(archive.content)
    yield server
    server.stop()


@pytest.fixture
def dataset(archive, server):
    return archive.dataset(server.url)


@pytest.fixture
def offline(archive, monkeypatch):
    """The same archive at an address where nobody answers."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return archive.dataset(f"http://127.0.0.1:{port}/{ARCHIVE}")


def test_it_is_downloaded_once_and_read_unchanged(archive, server, dataset, tmp_path):
    source = Cifar10(tmp_path / "new" / "folder", dataset)
    assert source.class_names == tuple(NAMES)
    everything = source.read("train", range(200))
    np.testing.assert_array_equal(everything.images, np.concatenate(archive.pixels[:5]))
    assert everything.labels.tolist() == list(itertools.chain.from_iterable(archive.labels[:5]))
    np.testing.assert_array_equal(source.read("test", range(40)).images, archive.pixels[5])
    Cifar10(tmp_path / "new" / "folder", dataset)
    assert server.num_downloads == 1


def test_it_gives_chosen_images_in_the_asked_order(archive, dataset, tmp_path):
    source = Cifar10(tmp_path, dataset)
    dataset = source.read("test", [39, 3])
    assert dataset.ids == ("test/00039", "test/00003")
    np.testing.assert_array_equal(dataset.images, archive.pixels[5][[39, 3]])
    assert dataset.labels.tolist() == source.labels("test")[[39, 3]].tolist()
    assert dataset.labels.dtype == np.int64
    assert (dataset.images.dtype, dataset.images.flags.c_contiguous) == (np.uint8, True)


def test_it_makes_balanced_splits(dataset, tmp_path):
    splits = make_splits(
        Cifar10(tmp_path, dataset), train_per_class=12, validation_per_class=8, test_per_class=4, seed=0
    )
    assert {split: set(counts.values()) for split, counts in splits.counts().items()} == {
        "train": {12}, "validation": {8}, "test": {4}
    }  # fmt: skip


def test_reading_all_of_it_takes_the_memory_of_the_result_and_little_more(server, monkeypatch, tmp_path):
    archive = Archive(num_per_batch=400)
    server.content = archive.content
    source = Cifar10(tmp_path, archive.dataset(server.url))
    tracemalloc.start()
    dataset = source.read("train", np.arange(2000)[::-1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * dataset.images.nbytes


def test_an_archive_that_somebody_put_there_needs_no_network(archive, offline, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(archive.content)
    assert len(Cifar10(tmp_path, offline).ids("train")) == 200


def test_without_network_and_archive_it_says_what_to_type_and_writes_nothing(offline, tmp_path):
    folder = tmp_path / "data"
    with pytest.raises(DataError) as caught:
        Cifar10(folder, offline)
    message = str(caught.value)
    assert message.startswith(f"CIFAR-10 is not in {folder}, and 127.0.0.1:")
    assert f"put a complete {ARCHIVE} into {folder}, or type --preset digits, which needs no network." in message
    assert not folder.exists()


def test_a_half_copied_archive_without_network_is_reported_and_kept(archive, offline, tmp_path):
    half = archive.content[: len(archive.content) // 2]
    (tmp_path / ARCHIVE).write_bytes(half)
    with pytest.raises(DataError, match=f"{ARCHIVE} is broken or incomplete, and .* cannot be reached"):
        Cifar10(tmp_path, offline)
    assert (tmp_path / ARCHIVE).read_bytes() == half  # it may still be being copied


def test_a_half_copied_archive_is_replaced_when_there_is_a_network(archive, server, dataset, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(archive.content[:1000])
    assert len(Cifar10(tmp_path, dataset).ids("train")) == 200
    assert (tmp_path / ARCHIVE).read_bytes() == archive.content


@pytest.mark.parametrize("behaviour", ["cut", "wrong", "stalled", "missing"])
def test_a_download_that_fails_leaves_nothing_that_blocks_the_next_try(
    behaviour, server, dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(cifar10, "STALL_SECONDS", 0.5)
    server.behaviour = behaviour
    with pytest.raises(DataError, match=f"CIFAR-10 is not in .*: put a complete {ARCHIVE} into .* --preset digits"):
        Cifar10(tmp_path, dataset)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".cifar10.lock"] == []
    assert socket.getdefaulttimeout() is None
    server.behaviour = "whole"
    assert len(Cifar10(tmp_path, dataset).ids("train")) == 200


def test_what_a_killed_download_left_behind_does_not_block_the_next(dataset, tmp_path):
    (tmp_path / ".cifar10-download").mkdir()
    (tmp_path / ".cifar10-download" / ARCHIVE).write_bytes(b"half")
    assert len(Cifar10(tmp_path, dataset).ids("train")) == 200
    assert not (tmp_path / ".cifar10-download").exists()


def test_what_was_half_unpacked_is_unpacked_again(archive, offline, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(archive.content)
    Cifar10(tmp_path, offline)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:100])
    (tmp_path / "cifar-10-batches-py" / "batches.meta").unlink()
    np.testing.assert_array_equal(
        Cifar10(tmp_path, offline).read("train", range(200)).images, np.concatenate(archive.pixels[:5])
    )


def test_unpacked_images_are_enough_and_may_be_read_only(archive, offline, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(archive.content)
    Cifar10(tmp_path, offline)
    (tmp_path / ARCHIVE).unlink()
    before = sorted(tmp_path.iterdir())
    assert len(Cifar10(tmp_path, offline).ids("test")) == 40
    assert sorted(tmp_path.iterdir()) == before


def test_a_name_that_is_never_found_stops_within_seconds(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "REACH_SECONDS", 0.2)
    released = threading.Event()

    def never_found(*args, **options):
        released.wait(30)
        raise OSError("not found after all")

    monkeypatch.setattr(socket, "getaddrinfo", never_found)
    before = time.monotonic()
    with pytest.raises(DataError, match=r"nowhere\.example cannot be reached \(no answer in 0 seconds\)"):
        Cifar10(tmp_path, archive.dataset(f"http://nowhere.example/{ARCHIVE}"))
    assert time.monotonic() - before < 10
    released.set()


def test_a_file_in_the_place_of_the_folder_is_reported(archive, dataset, tmp_path):
    (tmp_path / "data").write_text("x")
    with pytest.raises(DataError, match=r"CIFAR-10 cannot be stored in .*data"):
        Cifar10(tmp_path / "data", dataset)


def test_two_that_start_at_once_download_once(server, dataset, tmp_path):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(len(Cifar10(tmp_path, dataset).ids("train")))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [200, 200]
    assert server.num_downloads == 1


def test_the_real_class_is_torchvisions_with_its_own_address_and_checksum(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(cifar10, "why_unreachable", lambda url: asked.append(url) or "no network in this test")
    with pytest.raises(DataError, match=r"www\.cs\.toronto\.edu cannot be reached"):
        Cifar10(tmp_path)
    assert asked == [f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"]
    assert list(Path(tmp_path).iterdir()) == []
