"""Logs an evaluation to a run: the same numbers and figures for MLflow and TensorBoard, JSON and the HTML report."""

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcifar import __version__, tensorboard
from vitcifar.config import TrainConfig, deciding_settings
from vitcifar.data.dataset import ImageDataset
from vitcifar.data.sources import location
from vitcifar.data.splits import Splits
from vitcifar.evaluation.analysis import Analysis, analyze
from vitcifar.evaluation.audit import audit_images
from vitcifar.evaluation.calibration import choose_threshold, fit_temperature, softmax
from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.metrics import Evaluation, evaluate, metric_names
from vitcifar.presets import changes, nearest_preset, train_command
from vitcifar.report import classes, images, plots, sections
from vitcifar.report.audit import data_section
from vitcifar.report.html import Section, html_report
from vitcifar.report.tables import columns_of, log_mistakes
from vitcifar.report.training import CURVES, Training, training_findings, training_section
from vitcifar.tracking import Run

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier
    from vitcifar.training.feature_cache import Embedder
    from vitcifar.training.loop import TrainResult

MAX_CLASSES = 30  # with a precision-recall curve: those with the lowest F1


def score(logits: np.ndarray, splits: Splits, temperature: float, threshold: float | None) -> Evaluation:
    """The evaluation of logits (N, K) on the test split."""
    return evaluate(
        logits,
        splits.test.labels,
        splits.class_names,
        temperature=temperature,
        threshold=threshold,
        fingerprint=splits.fingerprints["test"],
    )


def calibrate(validation: np.ndarray, test: np.ndarray, splits: Splits, target_precision: float) -> Evaluation:
    """Fit temperature and threshold on the logits of validation and score those of the test split, (N, K) each.

    A temperature that makes the loss or the calibration error on test worse is rejected: then it is 1.
    """
    correct = validation.argmax(axis=1) == splits.validation.labels

    def score_at(temperature: float) -> Evaluation:
        temperature = float(np.float32(temperature))  # as the network holds it
        confidences = softmax(validation, temperature).max(axis=1)
        return score(test, splits, temperature, choose_threshold(confidences, correct, target_precision))

    fitted, plain = score_at(fit_temperature(validation, splits.validation.labels)), score_at(1.0)
    if fitted.loss > plain.loss or fitted.ece > plain.ece:
        return dataclasses.replace(plain, temperature_rejected=fitted.temperature)
    return fitted


def data_name(config: TrainConfig) -> str:
    """The name of a config's dataset in a title."""
    return Path(config.data_dir).absolute().name if config.data == "folder" else config.data


def log_inputs(run: Run, config: TrainConfig, splits: Splits, network: "Classifier", git: Mapping[str, Any]) -> None:
    """Log config, datasets, code and model before the first step."""
    from vitcifar.model.network import count_parameters, count_trained
    from vitcifar.training.batches import augmentation_sheet

    settings = dataclasses.asdict(config)
    run.log_params({**settings, "fingerprint": splits.fingerprint})
    trained = count_trained(network, config.train_layers, config.lora_rank)
    counts = {"trainable_parameters": trained, "parameters": count_parameters(network)}
    run.log_params(counts, prefix="model.")
    run.set_tags({"vitcifar_version": __version__, "preset": with_changes(config)})
    if git["commit"]:
        run.set_tags({"git_commit": git["commit"], "git_dirty": str(git["dirty"]).lower()})
    run.note(note(config, splits))
    log_datasets(run, config, {split: dataset for split, dataset in splits.datasets.items() if len(dataset)}, splits)
    if config.augmentation != "none":
        run.log_image("augmentation", augmentation_sheet(splits.train, config.augmentation, seed=config.seed))
    (run.folder / "config.json").write_text(json.dumps(settings, indent=2))
    run.log_json("config.json", settings)
    rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
    run.writer.add_text("config", f"| setting | value |\n|---|---|\n{rows}")
    compared = {name: settings[name] for name in (*deciding_settings(), "train_per_class", "data_seed")}
    tensorboard.add_settings(run.writer, compared)


