"""The parts that a prediction rests on are those whose removal changes it, measured against random parts."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.toys import make_image

from vitcifar.data.image import read_image
from vitcifar.data.splits import read_splits
from vitcifar.errors import ImageError
from vitcifar.inference.occlusion import GRID, occlude
from vitcifar.inference.session import OnnxClassifier
from vitcifar.model.network import build_network
from vitcifar.presets import resolve
from vitcifar.release.onnx_graph import save_graph
from vitcifar.training.loop import fit

NUM_IMAGES, NUM_ORDERS = 30, 2


def test_the_part_with_the_evidence_has_the_largest_drop(toy_onnx):
    image = read_image(make_image("gray", (70, 35)))
    image[15:20, 50:60] = (255, 0, 0)  # the sixth cell of the fourth row: only there is more red than green
    found = occlude(OnnxClassifier(toy_onnx), image)
    assert found.label == "red" and found.drop.shape == found.covered.shape == (GRID, GRID)
    assert np.unravel_index(found.drop.argmax(), found.drop.shape) == (3, 5)
    assert found.covered[3, 5] < found.probability
    others = np.delete(found.drop.ravel(), found.drop.argmax())
    assert np.abs(others).max() < 0.1 * found.drop.max()


def test_an_image_of_one_colour_rests_on_no_part(toy_onnx):
    found = occlude(OnnxClassifier(toy_onnx), read_image(make_image("blue", (5, 150))))
    assert found.label == "blue" and np.abs(found.drop).max() < 1e-6


def test_a_wrong_array_is_refused(toy_onnx):
    with pytest.raises(ImageError, match="expected uint8"):
        occlude(OnnxClassifier(toy_onnx), np.zeros((4, 4, 3), np.float32))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A network that was trained on digits, as the float file of a release and in int8; its splits."""
    folder = tmp_path_factory.mktemp("digits")
    config = resolve("digits", train_per_class=60, validation_per_class=5, test_per_class=5, epochs=6, device="cpu")
    splits = read_splits(config)
    network = build_network(config, splits.class_names)
    fit(network, splits.train, splits.validation, config, log=lambda step, metrics: None, folder=folder)
    for kind in ("float", "int8"):
        path, names = folder / f"{kind}.onnx", splits.class_names
        save_graph(network, path, class_names=names, release_id="x", int8=kind == "int8")
    return folder, splits


def area(classifier: OnnxClassifier, start: np.ndarray, end: np.ndarray, order: np.ndarray, label: int) -> float:
    """The mean probability of a label while the cells of one image become those of another, in an order."""
    edges = np.linspace(0, len(start), GRID + 1).round().astype(int)
    cells = [
        np.s_[top:bottom, left:right]
        for top, bottom in itertools.pairwise(edges)
        for left, right in itertools.pairwise(edges)
    ]
    steps = [start]
    for index in order:
        steps.append(steps[-1].copy())
        steps[-1][cells[index]] = end[cells[index]]
    return float(np.trapezoid(classifier.probabilities(steps)[:, label]) / len(order))


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_deleting_and_inserting_by_the_map_beats_a_random_order(trained, kind):
    """The deletion and insertion curves of Petsiuk et al. 2018 (RISE) on images that were not trained on."""
    folder, splits = trained
    classifier, random = OnnxClassifier(folder / f"{kind}.onnx"), np.random.default_rng(0)
    side = classifier.image_size
    filled = np.full(
        (side, side, 3), np.mean(splits.train.images), np.uint8
    )  # another colour than the map is made with
    areas: dict[str, list[float]] = {"deletion": [], "insertion": [], "random deletion": [], "random insertion": []}
    for image in list(splits.test.images)[:NUM_IMAGES]:
        found = occlude(classifier, image)
        label = classifier.class_names.index(found.label)
        resized = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
        order = np.argsort(-found.drop.ravel(), kind="stable")
        for name, start, end in (("deletion", resized, filled), ("insertion", filled, resized)):
            areas[name].append(area(classifier, start, end, order, label))
            orders = [random.permutation(GRID * GRID) for _ in range(NUM_ORDERS)]
            areas[f"random {name}"].append(np.mean([area(classifier, start, end, one, label) for one in orders]))
    mean = {name: float(np.mean(values)) for name, values in areas.items()}
    assert mean["deletion"] < 0.7 * mean["random deletion"], mean
    assert mean["insertion"] > 1.15 * mean["random insertion"], mean
