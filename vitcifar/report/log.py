"""Writes an evaluation into a run: the same numbers and figures for both trackers, JSON and the report."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.data.splits import Splits
from vitcifar.evaluation.analysis import Analysis, analyze
from vitcifar.evaluation.calibration import Threshold, softmax
from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.metrics import Evaluation, evaluate
from vitcifar.evaluation.neighbors import Duplicate, NearestImages
from vitcifar.evaluation.ood import OODScore
from vitcifar.evaluation.robustness import Robustness
from vitcifar.evaluation.slices import Slice
from vitcifar.report import analysis_plots, galleries, image_sections, sections
from vitcifar.report.analysis_plots import comparison_chart
from vitcifar.report.html import html_report
from vitcifar.report.plots import figures, risk_coverage_curve
from vitcifar.tracking import Run

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

REPORT_FILE = "report.html"


def score(logits: np.ndarray, splits: Splits, temperature: float, threshold: float) -> Evaluation:
    """Scores of logits (N, K) on the test images."""
    return evaluate(
        logits,
        splits.test.labels,
        splits.class_names,
        temperature=temperature,
        threshold=threshold,
        fingerprint=splits.fingerprints["test"],
    )


def log_datasets(run: Run, config: TrainConfig, datasets: Mapping[str, ImageDataset], splits: Splits) -> None:
    """Each role's images as an MLflow dataset input."""
    location = str(Path(config.data_dir).absolute())
    for split, dataset in datasets.items():
        run.log_dataset(split, len(dataset), splits.fingerprints[split], source=config.data, location=location)


def log_evaluation(run: Run, evaluation: Evaluation, dataset: ImageDataset, probabilities: np.ndarray) -> None:
    """Numbers, JSON and figures of the test images, in both trackers."""
    run.log(0, {f"test/{name}": value for name, value in evaluation.scalars().items()})
    run.log_json("evaluation/test.json", evaluation.to_dict())
    for name, figure in figures(evaluation, dataset, probabilities).items():
        run.log_figure(f"test/{name}", figure)


def analysis_figures(
    analysis: Analysis, evaluation: Evaluation, dataset: ImageDataset, probabilities: np.ndarray
) -> dict[str, Figure]:
    """A figure of each thing that was looked at, by its name."""
    made = {}
    if analysis.threshold:
        made["threshold"] = risk_coverage_curve(evaluation, analysis.threshold)
    if analysis.slices:
        made["slices"] = analysis_plots.slice_chart(analysis.slices, evaluation.accuracy)
    if analysis.attention:
        places, maps = np.array([*analysis.attention]), np.stack([*analysis.attention.values()])
        made["attention"] = galleries.attention_gallery(dataset, probabilities, maps, places)
    if analysis.nearest:
        made["nearest"] = galleries.nearest_gallery(dataset, analysis.nearest)
    if analysis.robustness:
        made["robustness"] = analysis_plots.robustness_heatmap(analysis.robustness)
    if analysis.ood:
        made["ood"] = analysis_plots.ood_chart(analysis.ood)
    return made


def log_report(
    run: Run,
    analysis: Analysis | None,
    evaluation: Evaluation,
    dataset: ImageDataset,
    probabilities: np.ndarray,
    *,
    title: str,
    subtitle: str = "",
    facts: Mapping[str, str] | None = None,
    comparison: Comparison | None = None,
) -> None:
    """What was found and what was compared as metrics, JSON and figures, and the report; probabilities are (N, K)."""
    found: dict[str, Any] = {}
    if analysis is not None:
        run.log(0, {f"analysis/{name}": value for name, value in analysis.scalars().items()})
        run.log_json("evaluation/analysis.json", analysis.to_dict(dataset))
        for name, figure in analysis_figures(analysis, evaluation, dataset, probabilities).items():
            run.log_figure(f"analysis/{name}", figure)
        found = {field.name: getattr(analysis, field.name) for field in dataclasses.fields(analysis)}
    if comparison is not None:
        run.log(0, {f"compare/{name}": value for name, value in comparison.scalars().items()})
        run.log_json("evaluation/comparison.json", comparison.to_dict())
        run.log_figure("compare/difference", comparison_chart(comparison))
    page = run_report(
        title, evaluation, dataset, probabilities, subtitle=subtitle, facts=facts, comparison=comparison, **found
    )
    run.log_text(REPORT_FILE, page)


def data_name(config: TrainConfig) -> str:
    """What the images of a config are called in a title."""
    return Path(config.data_dir).absolute().name if config.data == "folder" else config.data


def run_report(
    title: str,
    evaluation: Evaluation,
    dataset: ImageDataset,
    probabilities: np.ndarray,
    *,
    subtitle: str = "",
    facts: Mapping[str, str] | None = None,
    threshold: Threshold | None = None,
    comparison: Comparison | None = None,
    slices: Sequence[Slice] = (),
    robustness: Robustness | None = None,
    ood: Sequence[OODScore] = (),
    ood_source: str = "another source",
    duplicates: Sequence[Duplicate] | None = None,
    attention: Mapping[int, np.ndarray] | None = None,
    nearest: NearestImages | None = None,
) -> str:
    """The whole report as HTML; probabilities are (N, K), attention maps places of images to rollout maps.

    Only what is given becomes a section. An empty sequence of duplicates says that there are none; None says nothing.
    """
    noted = sections.highlights(
        threshold=threshold, slices=slices, robustness=robustness, ood=ood, duplicates=duplicates
    )
    parts = [
        sections.summary(evaluation, noted),
        sections.comparison_section(comparison) if comparison else None,
        image_sections.lost_section(dataset, probabilities, comparison) if comparison and comparison.lost else None,
        sections.class_section(evaluation),
        image_sections.mistakes_section(evaluation, dataset, probabilities),
        image_sections.attention_section(dataset, probabilities, attention) if attention else None,
        image_sections.neighbor_section(dataset, probabilities, nearest) if nearest else None,
        sections.confidence_section(evaluation, threshold),
        sections.slice_section(slices, evaluation) if slices else None,
        sections.robustness_section(robustness) if robustness else None,
        sections.ood_section(ood, ood_source) if ood else None,
        image_sections.duplicate_section(duplicates) if duplicates is not None else None,
    ]
    return html_report(title, [part for part in parts if part is not None], subtitle=subtitle, facts=facts)


def analyze_trained(
    run: Run, network: "Classifier", splits: Splits, config: TrainConfig, evaluation: Evaluation, logits: np.ndarray
) -> None:
    """Run and log the checks that config.analysis asks for, with the report; logits (N, K) are the test split's."""
    from vitcifar.model.predict import predict_logits

    if config.analysis == "none":
        return
    analysis = analyze(
        evaluation,
        splits.test,
        logits,
        config,
        predictor=lambda images: predict_logits(network, images, config.batch_size),
        trained_on={"train": splits.train, "validation": splits.validation},
        network=network,
    )
    log_report(
        run,
        analysis,
        evaluation,
        splits.test,
        softmax(logits, evaluation.temperature),
        title=f"{config.arch} on {data_name(config)}",
        subtitle=f"Trained on {len(splits.train):,} images, calibrated on {len(splits.validation):,}, and tested "
        f"once on {len(splits.test):,} that it had never seen.",
        facts={
            "Run": run.run_id,
            "Network": f"{config.arch}, {network.image_size} pixels, trained: {config.train_layers}",
            "Started from": config.weights if config.weights != "none" else "new weights",
            "Fingerprint of the images": splits.fingerprint[:16],
        },
    )
