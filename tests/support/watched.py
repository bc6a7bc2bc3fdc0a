"""Toy versions with embeddings and a reference of them, and images that are like the reference or are not."""

import dataclasses
from typing import Any

import numpy as np
from support.serving import FakeRegistry, make_manifest
from support.toys import COLOURS, make_onnx

from vitcifar.data.edge_cases import to_png
from vitcifar.release.manifest import MANIFEST_FILE, Manifest, sha256_of
from vitcifar.release.reference import REFERENCE_FILE, write_reference

SWAPPED = ("green", "red", "blue")


def colours(count: int, *, mean: float = 120.0, seed: int = 0) -> np.ndarray:
    """Images uint8 (count, 4, 4, 3), each of one colour around the mean."""
    values = np.random.default_rng(seed).normal(mean, 25, (count, 1, 1, 3)).clip(0, 255).astype(np.uint8)
    return np.broadcast_to(values, (count, 4, 4, 3))


def files(images: np.ndarray) -> list[tuple[str, Any]]:
    """Images as the files of a form."""
    return [("image", (f"{index}.png", to_png(image))) for index, image in enumerate(images)]


def evaluation(num_images: int = 200, accuracy: float = 0.9) -> dict[str, Any]:
    """Recorded scores of perfectly calibrated predictions."""
    labels = np.zeros(num_images, int)
    predictions = (np.arange(num_images) >= accuracy * num_images).astype(int)
    lists = {"labels": labels.tolist(), "predictions": predictions.tolist(), "confidences": [accuracy] * num_images}
    return {**lists, "accuracy": accuracy}


class WatchedRegistry(FakeRegistry):
    """Version 1 has a reference; so has version 2, which takes red for green and green for red."""

    def pull(self, spec: str | int, **options: Any) -> Manifest:
        number = self.resolve(spec)
        self.pulled.append(number)
        folder = self.folder / str(number)
        folder.mkdir(exist_ok=True)
        names = COLOURS if number == 1 else SWAPPED
        make_onnx(folder / "model.onnx", names, release_id=f"toy{number}", embedding=True)
        write_reference(folder, colours(300, seed=100).mean(axis=(1, 2)))
        listed = {name: sha256_of(folder / name) for name in ("model.onnx", REFERENCE_FILE)}
        manifest = make_manifest(
            release_id=f"toy{number}",
            class_names=names,
            folder=folder,
            version=number,
            threshold=0.7,
            checks={"test": evaluation()},
            files=listed,
        )
        (folder / MANIFEST_FILE).write_text(dataclasses.replace(manifest, folder=None).to_json())
        return manifest
