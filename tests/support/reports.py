"""A small evaluation with every part of an analysis, and readers of the figures and the HTML that it gives."""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.analysis import Analysis, nearest_training
from vitcifar.evaluation.audit import audit_images
from vitcifar.evaluation.calibration import fit_threshold, softmax
from vitcifar.evaluation.compare import Comparison, compare_evaluations
from vitcifar.evaluation.corruptions import evaluate_robustness
from vitcifar.evaluation.duplicates import find_duplicates, thumbnails
from vitcifar.evaluation.metrics import Evaluation, evaluate
from vitcifar.evaluation.ood import evaluate_ood
from vitcifar.evaluation.slices import evaluate_slices

HOSTILE = ("cat", "<script>alert(1)</script>", "a & b $x_1$", "'\"><img src=x onerror=y>")
NUM = 80


@functools.cache
def scratch() -> "tempfile.TemporaryDirectory[str]":
    """A folder until the tests end."""
    return tempfile.TemporaryDirectory()


@dataclasses.dataclass
class Memory:
    """A run that remembers what it is given."""

    run_id: str = "0" * 32
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    texts: dict[str, str] = dataclasses.field(default_factory=dict)
    figures: dict[str, Figure] = dataclasses.field(default_factory=dict)
    images: dict[str, Image.Image] = dataclasses.field(default_factory=dict)
    histories: dict[str, list[tuple[int, float]]] = dataclasses.field(default_factory=dict)
    tables: dict[str, Mapping[str, Sequence[Any]]] = dataclasses.field(default_factory=dict)
    writer: SummaryWriter = dataclasses.field(default_factory=lambda: SummaryWriter(scratch().name), compare=False)

    @property
    def folder(self) -> Path:
        return Path(scratch().name)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics |= metrics

    def flush(self) -> None: ...

    @property
    def event_files(self) -> Path:
        """A folder with the `histories` in an event file."""
        folder = Path(tempfile.mkdtemp(dir=scratch().name))
        with SummaryWriter(str(folder)) as writer:
            for name, points in self.histories.items():
                for step, value in points:
                    writer.add_scalar(name, value, step)
        return folder

    def log_text(self, name: str, text: str) -> None:
        self.texts[name] = text

    def log_json(self, name: str, content: Any) -> None:
        self.texts[name] = json.dumps(content)

    def log_figure(self, name: str, figure: Figure) -> None:
        self.figures[name] = figure

    def log_image(self, name: str, image: Image.Image) -> None:
        self.images[name] = image

    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        self.tables[name] = columns


@dataclasses.dataclass(frozen=True)
class Result:
    """Random images, logits that are often right, and what follows from them."""

    dataset: ImageDataset
    logits: np.ndarray
    evaluation: Evaluation
    analysis: Analysis
    comparison: Comparison

    @property
    def probabilities(self) -> np.ndarray:
        return softmax(self.logits)


def make_result() -> Result:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, NUM)
    logits = random.normal(size=(NUM, 4))
    logits[np.arange(NUM), labels] += 1.5
    images = random.integers(0, 256, (NUM, 16, 16, 3)).astype(np.uint8)
    ids = tuple(f"<i>{index}</i>.png" for index in range(NUM))
    dataset = ImageDataset(images=images, labels=labels, class_names=HOSTILE, ids=ids)
    evaluation = evaluate(logits, labels, HOSTILE, fingerprint="f" * 64)
    worse = evaluate(logits[:, ::-1], labels, HOSTILE, fingerprint="f" * 64)
    errors, embeddings = np.flatnonzero(~evaluation.correct)[:3], thumbnails(images)
    analysis = Analysis(
        threshold=fit_threshold(evaluation.confidences, evaluation.correct, 0.8),
        slices=evaluate_slices(evaluation, dataset),
        robustness=evaluate_robustness(lambda _: logits, dataset, names=("fog", "contrast"), severities=(1, 5)),
        ood=evaluate_ood(logits, logits[:40] / 9),
        ood_source="<other> images",
        duplicates=find_duplicates(
            {"train": dataset, "test": dataset.subset([0, 1])},
            {"train": thumbnails(dataset.images), "test": thumbnails(dataset.images[:2])},
        ),
        attention={int(index): np.eye(4) for index in errors},
        nearest=nearest_training(errors, embeddings, dataset, embeddings, k=3),
        audit=audit_images({"train": dataset.subset([0, 1]), "test": dataset}, probabilities={"test": softmax(logits)}),
    )
    comparison = compare_evaluations(worse, evaluation, margin=0.02, names=("version 3", "version 5 (champion)"))
    return Result(dataset, logits, evaluation, analysis, comparison)


SCRIPTS = ("猫", "собака", "עורב", "قطة", "고양이", "बिल्ली", "แมว", "トラック", "🐴", "$x_1$ & <b>")


def many_classes(num_classes: int, per_class: int = 5) -> tuple[Evaluation, ImageDataset, np.ndarray]:
    """Random images and logits that are often right, of classes in many scripts; the last class is never predicted."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), per_class)
    names = tuple(f"{SCRIPTS[label % len(SCRIPTS)]} {label}" for label in range(num_classes))
    logits = random.normal(size=(len(labels), num_classes))
    logits[np.arange(len(labels)), labels] += 3.5
    logits[np.arange(len(labels)), np.minimum(labels ^ 1, num_classes - 1)] += 1.5  # pairs that are confused
    logits[:, -1] = -9
    images = random.integers(0, 256, (len(labels), 16, 16, 3)).astype(np.uint8)
    ids = tuple(f"{names[label]}/{index}.png" for index, label in enumerate(labels))
    dataset = ImageDataset(images=images, labels=labels, class_names=names, ids=ids)
    return evaluate(logits, labels, names, fingerprint="f" * 64), dataset, softmax(logits)


def texts(figure: Figure) -> list[str]:
    """Every visible text of a figure that is not empty."""
    figure.draw_without_rendering()  # type: ignore[no-untyped-call]
    found = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text for artist in found if (text := artist.get_text())]  # type: ignore[attr-defined]


class Page(HTMLParser):
    """The tags, attributes and text of a page; fails on a tag that is closed out of order."""

    VOID = ("meta", "img", "br", "hr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, Any]] = []
        self.text = ""
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        """Every value of an attribute."""
        return [value for attribute, value in self.attributes if attribute == name]
