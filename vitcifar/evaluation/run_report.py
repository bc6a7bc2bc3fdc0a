"""The report of a run: which sections it has, in which order."""

from collections.abc import Mapping, Sequence

import numpy as np

from vitcifar.data.pictures import Pictures
from vitcifar.evaluation import picture_sections, sections
from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.neighbours import Duplicate, Nearest
from vitcifar.evaluation.outliers import OutlierScore
from vitcifar.evaluation.report import html_report
from vitcifar.evaluation.robustness import Robustness
from vitcifar.evaluation.scores import Evaluation
from vitcifar.evaluation.selective import Threshold
from vitcifar.evaluation.slices import Slice


def run_report(
    title: str,
    evaluation: Evaluation,
    pictures: Pictures,
    probabilities: np.ndarray,
    *,
    subtitle: str = "",
    facts: Mapping[str, str] | None = None,
    threshold: Threshold | None = None,
    comparison: Comparison | None = None,
    slices: Sequence[Slice] = (),
    robustness: Robustness | None = None,
    outliers: Sequence[OutlierScore] = (),
    outlier_source: str = "another source",
    duplicates: Sequence[Duplicate] | None = None,
    attention: Mapping[int, np.ndarray] | None = None,
    nearest: Nearest | None = None,
) -> str:
    """The whole report as HTML; probabilities are (N, K), attention maps places of pictures to rollout maps.

    Only what is given becomes a section. An empty sequence of duplicates says that there are none; None says nothing.
    """
    noted = sections.highlights(
        threshold=threshold, slices=slices, robustness=robustness, outliers=outliers, duplicates=duplicates
    )
    parts = [
        sections.summary(evaluation, noted),
        sections.comparison_section(comparison) if comparison else None,
        picture_sections.lost_section(pictures, probabilities, comparison) if comparison and comparison.lost else None,
        sections.class_section(evaluation),
        picture_sections.mistakes_section(evaluation, pictures, probabilities),
        picture_sections.attention_section(pictures, probabilities, attention) if attention else None,
        picture_sections.neighbour_section(pictures, probabilities, nearest) if nearest else None,
        sections.confidence_section(evaluation, threshold),
        sections.slice_section(slices, evaluation) if slices else None,
        sections.robustness_section(robustness) if robustness else None,
        sections.outlier_section(outliers, outlier_source) if outliers else None,
        picture_sections.duplicate_section(duplicates) if duplicates is not None else None,
    ]
    return html_report(title, [part for part in parts if part is not None], subtitle=subtitle, facts=facts)
