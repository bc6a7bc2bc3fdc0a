"""Sections of a report: one function per part of the evaluation and the analysis; and their images as one sheet."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from vitcifar.data.contact_sheet import Tile, Tone, tile_sheet
from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.analysis import Analysis, NearestImages
from vitcifar.evaluation.calibration import Threshold, best_aurc
from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.corruptions import Robustness
from vitcifar.evaluation.duplicates import Duplicates
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.evaluation.ood import OODScore
from vitcifar.evaluation.slices import Slice
from vitcifar.report import plots
from vitcifar.report.html import Number, Section, Table

MAX_PAIRS = 12  # of confused classes


def summary(evaluation: Evaluation, analysis: Analysis) -> Section:
    """Accuracy with its interval, every metric, and one number of each part of the analysis."""
    fitted = "fitted on validation" if evaluation.temperature != 1 else "no scaling"
    optimal = f"optimal {best_aurc(evaluation.correct):.4f}"
    return Section(
        title="Summary",
        headline=evaluation,
        numbers=[
            Number(name="Top-2 accuracy", value=f"{evaluation.top2_accuracy:.1%}"),
            Number(name="Top-3 accuracy", value=f"{evaluation.top3_accuracy:.1%}"),
            Number(name="F1", value=f"{evaluation.f1_macro:.3f}", note="macro average"),
            Number(name="Loss", value=f"{evaluation.loss:.3f}", note="cross-entropy, nats per image"),
            Number(name="Calibration error", value=f"{evaluation.ece:.3f}", note="ECE, 15 bins"),
            Number(name="Brier score", value=f"{evaluation.brier:.3f}", note="0 best, 2 worst"),
            Number(name="Temperature", value=f"{evaluation.temperature:.2f}", note=fitted),
            Number(name="AURC", value=f"{evaluation.aurc:.4f}", note=optimal),
            *analysis_numbers(analysis),
        ],
    )


def analysis_numbers(analysis: Analysis) -> Iterator[Number]:
    """One number of each part of the analysis that exists, for the summary."""
    if threshold := analysis.threshold:
        note = f"threshold {threshold.text}, coverage {threshold.coverage:.0%}"
        precision = f"{threshold.precision:.1%}" if threshold.num_answered else "-"
        yield Number(name="Precision at threshold", value=precision, note=note)
    if analysis.slices:
        weakest = min(analysis.slices, key=lambda row: row.accuracy)
        note = f"{weakest.property}: {weakest.name}, {weakest.count:,} images"
        yield Number(name="Weakest slice", value=f"{weakest.accuracy:.1%}", note=note)
    if robustness := analysis.robustness:
        note = f"mean over {len(robustness.names)} corruptions; clean {robustness.clean_accuracy:.1%}"
        yield Number(name="Corruption accuracy", value=f"{robustness.mean_accuracy:.1%}", note=note)
    if analysis.ood:
        best = analysis.ood[0]
        yield Number(name="OOD AUROC", value=f"{best.auroc:.3f}", note=f"by {best.name.replace('_', ' ')}")
    if analysis.duplicates is not None:
        note = f"between splits; {analysis.duplicates.num_same_pixels:,} with identical pixels"
        yield Number(name="Near-duplicates", value=f"{analysis.duplicates.num_pairs:,}", note=note)


def comparison_section(comparison: Comparison) -> Section:
    """The outcome of a comparison with its numbers."""
    name, other = (f"{name[:1].upper()}{name[1:]}" for name in comparison.names)
    numbers = [
        Number(name=name, value=f"{comparison.accuracy:.1%}", note="accuracy"),
        Number(name=other, value=f"{comparison.other_accuracy:.1%}", note="accuracy"),
        Number(name=f"Only {comparison.names[0]} correct", value=f"{len(comparison.gained)}", note="images"),
        Number(name=f"Only {comparison.names[1]} correct", value=f"{len(comparison.lost)}", note="images"),
        Number(name="McNemar p-value", value=f"{comparison.p_value:.2g}", note="two-sided"),
    ]
    if comparison.margin:
        note = f"margin {100 * comparison.margin:.1f} points"
        numbers.append(Number(name="Not worse", value="yes" if comparison.not_worse else "not shown", note=note))
    sentence = comparison.summary()
    return Section(
        title="Comparison",
        verdict=sentence[0].upper() + sentence[1:] + ".",
        tone="good" if comparison.outcome == "better" else "bad" if comparison.outcome == "worse" else "plain",
        numbers=numbers,
        figures=[plots.comparison_chart(comparison)],
        logged_as="compare/difference",
    )


def class_section(evaluation: Evaluation) -> Section:
    """Confusion matrix, the scores of every class, and the most confused pairs of classes."""
    scores = Table(
        title="Scores by class",
        header=["Class", "Images", "Precision", "Recall", "Recall, 95% interval", "F1"],
        rows=[
            [c.name, str(c.support), c.precision, c.recall, f"{c.recall_low:.1%} to {c.recall_high:.1%}", f"{c.f1:.3f}"]
            for c in evaluation.classes
        ],
        numeric=[1, 2, 3, 4, 5],
    )
    pairs = Table(
        title="Most confused classes",
        header=["True class", "Prediction", "Images", "Share of the class"],
        rows=[[p.label, p.prediction, str(p.count), p.share] for p in evaluation.confused[:MAX_PAIRS]],
        numeric=[2, 3],
    )
    return Section(
        title="Classes",
        figures=[plots.confusion_matrix(evaluation), plots.per_class(evaluation)],
        tables=[scores, pairs] if pairs.rows else [scores],
    )


def confidence_section(evaluation: Evaluation, threshold: Threshold | None) -> Section:
    """Reliability diagram, and risk against coverage with the threshold."""
    numbers = []
    if threshold is not None:
        target = f"chosen on validation for {threshold.target:.0%} precision"
        interval = f"95% interval {threshold.precision_low:.1%} to {threshold.precision_high:.1%}"
        numbers = [
            Number(name="Confidence threshold", value=threshold.text, note=target),
            Number(name="Coverage", value=f"{threshold.coverage:.1%}", note=f"{threshold.num_answered:,} images"),
        ]
        if threshold.num_answered:
            numbers.append(Number(name="Precision", value=f"{threshold.precision:.1%}", note=interval))
    return Section(
        title="Calibration and selective prediction",
        text="Of calibrated predictions with confidence 80%, 80% are correct. Selective prediction accepts only "
        f"predictions whose confidence is at or above a threshold. Here: {evaluation.calibration_text()}.",
        numbers=numbers,
        figures=[plots.reliability(evaluation), plots.risk_coverage_curve(evaluation, threshold)],
        logged_as="analysis/threshold" if threshold is not None else "",
    )


def slice_section(slices: Sequence[Slice], evaluation: Evaluation) -> Section:
    """Accuracy of each slice."""
    rows: list[list[str | float]] = [
        [s.property, s.name, f"{s.low:.3g}", f"{s.high:.3g}", str(s.count), f"{s.p_value:.2g}", s.accuracy]
        for s in slices
    ]
    header = ["Property", "Slice", "From", "To", "Images", "p-value", "Accuracy"]
    return Section(
        title="Slices",
        text="Thirds of the images by a property. P-values: Fisher's exact test against the other images, "
        "Holm-corrected.",
        figures=[plots.slice_chart(slices, evaluation.accuracy)],
        logged_as="analysis/slices",
        tables=[Table(header=header, rows=rows, numeric=[2, 3, 4, 5, 6])],
    )


def robustness_section(robustness: Robustness) -> Section:
    """Accuracy on corrupted images."""
    interval = "95% interval {:.1%} to {:.1%}".format(*robustness.interval)
    return Section(
        title="Corruption robustness",
        text=f"{robustness.num_images:,} test images with {len(robustness.names)} common corruptions after "
        f"Hendrycks & Dietterich (2019), each at severities {', '.join(map(str, robustness.severities))}.",
        numbers=[
            Number(name="Clean accuracy", value=f"{robustness.clean_accuracy:.1%}"),
            Number(name="Corruption accuracy", value=f"{robustness.mean_accuracy:.1%}", note=f"mean; {interval}"),
        ],
        figures=[plots.robustness_heatmap(robustness)],
        logged_as="analysis/robustness",
    )


def ood_section(ood: Sequence[OODScore], source: str) -> Section:
    """How well each score detects images of another source."""
    rows = [
        [
            score.name.replace("_", " "),
            f"{score.auroc:.3f}",
            f"{score.auroc_low:.3f} to {score.auroc_high:.3f}",
            f"{score.average_precision:.3f}",
            f"{score.false_positives:.1%}",
        ]
        for score in ood
    ]
    header = ["Score", "AUROC", "AUROC, 95% interval", "Average precision", "FPR at 95% TPR"]
    return Section(
        title="Out-of-distribution detection",
        text=f"How well each score separates the test images from {source}. AUROC: 0.5 is chance, 1 is perfect.",
        figures=[plots.ood_chart(ood)],
        logged_as="analysis/ood",
        tables=[Table(header=header, rows=rows, numeric=[1, 2, 3, 4])],
    )


def duplicate_section(duplicates: Duplicates) -> Section:
    """Images of one split with a near-duplicate in another, by the most similar pair of each cluster."""
    if not duplicates.num_pairs:
        return Section(title="Near-duplicates", text="No image has a near-duplicate in another split.")
    images = ", ".join(f"{number:,} of {split}" for split, number in duplicates.num_images.items())
    text = (
        f"{duplicates.num_pairs:,} pairs between splits, {duplicates.num_same_pixels:,} with identical pixels, connect "
        f"{images} to {duplicates.num_clusters:,} clusters, each shown by its most similar pair."
    )
    if duplicates.num_clusters > len(duplicates.listed):
        text += f" The first {len(duplicates.listed)} are shown."
    yes, rows = {True: "yes", False: "no"}, []
    for pair in duplicates.listed:
        numbers = yes[pair.same_pixels], yes[pair.same_label], f"{pair.num_images:,}"
        rows.append([pair.split, pair.id, pair.other_split, pair.other_id, f"{pair.similarity:.4f}", *numbers])
    header = ["Split", "Image", "Other split", "Other image", "Cosine", "Identical pixels", "Same class", "Cluster"]
    return Section(title="Near-duplicates", text=text, tables=[Table(header=header, rows=rows, numeric=[4, 7])])


def sheet(section: Section) -> Image.Image:
    """The tiles of a section as one image, for MLflow and TensorBoard."""
    return tile_sheet(section.tiles, columns=section.columns or 6, title=section.title, note=section.text)


def errors_section(dataset: ImageDataset, probabilities: np.ndarray) -> Section:
    """The most confident errors; probabilities (N, K)."""
    errors = np.flatnonzero(probabilities.argmax(axis=1) != dataset.labels)
    shown = most_confident(errors, probabilities)
    text = f"{len(shown)} of {len(errors)} errors, the most confident first. Check them for wrong labels, too."
    return Section(
        title="Most confident errors",
        text=text if len(errors) else "No image is misclassified.",
        tiles=[prediction_tile(dataset, probabilities, index) for index in shown],
    )


def regressions_section(dataset: ImageDataset, probabilities: np.ndarray, comparison: Comparison) -> Section:
    """Images that only the second model classifies correctly; probabilities (N, K) are the first's."""
    shown = most_confident(comparison.lost, probabilities)
    return Section(
        title="Regressions",
        text=f"{len(shown)} of {len(comparison.lost)} images that only {comparison.names[1]} classifies correctly.",
        tiles=[prediction_tile(dataset, probabilities, index) for index in shown],
    )


