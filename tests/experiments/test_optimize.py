"""`vitcifar optimize`: the fastest variant that passes its checks becomes a version; else nothing is registered."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from vitcifar import train
from vitcifar.errors import ConfigError
from vitcifar.experiments.optimize import check_trained, optimize
from vitcifar.inference.session import OnnxClassifier
from vitcifar.model.predict import predict_logits
from vitcifar.registry import gates, variants
from vitcifar.registry.derivation import Derived
from vitcifar.registry.registry import Registry
from vitcifar.registry.variants import Tokens, combinations, make_variant
from vitcifar.release.cache import open_network
from vitcifar.report.pareto import pareto_front


@pytest.fixture
def search(registry: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[str, Derived]]:
    """Optimize version 1 with 0 and 2 merged pairs; `times` are the p95 of each row, the version's is 8 ms.

    The pairs are halved from block to block."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)

    monkeypatch.setattr(variants, "fastest_precision", lambda: "")  # without OpenVINO

    def run(*times: float, max_p95_ms: float = 0.0) -> tuple[str, Derived]:
        left = iter(times)
        monkeypatch.setattr(variants, "onnx_p95", lambda models: [next(left), 8.0])
        choices = {"image_sizes": (32,), "token_merging": (0, 2), "merging_schedules": ("halving",)}
        return optimize(registry, "1", max_p95_ms=max_p95_ms, experiment="toy", **choices)

    return run


def test_the_fastest_variant_that_passes_becomes_a_version_with_its_origin(
    registry: Any, published: Any, search: Callable[..., tuple[str, Derived]]
) -> None:
    run_id, found = search(9.0, 8.5, 4.0, 5.0)
    assert found.best is not None
    assert (found.best.merged, found.best.format, found.best.ratio) == ("2 halving", "onnx-fp32", 0.5)
    release = registry.pull(found.version, pytorch=True)
    assert (release.config["token_merging"], release.config["merging_schedule"]) == (2, "halving")
    assert release.checks["derived_from"]["version"] == 1
    assert len(release.checks["derived_from"]["variants"]) == 4
    assert release.release_id != registry.pull("1").release_id
    images, network = published.splits.test.images, open_network(release)
    assert network.token_counts == [17, 15, 14, 14]
    served = OnnxClassifier(release.onnx_path).logits(list(images))
    np.testing.assert_allclose(served, predict_logits(network, images), atol=1e-3)
    table = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/optimize/variants.json"))
    assert [row["p95_ms"] for row in table["variants"]] == [4.0, 5.0, 8.5, 9.0]
    assert "figures/optimize.png" in [
        entry.path for entry in mlflow.artifacts.list_artifacts(f"runs:/{run_id}/figures")
    ]
    with pytest.raises(ConfigError, match="derived from version 1 without training: type vitcifar reproduce 1"):
        check_trained(release)


def test_nothing_is_registered_without_a_variant_that_is_faster_or_within_the_budget(
    registry: Any, search: Callable[..., tuple[str, Derived]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(registry.list())
    _, slower = search(9.0, 9.0, 9.0, 9.0, max_p95_ms=5.0)
    assert slower.version is None
    none = "No variant is faster than toy 1 and not worse: no other version was registered."
    assert slower.message == f"{none} It takes 8.0 ms, more than 5."
    _, itself = search(4.0, 9.0, 9.0, 9.0)  # the version's own size, merges and format
    assert itself.message == none
    _, late = search(9.0, 9.0, 6.0, 7.0, max_p95_ms=5.0)
    slow = "The fastest variant that is not worse takes 6.0 ms, more than 5"
    assert late.message == f"{slow}: no other version was registered."
    monkeypatch.setattr(variants, "MIN_AGREEMENT", 1.01)  # of int8 and its float file: none passes
    _, strict = search(9.0, 1.0, 9.0, 1.0)
    assert strict.version is None
    assert all(
        row.reason.startswith("it agrees with its float file") for row in strict.variants if row.format == "onnx-int8"
    )
    assert len(registry.list()) == before


def test_another_image_size_keeps_the_weights_and_interpolates_positions(published: Any) -> None:
    network = published.networks[1]
    variant = make_variant(network, published.config, Tokens(image_size=24, token_merging=1))
    assert (variant.image_size, variant.token_merging, variant.backbone.seq_length) == (24, 1, 10)
    assert (variant.head.weight == network.head.weight).all()


def test_every_size_number_of_pairs_and_schedule_is_tried_and_no_merging_once(published: Any) -> None:
    tried = [(one.image_size, one.merged) for one in combinations(published.networks[1], (32, 24), (0, 2))]
    assert tried == [(size, merged) for size in (32, 24) for merged in ("0", "2", "2 halving")]
    own = combinations(published.networks[1])
    assert {one.image_size for one in own} == {32, 24}
    assert [one.merged for one in own[:3]] == ["0", "3", "3 halving"]


def test_the_pareto_front_leaves_out_what_is_slower_and_no_more_accurate() -> None:
    points = [("slow", 9.0, 0.9, True), ("best", 5.0, 0.95, True), ("fast", 2.0, 0.8, True), ("same", 3.0, 0.8, True)]
    assert [point[0] for point in pareto_front(points)] == ["fast", "best"]


def test_training_within_a_budget_registers_the_fastest_variant_and_promotes_that(
    store: mlflow.MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variants take 4 ms and the version 8; the gate measures 9, above the budget of 5."""
    monkeypatch.setattr(variants, "fastest_precision", lambda: "")
    monkeypatch.setattr(variants, "SIZES", (1.0,))
    monkeypatch.setattr(variants, "MERGED", (0.25,))
    monkeypatch.setattr(variants, "onnx_p95", lambda models: [4.0, 8.0])
    monkeypatch.setattr(gates, "onnx_p95", lambda models: [9.0])
    small = {"train_per_class": 5, "validation_per_class": 2, "test_per_class": 2, "analysis": "none", "epochs": 1}
    trained = train(preset="digits", benchmark_runs=0, promote_to="champion", max_p95_ms=5.0, **small)
    assert (trained.version, trained.alias) == (2, None)
    assert trained.budget.startswith("Version 2 (32 px, ")
    registry = Registry("vitcifar")
    release, latency = registry.pull(2), next(gate for gate in trained.gates if gate.name == "latency")
    assert (latency.passed, latency.value, latency.limit) == (False, 9.0, 5.0)
    assert "latency" in store.get_run(trained.run_id).data.tags["promotion"]
    assert release.checks["derived_from"]["version"] == 1
    assert release.checks["test"]["accuracy"] == trained.evaluation.accuracy
    assert release.checks["weights_sha256"] == trained.weights_sha256
    search = store.get_run(release.run_id).data.tags
    assert (search["kind"], search["optimizes"], search["mlflow.parentRunId"]) == (
        *("optimize", "models:/vitcifar/1"),
        trained.run_id,
    )
