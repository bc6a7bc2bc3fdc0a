"""Faster formats of a release: int8 files, and OpenVINO. Compared with the float file, and accepted or rejected.

The measurements of every candidate are recorded either way.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime

from vitcifar.data.dataset import ImageDataset
from vitcifar.data.edge_cases import edge_case_files
from vitcifar.data.image import read_image
from vitcifar.data.splits import Splits
from vitcifar.errors import ReleaseError
from vitcifar.evaluation.compare import compare_evaluations
from vitcifar.evaluation.metrics import evaluate
from vitcifar.inference.session import OnnxClassifier
from vitcifar.progress import bar
from vitcifar.release.latency import onnx_p95
from vitcifar.release.manifest import INT8_FILE, Manifest
from vitcifar.release.onnx_graph import Range, build_graph, exact_weight_bits, save_graph, to_proto

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

MIN_AGREEMENT = 0.99  # on the validation images, and on the edge-case files
NUM_CALIBRATION = 64  # training images that static activation ranges are calibrated on
BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One faster format and its measurements on the validation images."""

    kind: str  # of int8: dynamic, static; of OpenVINO: fp32, bf16
    accepted: bool
    reason: str
    agreement: float = 0.0  # share of images with the float file's prediction
    accuracy: float = 0.0
    float_accuracy: float = 0.0
    outcome: str = ""  # of the paired test against the float file
    p_value: float = 1.0
    p95_ms: float = 0.0
    float_p95_ms: float = 0.0
    file_bytes: int = 0


def quantize(
    network: "Classifier", onnx_path: Path, splits: Splits, *, class_names: Sequence[str], release_id: str
) -> list[Candidate]:
    """Build a dynamic and a static int8 model next to the float file and evaluate both on the validation images.

    The faster of the accepted ones, if any, becomes model.int8.onnx next to the float file; the other is deleted.
    """
    candidates: list[Candidate] = []
    paths = {kind: onnx_path.with_name(f"{kind}.onnx.candidate") for kind in ("dynamic", "static")}
    float_model = OnnxClassifier(onnx_path)
    expected = _logits(float_model, splits.validation, "float")
    for kind, path in paths.items():
        try:
            ranges = activation_ranges(network, splits.train) if kind == "static" else None
            save_graph(network, path, class_names=class_names, release_id=release_id, int8=True, ranges=ranges)
            model = OnnxClassifier(path)
            candidate = evaluate_candidate(kind, model, float_model, splits.validation, expected)
            candidates.append(dataclasses.replace(candidate, file_bytes=path.stat().st_size))
        except ReleaseError as error:
            candidates.append(Candidate(kind=kind, accepted=False, reason=str(error)))
    accepted = [candidate for candidate in candidates if candidate.accepted]
    best = min(accepted, key=lambda candidate: candidate.p95_ms, default=None)
    if best is not None:
        os.replace(paths[best.kind], onnx_path.with_name(INT8_FILE))
        reason = f"accurate enough, but the {best.kind} model is faster: {best.p95_ms:.1f} ms"
        slower = [candidate for candidate in accepted if candidate is not best]
        candidates = [dataclasses.replace(c, accepted=False, reason=reason) if c in slower else c for c in candidates]
    for path in paths.values():
        path.unlink(missing_ok=True)
    return candidates


def try_openvino(onnx_path: Path, splits: Splits, precision: str) -> Candidate:
    """Evaluate the float file in OpenVINO against itself in onnxruntime on the validation images."""
    float_model = OnnxClassifier(onnx_path)
    try:
        model = OnnxClassifier(onnx_path, openvino=precision)
        expected = _logits(float_model, splits.validation, "float")
        return evaluate_candidate(precision, model, float_model, splits.validation, expected)
    except ReleaseError as error:
        return Candidate(kind=precision, accepted=False, reason=str(error))