def attention_section(dataset: ImageDataset, probabilities: np.ndarray, maps: Mapping[int, np.ndarray]) -> Section:
    """Images beside their attention rollout; maps of patches by the index of the image."""
    tiles = []
    for index, patches in maps.items():
        tiles.append(prediction_tile(dataset, probabilities, index))
        tiles.append(Tile(image=highlight(dataset.images[index], patches), title="attention"))
    return Section(
        title="Attention rollout",
        text="Each image beside the attention of its prediction to the patches, through all layers: bright = high.",
        tiles=tiles,
        columns=6,
        logged_as="analysis/attention",
    )


def nearest_section(dataset: ImageDataset, probabilities: np.ndarray, nearest: NearestImages) -> Section:
    """Errors with the training images whose embeddings are nearest."""
    train, tiles = nearest.train, []
    for query, indices, cosines in zip(nearest.queries.tolist(), nearest.indices, nearest.cosines, strict=True):
        tiles.append(prediction_tile(dataset, probabilities, query))
        for index, cosine in zip(indices, cosines, strict=True):
            name, note = train.class_names[train.labels[index]], f"cosine {cosine:.3f}"
            tone: Tone = "good" if train.labels[index] == dataset.labels[query] else "bad"
            tiles.append(Tile(image=train.images[index], title=name, note=note, id=train.ids[index], tone=tone))
    return Section(
        title="Nearest training images",
        text="Each error, followed by the training images nearest to it; green: of its true class.",
        tiles=tiles,
        columns=1 + nearest.indices.shape[1],
        logged_as="analysis/nearest",
    )