def with_changes(config: TrainConfig) -> str:
    """The preset of a config, and its settings that differ: "digits, epochs 5"."""
    preset = nearest_preset(config)
    return ", ".join([preset, *(f"{name} {value}" for name, value in changes(preset, config).items())])


def note(config: TrainConfig, splits: Splits, *results: str, options: str = "") -> str:
    """The description of a run in Markdown: its results, the recipe, the images, and the command that repeats it."""
    counts = ", ".join(f"{len(dataset):,} {split}" for split, dataset in splits.datasets.items() if len(dataset))
    lines = [
        *results,
        f"Preset {with_changes(config)}.",
        f"{counts} images of {data_name(config)}, {len(splits.class_names)} classes.",
        f"    {train_command(nearest_preset(config), config)}{options}",
    ]
    return "\n\n".join(lines)


def result_lines(result: "TrainResult", evaluation: Evaluation, *outcome: str) -> list[str]:
    """What came out of a run, for its note; its `outcome` in the registry second, for MLflow folds a long note."""
    best = result.best_metrics["validation/accuracy"]
    made = result.method or f"Best of {result.num_epochs} epochs: {result.best_epoch}"
    return [
        f"**Test accuracy {evaluation.accuracy_text()}.**",
        *outcome,
        f"{made}, with validation accuracy {best:.4f}. On test, {evaluation.calibration_text()}.",
    ]


def log_datasets(run: Run, config: TrainConfig, datasets: Mapping[str, ImageDataset], splits: Splits) -> None:
    """Log the images of each split as an MLflow dataset input."""
    place = str(location(config.data, Path(config.data_dir)))
    for split, dataset in datasets.items():
        profile = {"num_images": len(dataset), "num_classes": len(dataset.class_names)}
        if len(dataset.class_names) <= MAX_CLASSES:
            profile |= {f"num_images of {name}": count for name, count in dataset.counts().items()}
        name, fingerprint = data_name(config), splits.fingerprints[split]
        run.log_dataset(split, fingerprint, name=name, location=place, profile=profile)


def log_evaluation(run: Run, evaluation: Evaluation, dataset: ImageDataset, probabilities: np.ndarray) -> None:
    """Log metrics, tables, JSON, figures and precision-recall curves of the test split; probabilities (N, K)."""
    run.log(0, {f"test/{name}": value for name, value in evaluation.scalars().items()})
    run.log_json("evaluation/test.json", evaluation.to_dict())
    run.log_table("evaluation/classes", columns_of(evaluation.classes))
    log_mistakes(run, evaluation, dataset, probabilities)
    for name, figure in plots.figures(evaluation).items():
        run.log_figure(f"test/{name}", figure)
    run.log_image("test/mistakes", images.sheet(images.errors_section(dataset, probabilities)))
    weakest = np.argsort([row.f1 for row in evaluation.classes], kind="stable")[:MAX_CLASSES]
    names = metric_names(evaluation.class_names)
    for index in sorted(weakest):
        tensorboard.add_pr_curve(run.writer, names[index], evaluation.labels == index, probabilities[:, index])


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
    training: Training | None = None,
) -> None:
    """Log analysis and comparison as metrics, JSON and figures, and the report; probabilities (N, K)."""
    if analysis is not None:
        run.log(0, {f"test/{name}": value for name, value in analysis.scalars().items()})
        run.log_json("evaluation/analysis.json", analysis.to_dict(dataset))
        if analysis.slices:
            run.log_table("evaluation/slices", columns_of(analysis.slices))
    if comparison is not None:
        run.log(0, {f"test/{name}": value for name, value in comparison.scalars().items()})
        run.log_json("evaluation/comparison.json", comparison.to_dict())
        run.log_figure("compare/difference", plots.comparison_chart(comparison))
    for name, figure in plots.analysis_figures(evaluation, analysis or Analysis()).items():
        run.log_figure(f"analysis/{name}", figure)
    parts = report_sections(evaluation, dataset, probabilities, analysis, comparison, training)
    for part in parts:
        if part.logged_as:
            run.log_image(part.logged_as, images.sheet(part))
    now = datetime.datetime.now(datetime.UTC)
    facts = {"Date": f"{now:%Y-%m-%d %H:%M} UTC", **(facts or {}), "Made by": f"vitcifar {__version__}"}
    html = html_report(title, parts, subtitle=subtitle, facts=facts)
    (run.folder / "report.html").write_text(html, encoding="utf-8")
    run.log_text("report.html", html)


