"""What each part of a report says: one function for each check, from its numbers to a Section."""

from collections.abc import Sequence

from vitcifar.evaluation.calibration import Threshold, best_aurc
from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.evaluation.neighbors import Duplicate
from vitcifar.evaluation.ood import OODScore
from vitcifar.evaluation.robustness import Robustness
from vitcifar.evaluation.slices import Slice
from vitcifar.report import analysis_plots, plots
from vitcifar.report.html import Headline, Number, Section, Table

MOST_ROWS = 12


def summary(evaluation: Evaluation, more: Sequence[Number] = ()) -> Section:
    """Accuracy with its interval, every other number of the scores, and what the checks beyond them came to."""
    low, high = evaluation.accuracy_low, evaluation.accuracy_high
    right = int(evaluation.correct.sum())
    return Section(
        title="Summary",
        headline=Headline(
            value=evaluation.accuracy,
            low=low,
            high=high,
            note=f"{right:,} of {evaluation.num_images:,} images right; 95% interval {low:.1%} to {high:.1%}",
        ),
        numbers=[
            Number(name="Top 2", value=f"{evaluation.top2_accuracy:.1%}", note="right class among two"),
            Number(name="Top 3", value=f"{evaluation.top3_accuracy:.1%}", note="right class among three"),
            Number(name="F1", value=f"{evaluation.f1_macro:.3f}", note="mean over classes"),
            Number(name="Loss", value=f"{evaluation.loss:.3f}", note="nats an image"),
            Number(name="Calibration error", value=f"{evaluation.ece:.3f}", note="ECE, 15 bins"),
            Number(name="Brier score", value=f"{evaluation.brier:.3f}", note="0 best, 2 worst"),
            Number(
                name="Temperature",
                value=f"{evaluation.temperature:.2f}",
                note="fitted on validation" if evaluation.temperature != 1 else "as trained",
            ),
            Number(
                name="Risk-coverage area",
                value=f"{evaluation.aurc:.4f}",
                note=f"best possible {best_aurc(evaluation.correct):.4f}",
            ),
            *more,
        ],
    )


def highlights(
    *,
    threshold: Threshold | None = None,
    slices: Sequence[Slice] = (),
    robustness: Robustness | None = None,
    ood: Sequence[OODScore] = (),
    duplicates: Sequence[Duplicate] | None = None,
) -> list[Number]:
    """One number of each check that was made, for the summary."""
    numbers = []
    if threshold is not None:
        note = f"{threshold.coverage:.0%} answered, from {threshold.confidence:.2f} up"
        numbers.append(Number(name="Right when sure", value=f"{threshold.precision:.1%}", note=note))
    if slices:
        weakest = min(slices, key=lambda row: row.accuracy)
        note = f"the {weakest.name} third, by {weakest.property}"
        numbers.append(Number(name="Weakest kind of images", value=f"{weakest.accuracy:.1%}", note=note))
    if robustness is not None:
        note = f"{robustness.num_images:,} images, {robustness.clean_accuracy:.0%} right when clean"
        numbers.append(Number(name="Corrupted images", value=f"{robustness.mean_accuracy:.1%}", note=note))
    if ood:
        note = f"AUROC of {ood[0].name.replace('_', ' ')}"
        numbers.append(Number(name="Something else told apart", value=f"{ood[0].auroc:.3f}", note=note))
    if duplicates is not None:
        note = f"or nearly; {sum(pair.same_pixels for pair in duplicates)} with the same pixels"
        numbers.append(Number(name="Duplicates between splits", value=f"{len(duplicates):,}", note=note))
    return numbers


def comparison_section(comparison: Comparison) -> Section:
    """The verdict against another version."""
    numbers = [
        Number(name="This one", value=f"{comparison.accuracy:.1%}"),
        Number(name="The other", value=f"{comparison.champion_accuracy:.1%}"),
        Number(name="Only this one right", value=f"{comparison.only_challenger_right}", note="images"),
        Number(name="Only the other right", value=f"{comparison.only_champion_right}", note="images"),
        Number(name="McNemar p", value=f"{comparison.p_value:.2g}", note="exact, two-sided"),
    ]
    if comparison.margin:
        verdict = "yes" if comparison.not_worse else "not shown"
        note = f"by more than {100 * comparison.margin:.1f} points"
        numbers.append(Number(name="Not worse", value=verdict, note=note))
    sentence = comparison.summary()
    return Section(
        title="Against another version",
        verdict=sentence[0].upper() + sentence[1:] + ".",
        tone={"better": "good", "worse": "bad"}.get(comparison.outcome, "plain"),  # type: ignore[arg-type]
        numbers=numbers,
        figures=[analysis_plots.comparison_chart(comparison)],
    )


