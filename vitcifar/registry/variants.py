"""Faster variants of a version, without training: image size x token merging x format. Each is compared with its own
network (parity, agreement) and with the version (accuracy, latency); the fastest that is not worse is registered.

Everything is chosen on validation images; the test images are used once, for the variant that was chosen.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcifar import tracking
from vitcifar.config import TrainConfig
from vitcifar.data.splits import Splits
from vitcifar.errors import ReleaseError
from vitcifar.evaluation.calibration import softmax
from vitcifar.evaluation.compare import compare_evaluations
from vitcifar.evaluation.metrics import Evaluation, evaluate
from vitcifar.inference.machine import this_machine
from vitcifar.inference.openvino_session import fastest_precision
from vitcifar.inference.session import OnnxClassifier
from vitcifar.progress import notify
from vitcifar.registry.registration import register
from vitcifar.release.build import build_release
from vitcifar.release.latency import onnx_p95
from vitcifar.release.manifest import Manifest
from vitcifar.release.parity import check_parity
from vitcifar.release.quantize import MIN_AGREEMENT, changed_edge_cases
from vitcifar.release.served import open_served
from vitcifar.report.log import calibrate, log_datasets, log_evaluation
from vitcifar.report.pareto import latency_chart

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

SIZES = (1.0, 6 / 7, 5 / 7)  # of the version's image size: 224, 192, 160
MERGED = (0.0, 0.5, 0.75, 1.0)  # of the pairs that leave almost no token at the end: 0, 8, 12, 16 of ViT-B/16 at 224


def formats() -> list[str]:
    """The formats that are tried here; OpenVINO if it is installed."""
    precision = fastest_precision()
    return ["onnx-fp32", "onnx-int8", *([f"openvino-{precision}"] if precision else [])]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run a version's weights, and its measurements on the validation images."""

    image_size: int
    token_merging: int
    format: str
    reason: str  # why it was rejected; "" = it passed
    accuracy: float = 0.0
    difference: float = 0.0  # of accuracy, from the version's
    p_value: float = 1.0
    agreement: float = 0.0  # share of images with the version's prediction
    p95_ms: float = 0.0
    version_p95_ms: float = 0.0  # of what the version serves, in turns with this one

    @property
    def ratio(self) -> float:
        """Its latency as a share of the version's, which other load on the machine changes least."""
        return self.p95_ms / self.version_p95_ms if self.version_p95_ms else 0.0

    @property
    def name(self) -> str:
        return f"{self.image_size} px, {self.token_merging} merged, {self.format}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Derived:
    """The variants of a version, fastest first, and the version that the best became, if there is one."""

    variants: tuple[Variant, ...]
    message: str
    best: Variant | None = None
    version: int | None = None
    evaluation: Evaluation | None = None  # of the new version, on the test images
    weights_sha256: str = ""


def derive(
    run: tracking.Run,
    network: "Classifier",
    release: Manifest,
    config: TrainConfig,
    splits: Splits,
    *,
    max_p95_ms: float,
    image_sizes: Sequence[int] = (),
    token_merging: Sequence[int] = (),
) -> Derived:
    """Measure the variants of a registered release, whose network, config and images are given, and register the
    fastest that is faster, not worse and within the budget (0 = none), as a version of the run.

    Raises VitCifarError.
    """
    sizes, counts = image_sizes or default_sizes(network), token_merging or default_counts(network)
    log_datasets(run, config, {"validation": splits.validation, "test": splits.test}, splits)
    variants = measure(network, release, config, splits, [(size, count) for size in sizes for count in counts])
    log_variants(run, release, variants, max_p95_ms)
    itself = (release.image_size, config.token_merging, release.serving_format)
    others = [row for row in variants if (row.image_size, row.token_merging, row.format) != itself]
    passed = [row for row in others if not row.reason and row.ratio < 1]
    within = [row for row in passed if not max_p95_ms or row.p95_ms <= max_p95_ms]
    if within:
        derived = release_variant(run, network, release, config, splits, within[0], variants)
    elif passed:
        fastest = f"The fastest variant that is not worse takes {passed[0].p95_ms:.1f} ms"
        message = f"{fastest}, more than {max_p95_ms:g}: no other version was registered."
        derived = Derived(variants=variants, message=message)
    else:
        message = f"No variant is faster than {release.name} and not worse: no other version was registered."
        own = float(np.median([row.version_p95_ms for row in variants if row.version_p95_ms] or [0.0]))
        if max_p95_ms and own > max_p95_ms:
            message += f" It takes {own:.1f} ms, more than {max_p95_ms:g}."
        derived = Derived(variants=variants, message=message)
    run.note(f"{run_title(release)}: {derived.message}")
    return derived


