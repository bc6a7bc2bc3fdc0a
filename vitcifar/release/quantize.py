"""The int8 form of a release: built, held against the float file, and kept only if it earned its place.

The evidence is kept either way.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from vitcifar.data.dataset import ImageDataset
from vitcifar.data.image import read_image
from vitcifar.data.splits import Splits
from vitcifar.errors import ReleaseError
from vitcifar.evaluation.compare import compare_evaluations
from vitcifar.evaluation.metrics import evaluate
from vitcifar.inference.session import OnnxClassifier
from vitcifar.release.export import save
from vitcifar.release.latency import onnx_p95
from vitcifar.release.manifest import INT8_FILE, Manifest
from vitcifar.release.onnx_graph import Range, build_graph, to_proto
from vitcifar.release.parity import edge_case_files, in_batches, served_logits

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

MIN_AGREEMENT = 0.99
NUM_CALIBRATION = 64  # training images that static ranges are taken from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One int8 form and what was found: it is kept when every one of the three holds."""

    kind: str  # dynamic, static
    accepted: bool
    reason: str
    agreement: float = 0.0  # share of validation images with the float file's answer
    accuracy: float = 0.0
    float_accuracy: float = 0.0
    outcome: str = ""  # of the paired test against the float file
    p_value: float = 1.0
    p95_ms: float = 0.0
    float_p95_ms: float = 0.0
    file_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def quantize(
    network: "Classifier", onnx_path: Path, splits: Splits, *, class_names: Sequence[str], release_id: str
) -> list[Candidate]:
    """Build each int8 form beside the float file and judge it on the validation images; at most one is kept.

    The best that earned its place lies as model.int8.onnx beside the float file afterwards; nothing else does.
    """
    found: list[tuple[Candidate, Path]] = []
    expected = _logits(onnx_path, splits.validation)
    for kind in ("dynamic", "static"):
        path = onnx_path.with_name(f"{kind}.onnx.candidate")
        try:
            ranges = activation_ranges(network, splits.train) if kind == "static" else None
            proto = to_proto(
                build_graph(network, int8=True, ranges=ranges), network, class_names=class_names, release_id=release_id
            )
            save(proto, path)
            del proto
            candidate = evaluate_candidate(kind, path, onnx_path, splits.validation, expected)
        except ReleaseError as error:
            candidate = Candidate(kind=kind, accepted=False, reason=str(error))
        found.append((candidate, path))
    good = [pair for pair in found if pair[0].accepted]
    best = min(good, key=lambda pair: pair[0].p95_ms, default=None)
    if best is not None:
        os.replace(best[1], onnx_path.with_name(INT8_FILE))
    for _, path in found:
        path.unlink(missing_ok=True)
    return [_settle(candidate, best) for candidate, _ in found]


def _settle(candidate: Candidate, best: tuple[Candidate, Path] | None) -> Candidate:
    if best is None or candidate is best[0] or not candidate.accepted:
        return candidate
    reason = f"good enough, but the {best[0].kind} form is faster: {best[0].p95_ms:.1f} ms"
    return dataclasses.replace(candidate, accepted=False, reason=reason)


def evaluate_candidate(
    kind: str, path: Path, onnx_path: Path, dataset: ImageDataset, expected: np.ndarray
) -> Candidate:
    """Hold an int8 file against the float file, whose logits (N, K) are expected: agreement, accuracy (paired), time.

    The first that fails is said.
    """
    actual = _logits(path, dataset)
    if not np.isfinite(actual).all():
        return Candidate(kind=kind, accepted=False, reason="it answers with numbers that are not finite")
    agreement = float((actual.argmax(axis=1) == expected.argmax(axis=1)).mean())
    ours, floats = (
        evaluate(logits, dataset.labels, dataset.class_names, fingerprint="validation") for logits in (actual, expected)
    )
    comparison = compare_evaluations(ours, floats)
    p95, float_p95 = onnx_p95([path, onnx_path])
    reason = "as right as the float file and faster"
    if agreement < MIN_AGREEMENT:
        reason = f"it agrees with the float file on {agreement:.2%} of the answers, limit {MIN_AGREEMENT:.0%}"
    elif comparison.outcome == "worse":
        reason = f"it is less often right, p = {comparison.p_value:.2g}"
    elif p95 >= float_p95:
        reason = f"it is not faster: {p95:.1f} ms against {float_p95:.1f} ms at the 95th percentile"
    return Candidate(
        kind=kind,
        accepted=agreement >= MIN_AGREEMENT and comparison.outcome != "worse" and p95 < float_p95,
        reason=reason,
        agreement=agreement,
        accuracy=comparison.accuracy,
        float_accuracy=comparison.champion_accuracy,
        outcome=comparison.outcome,
        p_value=comparison.p_value,
        p95_ms=p95,
        float_p95_ms=float_p95,
        file_bytes=path.stat().st_size,
    )


def evaluate_served(path: Path, onnx_path: Path, splits: Splits, release: Manifest) -> dict[str, Any]:
    """What the int8 file that serves scores on the test images, and how far it agrees with the float file."""
    classifier, test = OnnxClassifier(path), splits.test
    logits = np.concatenate([served_logits(classifier, images) for images in in_batches(test, "int8")])
    network = release.checks["test"]
    score = evaluate(
        logits,
        test.labels,
        test.class_names,
        temperature=release.temperature,
        threshold=release.threshold,
        fingerprint=network.get("fingerprint", ""),
    )
    edge_cases = [read_image(data, name) for name, data in edge_case_files().items()]
    answers = (
        classifier.logits(edge_cases).argmax(axis=1),
        OnnxClassifier(onnx_path).logits(edge_cases).argmax(axis=1),
    )
    return {
        "file": path.name,
        "evaluation": score.to_dict(),
        "agreement": float(np.mean(score.predictions == np.array(network["predictions"]))),
        "num_edge_cases": len(edge_cases),
        "num_edge_cases_changed": int((answers[0] != answers[1]).sum()),
    }


def activation_ranges(network: "Classifier", dataset: ImageDataset) -> Mapping[str, Range]:
    """The range of each linear layer's input over some training images, by the float form of the same graph."""
    from onnx import TensorProto, helper

    graph = build_graph(network, int8=False)
    proto = to_proto(graph, network, class_names=dataset.class_names, release_id="calibration")
    names = sorted(set(graph.linear_inputs.values()))
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    del proto, graph.nodes, graph.constants
    lows, highs = np.zeros(len(names)), np.zeros(len(names))
    for index in range(min(NUM_CALIBRATION, len(dataset))):
        values = session.run(names, {"image": dataset.images[index][None]})
        lows = np.minimum(lows, [value.min() for value in values])
        highs = np.maximum(highs, [value.max() for value in values])
    ranges = dict(zip(names, zip(lows.tolist(), highs.tolist(), strict=True), strict=True))
    return {layer: ranges[name] for layer, name in graph.linear_inputs.items()}


def _logits(path: Path, dataset: ImageDataset) -> np.ndarray:
    return OnnxClassifier(path).logits(list(dataset.images))
