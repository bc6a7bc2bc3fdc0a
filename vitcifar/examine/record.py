"""Writes scores and findings into a run: the same numbers and figures for both trackers, JSON and the report."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitcifar.config import TrainConfig
from vitcifar.data.pictures import Pictures
from vitcifar.data.splits import Splits
from vitcifar.evaluation.charts import comparison_chart
from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.figures import figures
from vitcifar.evaluation.run_report import run_report
from vitcifar.evaluation.scores import Evaluation, evaluate
from vitcifar.examine.findings import Examination
from vitcifar.tracking import Run

REPORT_FILE = "report.html"


def score(logits: np.ndarray, splits: Splits, temperature: float, threshold: float) -> Evaluation:
    """Scores of logits (N, K) on the test pictures."""
    return evaluate(
        logits,
        splits.test.labels,
        splits.class_names,
        temperature=temperature,
        threshold=threshold,
        fingerprint=splits.fingerprints["test"],
    )


def record_data(run: Run, config: TrainConfig, roles: Mapping[str, Pictures], splits: Splits) -> None:
    """Each role's pictures as an MLflow dataset input."""
    location = str(Path(config.data_dir).absolute())
    for role, pictures in roles.items():
        run.log_pictures(role, len(pictures), splits.fingerprints[role], source=config.data, location=location)


def record_evaluation(run: Run, evaluation: Evaluation, pictures: Pictures, probabilities: np.ndarray) -> None:
    """Numbers, JSON and figures of the test pictures, in both trackers."""
    run.log(0, {f"test/{name}": value for name, value in evaluation.scalars().items()})
    run.log_json("evaluation/test.json", evaluation.to_dict())
    for name, figure in figures(evaluation, pictures, probabilities).items():
        run.log_figure(f"test/{name}", figure)


def record_report(
    run: Run,
    examination: Examination | None,
    evaluation: Evaluation,
    pictures: Pictures,
    probabilities: np.ndarray,
    *,
    title: str,
    subtitle: str = "",
    facts: Mapping[str, str] | None = None,
    comparison: Comparison | None = None,
) -> None:
    """What was found and what was compared as metrics, JSON and figures, and the report; probabilities are (N, K)."""
    found: dict[str, Any] = {}
    if examination is not None:
        run.log(0, {f"examine/{name}": value for name, value in examination.scalars().items()})
        run.log_json("evaluation/examination.json", examination.to_dict(pictures))
        for name, figure in examination.figures(evaluation, pictures, probabilities).items():
            run.log_figure(f"examine/{name}", figure)
        found = {field.name: getattr(examination, field.name) for field in dataclasses.fields(examination)}
    if comparison is not None:
        run.log(0, {f"compare/{name}": value for name, value in comparison.scalars().items()})
        run.log_json("evaluation/comparison.json", comparison.to_dict())
        run.log_figure("compare/difference", comparison_chart(comparison))
    page = run_report(
        title, evaluation, pictures, probabilities, subtitle=subtitle, facts=facts, comparison=comparison, **found
    )
    run.log_text(REPORT_FILE, page)


def data_name(config: TrainConfig) -> str:
    """What the pictures of a config are called in a title."""
    return Path(config.data_dir).absolute().name if config.data == "folder" else config.data