def class_section(evaluation: Evaluation) -> Section:
    """Confusion matrix, every class, and the pairs that are confused most."""
    every = Table(
        title="Every class",
        header=["Class", "Images", "Precision", "Recall", "Recall, 95% interval", "F1"],
        rows=[
            [c.name, str(c.support), c.precision, c.recall, f"{c.recall_low:.1%} to {c.recall_high:.1%}", f"{c.f1:.3f}"]
            for c in evaluation.classes
        ],
        numeric=[1, 4, 5],
    )
    pairs = Table(
        title="Most confused",
        header=["True class", "Answer", "Images", "Share of the class"],
        rows=[[p.label, p.prediction, str(p.count), p.share] for p in evaluation.confused[:MOST_ROWS]],
        numeric=[2],
    )
    return Section(
        title="Classes",
        text="Rows are true classes, columns are answers.",
        figures=[plots.confusion_matrix(evaluation), plots.per_class(evaluation)],
        tables=[every, pairs] if pairs.rows else [every],
    )


def confidence_section(evaluation: Evaluation, threshold: Threshold | None) -> Section:
    """Whether confidences can be believed, and what answering only when sure would give."""
    numbers = []
    if threshold is not None:
        interval = f"95% interval {threshold.precision_low:.1%} to {threshold.precision_high:.1%}"
        numbers = [
            Number(
                name="Threshold",
                value=f"{threshold.confidence:.3f}",
                note=f"chosen on validation for {threshold.target:.0%}",
            ),
            Number(name="Answered", value=f"{threshold.coverage:.1%}", note=f"{threshold.num_answered:,} images"),
            Number(name="Right among them", value=f"{threshold.precision:.1%}", note=interval),
        ]
    return Section(
        title="Confidence",
        text="A confidence is worth its number when answers given with 80% are right four times in five.",
        numbers=numbers,
        figures=[plots.reliability(evaluation), plots.risk_coverage_curve(evaluation, threshold)],
    )


def slice_section(slices: Sequence[Slice], evaluation: Evaluation) -> Section:
    """Accuracy on kinds of images."""
    return Section(
        title="Kinds of images",
        text="Thirds of the images by a property. The test is Fisher's against the rest, with Holm's correction.",
        figures=[analysis_plots.slice_chart(slices, evaluation.accuracy)],
        tables=[
            Table(
                header=["Property", "Slice", "From", "To", "Images", "p", "Right"],
                rows=[
                    [s.property, s.name, f"{s.low:.3g}", f"{s.high:.3g}", str(s.count), f"{s.p_value:.2g}", s.accuracy]
                    for s in slices
                ],
                numeric=[2, 3, 4, 5],
            )
        ],
    )


def robustness_section(robustness: Robustness) -> Section:
    """Accuracy on corrupted images."""
    low, high = robustness.interval
    return Section(
        title="Corrupted images",
        text=f"{robustness.num_images:,} test images with {len(robustness.names)} common corruptions after "
        f"Hendrycks & Dietterich (2019), each at severities {', '.join(map(str, robustness.severities))}.",
        numbers=[
            Number(name="Clean", value=f"{robustness.clean_accuracy:.1%}"),
            Number(
                name="Corrupted, mean",
                value=f"{robustness.mean_accuracy:.1%}",
                note=f"95% interval {low:.1%} to {high:.1%}",
            ),
        ],
        figures=[analysis_plots.robustness_heatmap(robustness)],
    )


def ood_section(ood: Sequence[OODScore], source: str) -> Section:
    """How well answers give away images of something else."""
    return Section(
        title="Images of something else",
        text=f"How well each score tells this data from {source}: 0.5 is chance, 1 is always.",
        figures=[analysis_plots.ood_chart(ood)],
        tables=[
            Table(
                header=["Score", "AUROC", "Interval", "Average precision", "Let in where 95% of this data is"],
                rows=[
                    [
                        o.name.replace("_", " "),
                        f"{o.auroc:.3f}",
                        f"{o.auroc_low:.3f} to {o.auroc_high:.3f}",
                        f"{o.average_precision:.3f}",
                        f"{o.false_positives:.1%}",
                    ]
                    for o in ood
                ],
                numeric=[1, 2, 3, 4],
            )
        ],
    )
