"""Faster variants of a version, without training: image size x token merging x format. Each is compared with its own
network (parity, agreement) and with the version (accuracy, latency), on validation images.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcifar.config import MERGING_SCHEDULES, TrainConfig
from vitcifar.data.splits import Splits
from vitcifar.errors import ReleaseError
from vitcifar.evaluation.compare import compare_evaluations
from vitcifar.evaluation.metrics import evaluate
from vitcifar.inference.openvino_session import fastest_precision
from vitcifar.inference.session import OnnxClassifier
from vitcifar.progress import notify
from vitcifar.release.latency import onnx_p95
from vitcifar.release.manifest import Manifest
from vitcifar.release.parity import check_parity
from vitcifar.release.quantize import MIN_AGREEMENT, changed_edge_cases
from vitcifar.release.served import open_served

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

SIZES = (1.0, 6 / 7, 5 / 7)  # of the version's image size: 224, 192, 160
MERGED = (0.0, 0.5, 0.75, 1.0)  # of the pairs that leave almost no token at the end: 0, 8, 12, 16 of ViT-B/16 at 224


def formats() -> list[str]:
    """The formats that are tried here; OpenVINO if it is installed."""
    precision = fastest_precision()
    return ["onnx-fp32", "onnx-int8", *([f"openvino-{precision}"] if precision else [])]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """The settings that decide how many tokens a network computes."""

    image_size: int
    token_merging: int = 0
    merging_schedule: str = "constant"

    @property
    def merged(self) -> str:
        """The merged pairs as people read them, such as "8" or "8 halving"."""
        return f"{self.token_merging} {self.merging_schedule}".removesuffix(" constant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant(Tokens):
    """One way to run a version's weights, and its measurements on the validation images."""

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
        return f"{self.image_size} px, {self.merged} merged, {self.format}"

    @property
    def tokens(self) -> Tokens:
        return Tokens(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Tokens)})


def default_sizes(network: "Classifier") -> list[int]:
    patch = network.backbone.patch_size
    return sorted({max(patch, round(share * network.image_size / patch) * patch) for share in SIZES}, reverse=True)


def default_counts(network: "Classifier") -> list[int]:
    most = (network.backbone.seq_length - 1) / len(network.blocks)
    return sorted({round(share * most) for share in MERGED})


def combinations(
    network: "Classifier",
    image_sizes: Sequence[int] = (),
    token_merging: Sequence[int] = (),
    merging_schedules: Sequence[str] = (),
) -> list[Tokens]:
    """Every combination of image sizes, merged pairs and schedules; those that fit the network if not given."""
    return [
        Tokens(image_size=size, token_merging=count, merging_schedule=schedule)
        for size in image_sizes or default_sizes(network)
        for count in token_merging or default_counts(network)
        for schedule in (merging_schedules or MERGING_SCHEDULES if count else ("constant",))
    ]


def make_variant(network: "Classifier", config: TrainConfig, tokens: Tokens) -> "Classifier":
    """The weights of a network at another image size, positions interpolated, and with other token merging."""
    from vitcifar.model.network import build_network
    from vitcifar.model.weights import load_weights

    config = dataclasses.replace(config, weights="none", train_layers="head", head_epochs=0, lora_rank=0)
    config = dataclasses.replace(config, **dataclasses.asdict(tokens))
    variant = build_network(config, network.class_names)
    variant.set_constants(**network.constants)
    load_weights(variant, dict(network.state_dict()), name="of the version", notify=lambda message: None)
    variant.temperature.copy_(network.temperature)
    return variant.eval()


def measure(
    network: "Classifier", release: Manifest, config: TrainConfig, splits: Splits, choices: Sequence[Tokens]
) -> tuple[Variant, ...]:
    """Every variant with these tokens, in every format; the fastest first."""
    version = open_served(release)
    expected = version.logits(splits.validation.images)
    rows: list[Variant] = []
    for tokens in choices:
        notify(f"Measuring {tokens.image_size} pixels, {tokens.merged} merged pairs.")
        variant = make_variant(network, config, tokens)
        with tempfile.TemporaryDirectory(prefix="vitcifar-") as folder:
            rows += _measure_formats(variant, tokens, release, splits, version, expected, Path(folder))
    return tuple(sorted(rows, key=lambda row: row.ratio or np.inf))


def _measure_formats(
    variant: "Classifier",
    tokens: Tokens,
    release: Manifest,
    splits: Splits,
    version: OnnxClassifier,
    expected: np.ndarray,
    folder: Path,
) -> list[Variant]:
    from vitcifar.release.onnx_graph import save_graph

    float_file, int8_file = folder / "float.onnx", folder / "int8.onnx"
    labels: dict[str, Any] = {"class_names": release.class_names, "release_id": release.release_id}
    choice = dataclasses.asdict(tokens)
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
