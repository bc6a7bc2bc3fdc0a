"""Sections of a report with numbers, plots and tables: one function per part of the evaluation and the analysis."""

from collections.abc import Sequence

from vitcifar.evaluation.analysis import Analysis, Duplicate
from vitcifar.evaluation.calibration import Threshold, best_aurc
from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.corruptions import Robustness
from vitcifar.evaluation.metrics import Evaluation, Slice
from vitcifar.evaluation.ood import OODScore
from vitcifar.report import analysis_plots, plots
from vitcifar.report.html import Number, Section, Table

MAX_PAIRS = 12  # of confused classes
MAX_DUPLICATES = 50


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


def analysis_numbers(analysis: Analysis) -> list[Number]:
    """One number of each part of the analysis that exists, for the summary."""
    numbers = []
    if threshold := analysis.threshold:
        note = f"threshold {threshold.confidence:.2f}, coverage {threshold.coverage:.0%}"
        numbers.append(Number(name="Precision at threshold", value=f"{threshold.precision:.1%}", note=note))
    if analysis.slices:
        weakest = min(analysis.slices, key=lambda row: row.accuracy)
        note = f"{weakest.property}: {weakest.name}, {weakest.count:,} images"
        numbers.append(Number(name="Weakest slice", value=f"{weakest.accuracy:.1%}", note=note))
    if robustness := analysis.robustness:
        note = f"mean over {len(robustness.names)} corruptions; clean {robustness.clean_accuracy:.1%}"
        numbers.append(Number(name="Corruption accuracy", value=f"{robustness.mean_accuracy:.1%}", note=note))
    if analysis.ood:
        best = analysis.ood[0]
        numbers.append(Number(name="OOD AUROC", value=f"{best.auroc:.3f}", note=f"by {best.name.replace('_', ' ')}"))
    if analysis.duplicates is not None:
        note = f"between splits; {sum(pair.same_pixels for pair in analysis.duplicates)} with identical pixels"
        numbers.append(Number(name="Near-duplicates", value=f"{len(analysis.duplicates):,}", note=note))
    return numbers


def comparison_section(comparison: Comparison) -> Section:
    """The outcome of a comparison with its numbers."""
    numbers = [
        Number(name="Challenger", value=f"{comparison.accuracy:.1%}", note="accuracy of this version"),
        Number(name="Champion", value=f"{comparison.champion_accuracy:.1%}", note="accuracy of the other version"),
        Number(name="Only challenger correct", value=f"{len(comparison.gained)}", note="images"),
        Number(name="Only champion correct", value=f"{len(comparison.lost)}", note="images"),
        Number(name="McNemar p-value", value=f"{comparison.p_value:.2g}", note="exact, two-sided"),
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
        figures=[analysis_plots.comparison_chart(comparison)],
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
            Number(name="Confidence threshold", value=f"{threshold.confidence:.3f}", note=target),
            Number(name="Coverage", value=f"{threshold.coverage:.1%}", note=f"{threshold.num_answered:,} images"),
            Number(name="Precision", value=f"{threshold.precision:.1%}", note=interval),
        ]
    return Section(
        title="Calibration and selective prediction",
        text="Of calibrated predictions with confidence 80%, 80% are correct. Selective prediction accepts only "
        "predictions whose confidence is at or above a threshold.",
        numbers=numbers,
        figures=[plots.reliability(evaluation), plots.risk_coverage_curve(evaluation, threshold)],
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
        figures=[analysis_plots.slice_chart(slices, evaluation.accuracy)],
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
        figures=[analysis_plots.robustness_heatmap(robustness)],
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
        figures=[analysis_plots.ood_chart(ood)],
        tables=[Table(header=header, rows=rows, numeric=[1, 2, 3, 4])],
    )


def duplicate_section(duplicates: Sequence[Duplicate]) -> Section:
    """Images of one split with a near-duplicate in another, by their ids."""
    if not duplicates:
        return Section(title="Near-duplicates", text="No image has a near-duplicate in another split.")
    text = (
        f"{len(duplicates):,} pairs between splits, {sum(d.same_pixels for d in duplicates):,} with identical pixels."
    )
    if len(duplicates) > MAX_DUPLICATES:
        text += f" The first {MAX_DUPLICATES} are shown."
    yes = {True: "yes", False: "no"}
    rows = [
        [d.split, d.id, d.other_split, d.other_id, f"{d.similarity:.4f}", yes[d.same_pixels], yes[d.same_label]]
        for d in duplicates[:MAX_DUPLICATES]
    ]
    header = ["Split", "Image", "Other split", "Other image", "Cosine", "Identical pixels", "Same class"]
    return Section(title="Near-duplicates", text=text, tables=[Table(header=header, rows=rows, numeric=[4])])