def evaluate_candidate(
    kind: str, model: OnnxClassifier, float_model: OnnxClassifier, dataset: ImageDataset, expected: np.ndarray
) -> Candidate:
    """Compare a faster format with the float model, whose logits (N, K) are `expected`: agreement, edge-case files,
    accuracy (paired test), latency. The reason of a rejection is the first of these that fails."""
    actual = _logits(model, dataset, kind)
    if not np.isfinite(actual).all():
        return Candidate(kind=kind, accepted=False, reason="it produces NaN or infinite logits")
    agreement = float((actual.argmax(axis=1) == expected.argmax(axis=1)).mean())
    num_changed, num_edge_cases = changed_edge_cases(model, float_model)
    ours, float32 = (
        evaluate(logits, dataset.labels, dataset.class_names, fingerprint="validation") for logits in (actual, expected)
    )
    comparison = compare_evaluations(ours, float32)
    p95, float_p95 = onnx_p95([model, float_model])
    rejected = ""
    if agreement < MIN_AGREEMENT:
        rejected = f"it agrees with the float file on {agreement:.2%} of the predictions, minimum {MIN_AGREEMENT:.0%}"
    elif num_changed / num_edge_cases > 1 - MIN_AGREEMENT:
        rejected = f"it changes {num_changed} of {num_edge_cases} predictions on edge-case files"
    elif comparison.outcome == "worse":
        rejected = f"it is less accurate, p = {comparison.p_value:.2g}"
    elif p95 >= float_p95:
        rejected = f"it is not faster: 95th percentile {p95:.1f} ms, float {float_p95:.1f} ms"
    return Candidate(
        kind=kind,
        accepted=not rejected,
        reason=rejected or "it is not less accurate than the float file, and faster",
        agreement=agreement,
        accuracy=comparison.accuracy,
        float_accuracy=comparison.other_accuracy,
        outcome=comparison.outcome,
        p_value=comparison.p_value,
        p95_ms=p95,
        float_p95_ms=float_p95,
    )


def evaluate_served(
    path: Path, onnx_path: Path, splits: Splits, release: Manifest, *, openvino: str = ""
) -> dict[str, Any]:
    """The evaluation of the accepted format on the test images, and its agreement with the float model: a file, and
    the precision in which OpenVINO runs it."""
    model, float_model = OnnxClassifier(path, openvino=openvino), OnnxClassifier(onnx_path)
    network, test = release.checks["test"], splits.test
    evaluation = evaluate(
        _logits(model, test, "served"),
        test.labels,
        test.class_names,
        temperature=release.temperature,
        threshold=release.threshold,
        fingerprint=network.get("fingerprint", ""),
    )
    num_changed, num_edge_cases = changed_edge_cases(model, float_model)
    return {
        "file": path.name,
        **({"openvino": openvino} if openvino else {}),
        **({"weight_bits": exact_weight_bits()} if path.name == INT8_FILE else {}),
        "evaluation": evaluation.to_dict(),
        "agreement": float(np.mean(evaluation.predictions == np.array(network["predictions"]))),
        "num_edge_cases": num_edge_cases,
        "num_edge_cases_changed": num_changed,
    }


def changed_edge_cases(model: OnnxClassifier, other: OnnxClassifier) -> tuple[int, int]:
    """How many edge-case files two models predict differently, and how many there are."""
    images = [read_image(data, name) for name, data in edge_case_files().items()]
    ours, theirs = (one.logits(images).argmax(axis=1) for one in (model, other))
    return int((ours != theirs).sum()), len(images)


def activation_ranges(network: "Classifier", dataset: ImageDataset) -> Mapping[str, Range]:
    """Calibration: the range of each linear layer's input over some training images, from the float graph."""
    graph = build_graph(network, int8=False)
    proto = to_proto(graph, network, class_names=dataset.class_names, release_id="calibration")
    names = sorted(set(graph.linear_inputs.values()))
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    del proto, graph.nodes, graph.constants
    lows, highs = np.zeros(len(names)), np.zeros(len(names))
    for index in range(min(NUM_CALIBRATION, len(dataset))):
        values = session.run(names, {"image": dataset.images[index][None]})
        lows = np.minimum(lows, [value.min() for value in values])
        highs = np.maximum(highs, [value.max() for value in values])
    ranges = dict(zip(names, zip(lows.tolist(), highs.tolist(), strict=True), strict=True))
    return {layer: ranges[name] for layer, name in graph.linear_inputs.items()}


def _logits(model: OnnxClassifier, dataset: ImageDataset, title: str) -> np.ndarray:
    """Logits (N, K) of an ONNX model, with a progress bar."""
    images = dataset.images
    starts = bar(range(0, len(images), BATCH_SIZE), title, "batches")
    return np.concatenate([model.logits(images[start : start + BATCH_SIZE]) for start in starts])
