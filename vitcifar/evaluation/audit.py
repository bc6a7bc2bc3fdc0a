"""An audit of a dataset, image by image: likely label errors, duplicates, and images that look odd.

N images, K classes, D features."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitcifar.data.dataset import ImageDataset, pixel_hash
from vitcifar.data.quality import QUALITY_CHECKS, measure, quality_scores
from vitcifar.evaluation.duplicates import nearest_duplicates
from vitcifar.evaluation.label_errors import find_label_errors, own_probability

LABEL_ERROR, IDENTICAL, NEAR = "label error", "identical", "near-duplicate"
KINDS = (LABEL_ERROR, IDENTICAL, NEAR, *QUALITY_CHECKS)
# Of a kind of which there are more, label errors are cut off and odd looks are not listed: they are how the images are.
MAX_SHARE, MAX_FEW = 0.1, 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Issue:
    """One finding of one kind about one image; `score` is between 0 and 1, the lower the worse.

    The score of a label error is the probability of its label, that of a duplicate 1 less the cosine.
    """

    kind: str
    split: str
    index: int  # in its split
    id: str
    label: str
    score: float
    detail: str  # in a few words
    suggestion: str
    other: tuple[str, int] | None = None  # split and index of a duplicate


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """Issues in the order of KINDS, the worst of each kind first; `notes` say what was not looked for or not listed."""

    datasets: Mapping[str, ImageDataset]  # that were audited, by split
    issues: tuple[Issue, ...]
    notes: tuple[str, ...] = ()
    num_judged: int = 0  # images whose label was compared with a prediction
    accuracy: float = float("nan")  # of these predictions

    @property
    def num_images(self) -> int:
        return sum(map(len, self.datasets.values()))

    def of_kind(self, kind: str) -> list[Issue]:
        return [issue for issue in self.issues if issue.kind == kind]

    def counts(self) -> dict[str, int]:
        """Kind -> images of it, of the kinds that were found."""
        found = Counter(issue.kind for issue in self.issues)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def to_dict(self) -> dict[str, Any]:
        """The audit as JSON types."""
        rows = [{**dataclasses.asdict(issue), "other": issue.other and list(issue.other)} for issue in self.issues]
        return {
            "num_images": {split: len(dataset) for split, dataset in self.datasets.items()},
            "num_judged": self.num_judged,
            "accuracy": self.accuracy if self.num_judged else None,
            "notes": list(self.notes),
            "issues": rows,
        }


def audit_images(
    datasets: Mapping[str, ImageDataset],
    *,
    probabilities: Mapping[str, np.ndarray],
    embeddings: Mapping[str, np.ndarray] | None = None,
    notes: Sequence[str] = (),
) -> Audit:
    """Audit the images of some splits, all together.

    `probabilities` (N, K) of some of the splits are predictions by models that did not learn from these images; labels
    of the others are not judged. Near-duplicates are searched in `embeddings` (N, D), if given.
    """
    datasets = {split: dataset for split, dataset in datasets.items() if len(dataset)}
    judged = {split: probabilities[split] for split in datasets if split in probabilities}
    places = [(split, index) for split, dataset in datasets.items() for index in range(len(dataset))]
    hashes, measured = [], []
    for dataset in datasets.values():
        for image in dataset.images:  # once: it may be decoded now
            hashes.append(pixel_hash(image))
            measured.append(measure(image))
    errors, accuracy, cut = _label_errors(datasets, judged)
    odd, common = _odd_images(datasets, places, np.array(measured))
    return Audit(
        datasets=datasets,
        issues=(*errors, *_duplicates(datasets, places, hashes, embeddings), *odd),
        notes=(*notes, *cut, *common),
        num_judged=sum(map(len, judged.values())),
        accuracy=accuracy,
    )


def _label_errors(
    datasets: Mapping[str, ImageDataset], probabilities: Mapping[str, np.ndarray]
) -> tuple[list[Issue], float, list[str]]:
    """Likely label errors, the accuracy of the predictions, and what has to be said of them."""
    if not probabilities:
        return [], float("nan"), []
    places = [(split, index) for split in probabilities for index in range(len(datasets[split]))]
    labels = np.concatenate([datasets[split].labels for split in probabilities])
    predicted = np.concatenate([*probabilities.values()])
    accuracy = float((predicted.argmax(axis=1) == labels).mean())
    found, own, notes = find_label_errors(labels, predicted), own_probability(labels, predicted), []
    most = int(max(MAX_FEW, MAX_SHARE * len(labels)))
    if len(found) > most:
        notes.append(
            f"{len(found):,} labels are likely wrong by the predictions, which have an accuracy of {accuracy:.0%}: the "
            f"{most:,} most likely ones are listed. Where predictions are poor, most of these labels are right."
        )
    issues = []
    for index in found[:most].tolist():
        split, row = places[index]
        guess = datasets[split].class_names[int(predicted[index].argmax())]
        detail = f"rather {guess} ({predicted[index].max():.0%})"
        advice = f"{detail}: look at it, and move it to that class if it is one"
        issues.append(_issue(LABEL_ERROR, datasets, (split, row), float(own[index]), detail, advice))
    return issues, accuracy, notes


def _duplicates(
    datasets: Mapping[str, ImageDataset],
    places: Sequence[tuple[str, int]],
    hashes: Sequence[str],
    embeddings: Mapping[str, np.ndarray] | None,
) -> list[Issue]:
    """Identical images, then near-duplicates; first those in two splits, and those of two classes."""
    splits = np.array([split for split, _ in places])
    rows = None if embeddings is None else np.concatenate([embeddings[split] for split in datasets])
    other, similarity = nearest_duplicates(hashes, splits, rows)
    issues = []
    for index in np.flatnonzero(other >= 0).tolist():
        place, twin = places[index], places[other[index]]
        label, twin_label = (datasets[split].labels[row] for split, row in (place, twin))
        identical = hashes[index] == hashes[other[index]]
        detail = "identical" if identical else f"cosine {similarity[index]:.4f}"
        advice = f"{'identical' if identical else 'nearly identical'} to {datasets[twin[0]].ids[twin[1]]}"
        if label != twin_label:
            advice += ", which has another class: keep the one whose class is right"
        elif place[0] != twin[0]:
            advice += ": keep it in one of the splits"
        else:
            advice += ": keep one of them"
        kind, score = IDENTICAL if identical else NEAR, float(1 - similarity[index])
        issue = _issue(kind, datasets, place, score, detail, advice, twin)
        issues.append((not identical, place[0] == twin[0], label == twin_label, score, index, issue))
    return [row[-1] for row in sorted(issues, key=lambda row: row[:-1])]


def _odd_images(
    datasets: Mapping[str, ImageDataset], places: Sequence[tuple[str, int]], measured: np.ndarray
) -> tuple[list[Issue], list[str]]:
    """Images that look odd, and of what kinds there are too many to call them that."""
    issues, notes = [], []
    for kind, scores in quality_scores(measured).items():
        check = QUALITY_CHECKS[kind]
        found = np.flatnonzero(scores < check.limit)
        if len(found) > max(MAX_FEW, MAX_SHARE * len(places)):
            notes.append(
                f"{kind.capitalize()}: {len(found):,} of {len(places):,} images. As so many are, none is listed."
            )
            continue
        for index in found[np.argsort(scores[found], kind="stable")].tolist():
            score = float(scores[index])
            issues.append(_issue(kind, datasets, places[index], score, f"score {score:.2f}", check.advice))
    return issues, notes


def _issue(
    kind: str,
    datasets: Mapping[str, ImageDataset],
    place: tuple[str, int],
    score: float,
    detail: str,
    suggestion: str,
    other: tuple[str, int] | None = None,
) -> Issue:
    split, index = place
    dataset = datasets[split]
    return Issue(
        kind=kind,
        split=split,
        index=index,
        id=dataset.ids[index],
        label=dataset.class_names[dataset.labels[index]],
        score=score,
        detail=detail,
        suggestion=suggestion,
        other=other,
    )