def report_sections(
    evaluation: Evaluation,
    dataset: ImageDataset,
    probabilities: np.ndarray,
    analysis: Analysis | None = None,
    comparison: Comparison | None = None,
    training: Training | None = None,
) -> list[Section]:
    """The sections of a report in their order, one for each part that exists; probabilities (N, K)."""
    found, tested = analysis or Analysis(), (dataset, probabilities)
    parts = [
        sections.summary(evaluation, found, training_findings(training) if training else ()),
        sections.comparison_section(comparison) if comparison else None,
        images.regressions_section(*tested, comparison) if comparison and comparison.lost else None,
        classes.class_section(evaluation),
        images.errors_section(*tested),
        training_section(training) if training else None,
        images.attention_section(*tested, found.attention) if found.attention else None,
        images.nearest_section(*tested, found.nearest) if found.nearest else None,
        sections.confidence_section(evaluation, found.threshold),
        sections.slice_section(found.slices) if found.slices else None,
        sections.robustness_section(found.robustness) if found.robustness else None,
        sections.ood_section(found.ood, found.ood_source) if found.ood else None,
        sections.duplicate_section(found.duplicates) if found.duplicates is not None else None,
        data_section(found.audit) if found.audit else None,
    ]
    return [part for part in parts if part is not None]


def analyze_trained(
    run: Run,
    embedder: "Embedder",
    splits: Splits,
    config: TrainConfig,
    evaluation: Evaluation,
    logits: Mapping[str, np.ndarray],
    *,
    result: "TrainResult",
    git: Mapping[str, Any],
) -> None:
    """Run and log the analysis that config.analysis selects, with the report; logits (N, K) of validation and test."""
    if config.analysis == "none":
        return
    analysis = analyze(
        evaluation,
        splits.test,
        logits["test"],
        config,
        predictor=embedder.logits,
        trained_on={"train": splits.train, "validation": splits.validation},
        embedder=embedder,
    )
    unseen = {split: softmax(rows, evaluation.temperature) for split, rows in logits.items()}
    analysis = dataclasses.replace(analysis, audit=audit_images(splits.datasets, probabilities=unseen))
    commit = f"{git['commit'][:12]}{', with changes' if git['dirty'] else ''}" if git["commit"] else "none"
    log_report(
        run,
        analysis,
        evaluation,
        splits.test,
        unseen["test"],
        title=f"{config.arch} on {data_name(config)}",
        subtitle=f"Trained on {len(splits.train):,} images, calibrated on {len(splits.validation):,}, "
        f"tested once on {len(splits.test):,} held-out images.",
        facts={
            "Network": f"{config.arch}, {embedder.network.image_size} pixels, trained: {config.train_layers}",
            "Initial weights": config.weights if config.weights != "none" else "random",
            **({"Teacher": config.teacher} if config.teacher != "none" else {}),
            "Fingerprint of the images": splits.fingerprint[:16],
            "Run": run.run_id,
            "Commit": commit,
        },
        training=Training(
            config=config,
            curves=logged_curves(run),
            best_epoch=result.best_epoch,
            method=result.method,
            options=result.options,
        ),
    )


def logged_curves(run: Run) -> dict[str, plots.Curve]:
    """The curves of a training, also the epochs from before it was resumed."""
    run.flush()
    points = tensorboard.read_points(run.event_files)  # on this machine, also when the store is away
    return {curve: [(step, value) for name, step, value in points if name == curve] for curve in CURVES}
