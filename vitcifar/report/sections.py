"""Sections of a report: one function per part of the evaluation and the analysis."""

from collections.abc import Iterator, Sequence

import numpy as np

from vitcifar.evaluation.analysis import Analysis
from vitcifar.evaluation.calibration import Threshold, best_aurc
from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.corruptions import Robustness
from vitcifar.evaluation.duplicates import Duplicates
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.evaluation.ood import OODScore
from vitcifar.evaluation.slices import Slice
from vitcifar.report import plots
from vitcifar.report.classes import UNDEFINED
from vitcifar.report.findings import chance, findings, share
from vitcifar.report.html import Finding, Heat, HeatMap, Number, Section, Table


def summary(evaluation: Evaluation, analysis: Analysis, trained: Sequence[Finding] = ()) -> Section:
    """Accuracy with its interval, what it means in sentences, and the numbers that compare two reports."""
    return Section(
        title="Summary",
        headline=evaluation,
        chance=chance(evaluation),
        findings=[*findings(evaluation, analysis), *trained],
        numbers=[
            Number(name="Top-2 accuracy", value=f"{evaluation.top2_accuracy:.1%}"),
            Number(name="F1", value=f"{evaluation.f1_macro:.3f}", note="macro average"),
            Number(name="Loss", value=f"{evaluation.loss:.3f}", note="cross-entropy, nats per image"),
            Number(name="Calibration error", value=f"{evaluation.ece:.3f}", note="ECE, 15 bins"),
            *analysis_numbers(analysis),
        ],
    )


def analysis_numbers(analysis: Analysis) -> Iterator[Number]:
    """One number of each part of the analysis that has one to compare."""
    if threshold := analysis.threshold:
        precision = f"{threshold.precision:.1%}" if threshold.num_answered else UNDEFINED
        note = f"of confident predictions, {share(threshold.coverage)} of all"
        yield Number(name="Precision", value=precision, note=note)
    if robustness := analysis.robustness:
        note = f"mean of {len(robustness.names)} corruptions; clean {robustness.clean_accuracy:.1%}"
        yield Number(name="Corruption accuracy", value=f"{robustness.mean_accuracy:.1%}", note=note)
    if analysis.ood:
        best = analysis.ood[0]
        yield Number(name="OOD AUROC", value=f"{best.auroc:.3f}", note=f"by {best.name.replace('_', ' ')}")


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
    )


def confidence_section(evaluation: Evaluation, threshold: Threshold | None) -> Section:
    """Reliability diagram, and risk against coverage with the threshold."""
    fitted = "fitted on validation" if evaluation.temperature != 1 else "no scaling"
    numbers = [
        Number(name="Temperature", value=f"{evaluation.temperature:.2f}", note=fitted),
        Number(name="Brier score", value=f"{evaluation.brier:.3f}", note="0 best, 2 worst"),
        Number(name="AURC", value=f"{evaluation.aurc:.4f}", note=f"optimal {best_aurc(evaluation.correct):.4f}"),
    ]
    if threshold is not None:
        target = f"chosen on validation for {threshold.target:.0%} precision"
        numbers += [
            Number(name="Confidence threshold", value=threshold.text, note=target),
            Number(name="Coverage", value=f"{threshold.coverage:.1%}", note=f"{threshold.num_answered:,} images"),
        ]
        if threshold.num_answered:
            interval = f"95% interval {threshold.precision_low:.1%} to {threshold.precision_high:.1%}"
            numbers.append(Number(name="Precision", value=f"{threshold.precision:.1%}", note=interval))
    return Section(
        title="Calibration and selective prediction",
        text="Of calibrated predictions with confidence 80%, 80% are correct. Selective prediction accepts only "
        f"predictions whose confidence is at or above a threshold. Here: {evaluation.calibration_text()}.",
        numbers=numbers,
        figures=[plots.reliability(evaluation), plots.risk_coverage_curve(evaluation)],
    )


def slice_section(slices: Sequence[Slice]) -> Section:
    """Accuracy of each slice with its interval."""
    rows: list[list[str | float]] = [
        [
            f"{s.property}: {s.name}",
            f"{s.low:.3g} to {s.high:.3g}",
            f"{s.count:,}",
            s.accuracy,
            interval,
            f"{s.p_value:.2g}",
        ]
        for s in slices
        if (interval := f"{s.accuracy_low:.1%} to {s.accuracy_high:.1%}")
    ]
    header = ["Slice", "From, to", "Images", "Accuracy", "95% interval", "p-value"]
    return Section(
        title="Slices",
        text="Thirds of the images by a property. P-values: Fisher's exact test against the other images, "
        "Holm-corrected.",
        tables=[Table(title="Accuracy by slice", header=header, rows=rows, numeric=[1, 2, 3, 4, 5])],
    )


def robustness_section(robustness: Robustness) -> Section:
    """Accuracy on corrupted images."""

    def accuracy(value: float, note: str = "") -> str:
        low, high = robustness.interval(value)
        return f"{note}95% interval {low:.1%} to {high:.1%}"

    return Section(
        title="Corruption robustness",
        text=f"{robustness.num_images:,} test images with {len(robustness.names)} common corruptions after "
        f"Hendrycks & Dietterich (2019), each at severities {', '.join(map(str, robustness.severities))}. "
        f"{robustness.caution()}".strip(),
        numbers=[
            Number(
                name="Clean accuracy",
                value=f"{robustness.clean_accuracy:.1%}",
                note=accuracy(robustness.clean_accuracy),
            ),
            Number(
                name="Corruption accuracy",
                value=f"{robustness.mean_accuracy:.1%}",
                note=accuracy(robustness.mean_accuracy, "mean; "),
            ),
        ],
        heat_maps=[robustness_map(robustness)],
    )


def robustness_map(robustness: Robustness) -> HeatMap:
    """Accuracy of every corruption at every severity, the most harmful corruption last."""
    means = robustness.accuracy.mean(axis=1)
    order = np.argsort(-means, kind="stable")
    grid = np.c_[robustness.accuracy[order], means[order]]
    return HeatMap(
        title="Accuracy by corruption and severity",
        note="The stronger the colour, the more errors, from 0% to 100% in every report.",
        rows=[robustness.names[index].replace("_", " ") for index in order],
        columns=[*map(str, robustness.severities), "mean"],
        row_title="Corruption",
        column_title="Severity",
        cells=[[Heat(strength=1 - value, tone="bad", text=f"{value:.0%}") for value in row] for row in grid.tolist()],
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
        tables=[Table(title="Scores", header=header, rows=rows, numeric=[1, 2, 3, 4])],
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