def run_title(release: Manifest) -> str:
    return f"optimize {release.name}"


def run_tags(release: Manifest) -> dict[str, str]:
    return {"kind": "optimize", "optimizes": f"models:/{release.model_name}/{release.version}"}


def default_sizes(network: "Classifier") -> list[int]:
    patch = network.backbone.patch_size
    return sorted({max(patch, round(share * network.image_size / patch) * patch) for share in SIZES}, reverse=True)


def default_counts(network: "Classifier") -> list[int]:
    most = (network.backbone.seq_length - 1) / len(network.blocks)
    return sorted({round(share * most) for share in MERGED})


def make_variant(network: "Classifier", config: TrainConfig, image_size: int, token_merging: int) -> "Classifier":
    """The weights of a network at another image size, positions interpolated, and with other token merging."""
    from vitcifar.model.network import build_network
    from vitcifar.model.weights import load_weights

    config = dataclasses.replace(config, weights="none", train_layers="head", head_epochs=0, lora_rank=0)
    config = dataclasses.replace(config, image_size=image_size, token_merging=token_merging)
    variant = build_network(config, network.class_names)
    variant.set_constants(**network.constants)
    load_weights(variant, dict(network.state_dict()), name="of the version", notify=lambda message: None)
    variant.temperature.copy_(network.temperature)
    return variant.eval()


def measure(
    network: "Classifier", release: Manifest, config: TrainConfig, splits: Splits, choices: Sequence[tuple[int, int]]
) -> tuple[Variant, ...]:
    """Every variant of these image sizes and merged pairs, in every format; the fastest first."""
    version = open_served(release)
    expected = version.logits(splits.validation.images)
    rows: list[Variant] = []
    for size, count in choices:
        notify(f"Measuring {size} pixels, {count} merged pairs.")
        variant = make_variant(network, config, size, count)
        with tempfile.TemporaryDirectory(prefix="vitcifar-") as folder:
            rows += _measure_formats(variant, release, splits, version, expected, Path(folder))
    return tuple(sorted(rows, key=lambda row: row.ratio or np.inf))


def _measure_formats(
    variant: "Classifier",
    release: Manifest,
    splits: Splits,
    version: OnnxClassifier,
    expected: np.ndarray,
    folder: Path,
) -> list[Variant]:
    from vitcifar.release.onnx_graph import save_graph

    float_file, int8_file = folder / "float.onnx", folder / "int8.onnx"
    labels: dict[str, Any] = {"class_names": release.class_names, "release_id": release.release_id}
    choice: dict[str, Any] = {"image_size": variant.image_size, "token_merging": variant.token_merging}
    save_graph(variant, float_file, **labels)
    save_graph(variant, int8_file, **labels, int8=True)
    try:
        check_parity(variant, float_file, splits.validation)
    except ReleaseError as error:
        return [Variant(**choice, format=format, reason=str(error)) for format in formats()]
    rows, float_model = [], OnnxClassifier(float_file)
    float_predictions = float_model.logits(splits.validation.images).argmax(axis=1)
    for format in formats():
        path = int8_file if format == "onnx-int8" else float_file
        try:
            model = OnnxClassifier(path, openvino=format.partition("openvino-")[2])
            logits = model.logits(splits.validation.images)
        except ReleaseError as error:
            rows.append(Variant(**choice, format=format, reason=str(error)))
            continue
        row = _compare(logits, expected, splits, choice, format)
        reason = row.reason
        if format != "onnx-fp32":
            same = float(np.mean(logits.argmax(axis=1) == float_predictions))
            num_changed, num_edge_cases = changed_edge_cases(model, float_model)
            if same < MIN_AGREEMENT:
                reason = f"it agrees with its float file on {same:.2%} of the predictions, minimum {MIN_AGREEMENT:.0%}"
            elif num_changed > (1 - MIN_AGREEMENT) * num_edge_cases:
                reason = f"it changes {num_changed} of {num_edge_cases} predictions on edge-case files"
        p95, version_p95 = onnx_p95([model, version])
        rows.append(dataclasses.replace(row, reason=reason, p95_ms=p95, version_p95_ms=version_p95))
    return rows