def most_confident(indices: np.ndarray | tuple[int, ...], probabilities: np.ndarray, limit: int = 24) -> list[int]:
    """The indices sorted by the confidence of their predictions, the most confident first; probabilities (N, K)."""
    return sorted(map(int, indices), key=lambda index: -float(probabilities[index].max()))[:limit]


def prediction_tile(dataset: ImageDataset, probabilities: np.ndarray, index: int) -> Tile:
    """One image with its prediction and, when that is wrong, the true class; probabilities (N, K)."""
    names, label, prediction = dataset.class_names, int(dataset.labels[index]), int(probabilities[index].argmax())
    return Tile(
        image=dataset.images[index],
        title=f"{names[prediction]} ({probabilities[index, prediction]:.0%})",
        note="" if prediction == label else f"true: {names[label]} ({probabilities[index, label]:.0%})",
        id=dataset.ids[index],
        tone="good" if prediction == label else "bad",
    )


def highlight(image: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """The image, dark where the map of patches is low: uint8, its longer side at least 128 pixels."""
    grow = max(1, -(-128 // max(image.shape[:2])))
    large = image.repeat(grow, axis=0).repeat(grow, axis=1)
    weights = overlay_weights(patches, *large.shape[:2])[..., None]
    return np.round(large * (0.25 + 0.75 * weights)).astype(np.uint8)


def overlay_weights(patches: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map of patches scaled to the image, smooth, between 0 and 1: (height, width)."""
    normalized = (patches - patches.min()) / max(float(patches.max() - patches.min()), 1e-12)
    scaled = Image.fromarray(normalized.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(scaled, np.float64), 0, 1)
