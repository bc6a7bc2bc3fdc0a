"""Features of frozen layers, kept on disk for other runs: computed once for several seeds, a sweep and evaluations.

A file is named after everything that decides its bits, and its content is compared with a checksum before it is used.
Letters in the shapes: N images, D hidden size, K classes."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitcifar import __version__
from vitcifar.cache import PARTIAL_PREFIX, features_dir, prune_features
from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset, pixel_hash
from vitcifar.model.network import Classifier, evaluation_mode, tensors_sha256
from vitcifar.model.predict import Arrays, Progress, predict_both, predict_embeddings, predict_head, predict_logits
from vitcifar.progress import notify as print_line
from vitcifar.training.distributed import autocast, broadcast, num_processes, rank, sum_over_processes
from vitcifar.training.numerics import numerics

PACKAGES = ("numpy", "pillow", "torch", "torchvision")  # those that compute

Key = Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Files of features in one folder, shared by any number of processes.

    A damaged file is computed again; one that cannot be written is not kept, which is said once. Those that were not
    used for longest are deleted, so that all take at most `max_bytes`.
    """

    folder: Path
    max_bytes: int
    notify: Callable[[str], object] = print_line
    said: set[str] = dataclasses.field(default_factory=set, compare=False)

    def get(self, key: Callable[[], Key], shape: tuple[int, ...], compute: Callable[[], Tensor]) -> Tensor:
        """The features of a key, float32 of this shape: read, or computed and kept.

        Of several processes, all of which must call this, rank 0 reads and writes, and alone calls `key`.
        """
        path, found = self.folder, None
        if rank() == 0:
            named = json.dumps([key(), shape], sort_keys=True)
            path = self.folder / f"{hashlib.sha256(named.encode()).hexdigest()}.safetensors"
            found = read_features(path, shape)
        if not broadcast("found" if found is not None else ""):
            features = compute()
            assert features.shape == shape, f"expected {shape}, got {tuple(features.shape)}"
            if rank() == 0:
                self._keep(path, features)
            return features
        features = found if found is not None else torch.zeros(shape)
        return sum_over_processes(features) if num_processes() > 1 else features

    def _keep(self, path: Path, features: Tensor) -> None:
        if features.nbytes > self.max_bytes:
            limit = f"cache_disk ({self.max_bytes / 1e9:g} GB)"
            self._say(f"The features take {features.nbytes / 1e9:.2f} GB, more than {limit}: they are not kept.")
            return
        try:
            write_features(path, features)
            prune_features(self.folder, self.max_bytes)
        except Exception as error:  # safetensors has an error of its own for a full disk
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            self._say(
                f"The features are not kept in {self.folder} ({reason}): free disk space, set VITCIFAR_CACHE to "
                "another folder, or type --cache-disk 0."
            )

    def _say(self, message: str) -> None:
        if message not in self.said:
            self.said.add(message)
            self.notify(message)


def open_feature_cache(config: TrainConfig) -> FeatureCache | None:
    """The cache of a config's features; None if it keeps none on disk."""
    return FeatureCache(features_dir(), int(config.cache_disk * 1e9)) if config.cache_disk else None


