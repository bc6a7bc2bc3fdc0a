"""What a person would say about an evaluation and its analysis: short sentences, the most important first."""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from vitcifar.errors import listed
from vitcifar.evaluation.analysis import Analysis
from vitcifar.evaluation.audit import Audit
from vitcifar.evaluation.calibration import Threshold
from vitcifar.evaluation.corruptions import Robustness
from vitcifar.evaluation.duplicates import Duplicates
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.evaluation.ood import OODScore
from vitcifar.evaluation.slices import Slice
from vitcifar.report.html import Finding

MAX_NAMES = 6  # of classes in a sentence
ALPHA = 0.05  # below this p-value a slice counts as worse


def findings(evaluation: Evaluation, analysis: Analysis) -> list[Finding]:
    """The sentences of a summary."""
    found = [*accuracy_findings(evaluation), *class_findings(evaluation), calibration_finding(evaluation)]
    if analysis.threshold:
        found.append(threshold_finding(analysis.threshold))
    found += slice_findings(analysis.slices, evaluation.accuracy)
    if analysis.duplicates is not None:
        found.append(duplicate_finding(analysis.duplicates))
    if analysis.audit and analysis.audit.issues:
        found.append(audit_finding(analysis.audit))
    if analysis.robustness:
        found.append(robustness_finding(analysis.robustness))
    if analysis.ood:
        found.append(ood_finding(analysis.ood[0], analysis.ood_source))
    return found


def chance(evaluation: Evaluation) -> float:
    """The accuracy of always predicting the most frequent class; 1 / K where all are equally frequent."""
    return float(np.bincount(evaluation.labels).max() / evaluation.num_images)


def accuracy_findings(evaluation: Evaluation) -> Iterator[Finding]:
    """Correct images against chance, and a class that dominates the predictions."""
    counts, guess = evaluation.confusion.sum(axis=1), chance(evaluation)
    by_chance = f"chance is {share(guess)}"
    if counts.min() != counts.max():
        name = isolated(evaluation.class_names[int(counts.argmax())])
        by_chance = f"always predicting {name}, the most frequent class, gives {share(guess)}"
    text = f"{int(evaluation.correct.sum()):,} of {evaluation.num_images:,} images are correct; {by_chance}."
    if evaluation.accuracy_low <= guess:
        yield Finding(text=f"{text} The interval does not exclude it.", tone="bad")
    else:
        yield Finding(text=text)
    predicted = evaluation.confusion.sum(axis=0) / evaluation.num_images
    top = int(predicted.argmax())
    if len(counts) > 2 and predicted[top] > 2 * counts[top] / evaluation.num_images and predicted[top] > 0.1:
        name, own = isolated(evaluation.class_names[top]), share(counts[top] / evaluation.num_images)
        text = f"Predicts {name} for {share(predicted[top])} of the images, although it is the class of {own}."
        yield Finding(text=text, tone="bad")


def class_findings(evaluation: Evaluation) -> Iterator[Finding]:
    """Classes that are never predicted, the most confused ones, and the lowest recall of the others."""
    predicted = evaluation.confusion.sum(axis=0)
    scores = [score for score in evaluation.classes if score.support]
    never = [s.name for s, count in zip(evaluation.classes, predicted, strict=True) if s.support and not count]
    if never:
        yield Finding(text=f"Never predicts {listed([*map(isolated, never)], MAX_NAMES)}.", tone="bad")
    pairs = [pair for pair in evaluation.confused if pair.count > 1][:3]
    if pairs:
        texts = [
            f"{isolated(p.label)} as {isolated(p.prediction)}, {p.count:,} of {round(p.count / p.share):,}"
            for p in pairs
        ]
        yield Finding(text=f"Most confused: {'; '.join(texts)}.")
    elif evaluation.confused:
        yield Finding(text="No class is taken for the same other class more than once.", tone="good")
    rest = [score for score in scores if score.name not in never]
    if rest and (lowest := min(rest, key=lambda score: score.recall)).recall < 1:
        correct = f"{round(lowest.recall * lowest.support):,} of {lowest.support:,} images"
        of = "Lowest recall of the classes that it predicts" if never else "Lowest recall"
        yield Finding(text=f"{of}: {isolated(lowest.name)}, {share(lowest.recall)} ({correct}).")