def _compare(logits: np.ndarray, expected: np.ndarray, splits: Splits, choice: dict[str, Any], format: str) -> Variant:
    """Paired accuracy of a variant and the version on the validation images."""
    data = splits.validation
    ours, theirs = (evaluate(z, data.labels, data.class_names, fingerprint="validation") for z in (logits, expected))
    comparison = compare_evaluations(ours, theirs)
    return Variant(
        **choice,
        format=format,
        reason=f"it is less accurate, p = {comparison.p_value:.2g}" if comparison.outcome == "worse" else "",
        accuracy=comparison.accuracy,
        difference=comparison.difference,
        p_value=comparison.p_value,
        agreement=float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1))),
    )


def log_variants(run: tracking.Run, release: Manifest, variants: Sequence[Variant], max_p95_ms: float) -> None:
    """The table of all variants, as JSON and as MLflow's, and the plot with the Pareto front."""
    rows = [{**dataclasses.asdict(row), "ratio": row.ratio} for row in variants]
    machine = dataclasses.asdict(this_machine())
    run.log_json("optimize/variants.json", {"machine": machine, "max_p95_ms": max_p95_ms, "variants": rows})
    run.log_table("optimize/table", {name: [row[name] for row in rows] for name in rows[0]})
    points = [(row.name, row.p95_ms, row.accuracy, not row.reason) for row in variants if row.p95_ms]
    note = f"variants of {release.name} on {machine['processor']}, {machine['num_cores']} threads"
    run.log_figure("optimize", latency_chart(points, max_p95_ms=max_p95_ms, note=note))


def release_variant(
    run: tracking.Run,
    network: "Classifier",
    release: Manifest,
    config: TrainConfig,
    splits: Splits,
    best: Variant,
    variants: tuple[Variant, ...],
) -> Derived:
    """Evaluate a variant once on the test images, build its release and register it."""
    from vitcifar.model.predict import predict_logits

    variant = make_variant(network, config, best.image_size, best.token_merging)
    validation, logits = (predict_logits(variant, split.images) for split in (splits.validation, splits.test))
    evaluation = calibrate(validation, logits, splits, config.target_precision)
    variant.temperature.fill_(evaluation.temperature)
    log_evaluation(run, evaluation, splits.test, softmax(logits, evaluation.temperature))
    origin = {"version": release.version, "release_id": release.release_id}
    config = dataclasses.replace(
        config, image_size=best.image_size, token_merging=best.token_merging, model_name=release.model_name
    )
    built = build_release(
        variant,
        splits=splits,
        evaluation=evaluation.to_dict(),
        config=config,
        run_id=run.run_id,
        int8=best.format == "onnx-int8",
        openvino=best.format.startswith("openvino"),
        checks={"derived_from": {**origin, "variants": [dataclasses.asdict(row) for row in variants]}},
    )
    if best.format != (serves := built.manifest.serving_format):
        message = f"{best.name} did not pass the checks of a release ({serves} would serve): nothing was registered."
        return Derived(variants=variants, best=best, message=message)
    version = register(built.manifest, built.model_id, built.digest)
    run.set_tags({"version": f"{release.model_name}/{version}"})
    message = (
        f"Version {version} ({best.name}) takes {best.ratio:.2f} of the time of {release.name}: "
        f"{best.p95_ms:.1f} ms against {best.version_p95_ms:.1f}."
    )
    return Derived(
        variants=variants,
        best=best,
        version=version,
        evaluation=evaluation,
        weights_sha256=built.manifest.checks["weights_sha256"],
        message=message,
    )