def read_features(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The features in a file, float32 of this shape; None, and no file any more, unless it is exactly as written."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    # RuntimeError: torch opens the file once more by its name, when another process may have deleted it.
    with contextlib.suppress(OSError, SafetensorError, KeyError, ValueError, RuntimeError):
        with safe_open(path, framework="pt") as file:
            checksum = (file.metadata() or {})["sha256"]
            features: Tensor = file.get_tensor("features").clone()  # from the file into memory, then compared
        if features.shape == shape and features.dtype == torch.float32 and sha256_of(features) == checksum:
            with contextlib.suppress(OSError):  # a cache that may only be read
                os.utime(path)
            return features
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def write_features(path: Path, features: Tensor) -> None:
    """Write features with their checksum; killed at any moment, `path` holds the complete old or new file, or none."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=PARTIAL_PREFIX, dir=path.parent)
    os.close(descriptor)
    try:
        features = features.contiguous()
        save_file({"features": features}, name, metadata={"sha256": sha256_of(features)})
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def sha256_of(features: Tensor) -> str:
    return hashlib.sha256(features.numpy().data).hexdigest()


@torch.no_grad()
def network_key(network: Classifier, *, depth: int, precision: str) -> Key:
    """What decides the bits of features, of any images: weights, depth, precision, packages, threads, machine.

    The features of two images of noise stand for what has no name here, such as a layer without weights.
    """
    names = [f"backbone.encoder.layers.{name}." for name, _ in network.backbone.encoder.layers.named_children()]
    above = ["head.", "temperature", *names[depth:], *(["backbone.encoder.ln."] if depth <= len(names) else [])]
    frozen = {name: value for name, value in network.state_dict().items() if not name.startswith(tuple(above))}
    device = network.head.weight.device
    noise = np.random.default_rng(0).integers(0, 256, (2, 48, 40, 3), dtype=np.uint8)
    with evaluation_mode(network), autocast(device, precision):
        probe = network.forward_features(network.preprocess(torch.from_numpy(noise).to(device)), depth)
    return {
        "weights": tensors_sha256(frozen),
        "depth": depth,
        "image_size": network.image_size,
        "preprocessing": [network.preprocess.mean.flatten().tolist(), network.preprocess.std.flatten().tolist()],
        "precision": precision,
        "device": device.type,
        "num_processes": num_processes(),
        "probe": sha256_of(probe.float().cpu().contiguous()),
        "numerics": numerics(),
        "versions": [__version__, *(importlib.metadata.version(package) for package in PACKAGES)],
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Embedder:
    """Embeddings and logits of images by a network whose layers below the head no longer change.

    Embeddings are kept in the cache, if there is one. With a frozen backbone the logits are those of the head on them,
    so that all seeds compute them once.
    """

    network: Classifier
    config: TrainConfig
    cache: FeatureCache | None

    @cached_property
    def key(self) -> Key:
        return network_key(self.network, depth=len(self.network.blocks) + 1, precision="fp32")

    def embed(self, dataset: ImageDataset, *, progress: Progress = iter) -> np.ndarray:
        """Embeddings (N, D), float32, of all images of a dataset, as of `predict_embeddings`."""
        return self._embed(dataset.images, lambda: dataset.fingerprint, progress)

    def _embed(self, images: Arrays, fingerprint: Callable[[], str], progress: Progress = iter) -> np.ndarray:
        batch_size = self.config.batch_size
        compute = partial(predict_embeddings, self.network, images, batch_size, progress=progress)
        if self.cache is None:
            return compute()

        def key() -> Key:
            return {**self.key, "images": fingerprint(), "batch_size": batch_size, "views": "none"}

        shape = (len(images), self.network.head.in_features)
        return self.cache.get(key, shape, lambda: torch.from_numpy(compute())).numpy()

    def predict(self, dataset: ImageDataset) -> tuple[np.ndarray, np.ndarray]:
        """Logits (N, K) and embeddings (N, D), float32, of all images of a dataset."""
        if self.config.train_layers != "head":
            return predict_both(self.network, dataset.images, self.config.batch_size)
        embeddings = self.embed(dataset)
        return predict_head(self.network, embeddings, self.config.batch_size), embeddings

    def logits(self, images: Arrays) -> np.ndarray:
        """Logits (N, K), float32, of uint8 images (N, H, W, 3) or (H, W, 3) each."""
        if self.config.train_layers != "head":
            return predict_logits(self.network, images, self.config.batch_size)
        embeddings = self._embed(images, lambda: hashlib.sha256("".join(map(pixel_hash, images)).encode()).hexdigest())
        return predict_head(self.network, embeddings, self.config.batch_size)