def calibration_finding(evaluation: Evaluation) -> Finding:
    """Whether the mean confidence lies in the interval of the accuracy."""
    mean = float(evaluation.confidences.mean())
    text = f"mean confidence {share(mean)}, accuracy {share(evaluation.accuracy)}."
    if evaluation.accuracy_low <= mean <= evaluation.accuracy_high:
        return Finding(text=f"Confidence fits accuracy: {text}", tone="good")
    return Finding(text=f"{'Over' if mean > evaluation.accuracy else 'Under'}confident: {text}", tone="bad")


def threshold_finding(threshold: Threshold) -> Finding:
    """How many predictions are confident, and how many of them correct."""
    target = f"the target is {share(threshold.target)}"
    if threshold.confidence is None:
        return Finding(text=f"Never confident: no threshold reached the precision on validation; {target}.", tone="bad")
    if not threshold.num_answered:
        return Finding(text=f"No prediction reaches the confidence threshold {threshold.text}; {target}.", tone="bad")
    text = f"Confident on {share(threshold.coverage)} of the images; {share(threshold.precision)} of these are correct"
    if threshold.precision >= threshold.target:
        return Finding(text=f"{text}, {target}.", tone="good")
    by_chance = threshold.precision_high >= threshold.target
    return Finding(text=f"{text}, {target}.", tone="plain" if by_chance else "bad")


def slice_findings(slices: Sequence[Slice], accuracy: float) -> Iterator[Finding]:
    """Slices that are significantly worse than the other images."""
    for row in slices:
        if row.p_value < ALPHA and row.accuracy < accuracy:
            text = (
                f"Significantly worse where {row.property} is {row.name}: {share(row.accuracy)} of {row.count:,} images"
            )
            yield Finding(text=f"{text}, {share(accuracy)} of all.", tone="bad")


def duplicate_finding(duplicates: Duplicates) -> Finding:
    """Whether images of one split come back in another."""
    if not duplicates.num_pairs:
        return Finding(text="No image has a near-duplicate in another split.", tone="good")
    images = ", ".join(f"{number:,} of {split}" for split, number in duplicates.num_images.items() if number)
    tested = bool(duplicates.num_images.get("test"))
    end = "the accuracy may be too high" if tested else "no test image is among them"
    return Finding(text=f"Near-duplicates between splits ({images}): {end}.", tone="bad" if tested else "plain")


def audit_finding(audit: Audit) -> Finding:
    """How many images or labels stand out, of which kinds."""
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in audit.counts().items())
    return Finding(text=f"Images to look at before the next training ({kinds}): see Data.")


def robustness_finding(robustness: Robustness) -> Finding:
    """Accuracy on corrupted images, and the most harmful corruption."""
    means = robustness.accuracy.mean(axis=1)
    worst = int(means.argmin())
    text = (
        f"Corrupted images: {share(robustness.mean_accuracy)}, clean {share(robustness.clean_accuracy)}, on the same "
        f"{robustness.num_images:,} images"
    )
    if caution := robustness.caution():
        return Finding(text=f"{text}. {caution}")
    harmful = f"{robustness.names[worst].replace('_', ' ')}, {share(float(means[worst]))}"
    return Finding(text=f"{text}; the most harmful is {harmful}.")


def ood_finding(score: OODScore, source: str) -> Finding:
    """How well the best score separates images of another source."""
    auroc = f"AUROC {score.auroc:.2f} by {score.name.replace('_', ' ')}, where 0.5 is chance."
    if score.auroc_low <= 0.5:
        return Finding(text=f"Images of {source} are not told apart: {auroc}", tone="bad")
    return Finding(text=f"Images of {source} are told apart: {auroc}", tone="good")


def isolated(name: str) -> str:
    """A class name in a sentence: one that is written from right to left keeps the order of the words around it."""
    isolates = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in name)
    return f"\N{FIRST STRONG ISOLATE}{name}\N{POP DIRECTIONAL ISOLATE}" if isolates else name


def share(value: float) -> str:
    """A share as a percentage, without decimals that are zero: 10%, 96.8%."""
    return f"{value:.1%}".replace(".0%", "%")
