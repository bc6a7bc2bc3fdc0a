"""A release and a registered version as vitcifar 0.1 (commit a37d1cc, format 1) wrote them, around the toy ONNX file.

    digest = write_old_release(folder)                      # a new folder with release.json, model.onnx, MLmodel, data/
    digest = write_old_release(folder, int8=True)           # model.int8.onnx serves and has an evaluation of its own
    digest = write_old_release(folder, evaluation=scores(390), config={"outliers": "digits"})
    number = add_old_version(folder / "old", evaluation=scores(390))  # stored and registered in the connected MLflow

`evaluation` may have the keys of today; `config` changes single settings, under their names of 0.1. The texts of the
gates and the names of the keys are copied from a store that the old code filled; do not update them.
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import mlflow
import yaml
from support.toys import COLOURS, make_onnx

OLD_CONFIG = {
    "data": "digits",
    "data_dir": "data",
    "train_per_class": 100,
    "validation_per_class": 25,
    "test_per_class": 25,
    "data_seed": 0,
    "seed": 0,
    "arch": "vit_tiny",
    "weights": "none",
    "image_size": 0,
    "train_layers": "all",
    "epochs": 12,
    "batch_size": 25,
    "learning_rate": 0.001,
    "schedule": "cosine",
    "warmup_epochs": 1.0,
    "optimizer": "adamw",
    "weight_decay": 0.1,
    "layer_decay": 1.0,
    "clip_norm": 0.0,
    "label_smoothing": 0.0,
    "augmentation": "none",
    "mixup": 0.0,
    "cutmix": 0.0,
    "ema_decay": 0.0,
    "patience": 0,
    "head_epochs": 0,
    "lora_rank": 0,
    "resume": "none",
    "precision": "auto",
    "compile": "off",
    "accumulation_steps": 1,
    "num_views": 4,
    "cache_memory": 4.0,
    "num_workers": 0,
    "num_processes": 1,
    "device": "auto",
    "examine": "full",
    "target_precision": 0.95,
    "robustness_pictures": 20,
    "outliers": "auto",
    "experiment": "vitcifar",
    "run_name": "none",
    "output_dir": "runs",
    "model_name": "toy",
    "int8": "try",
    "benchmark_runs": 20,
    "promote_to": "champion",
}

# Six test images, one of them wrong.
OLD_EVALUATION: dict[str, Any] = {
    "class_names": [*COLOURS],
    "fingerprint": "e" * 64,
    "temperature": 1.0,
    "accuracy": 5 / 6,
    "accuracy_low": 0.4365,
    "accuracy_high": 0.9699,
    "top2_accuracy": 5 / 6,
    "top3_accuracy": 1.0,
    "precision_macro": 0.8889,
    "recall_macro": 5 / 6,
    "f1_macro": 0.8222,
    "loss": 0.7026,
    "ece": 0.1313,
    "brier": 0.3175,
    "aurc": 0.1667,
    "classes": [
        {"name": name, "support": 2, "precision": p, "recall": r, "recall_low": low, "recall_high": high, "f1": f1}
        for name, p, r, low, high, f1 in (
            ("red", 1.0, 1.0, 0.3424, 1.0, 1.0),
            ("green", 1.0, 0.5, 0.0945, 0.9055, 0.6667),
            ("blue", 0.6667, 1.0, 0.3424, 1.0, 0.8),
        )
    ],
    "confused": [{"label": "green", "answer": "blue", "count": 1, "share": 0.5}],
    "bins": [{"low": i / 15, "high": (i + 1) / 15, "count": 0, "confidence": 0.0, "accuracy": 0.0} for i in range(14)]
    + [{"low": 14 / 15, "high": 1.0, "count": 6, "confidence": 0.9647, "accuracy": 5 / 6}],
    "confusion": [[2, 0, 0], [0, 1, 1], [0, 0, 2]],
    "labels": [0, 1, 2, 0, 1, 2],
    "predictions": [0, 1, 2, 0, 2, 2],
    "confidences": [0.9647] * 6,
    "threshold": 0.5,
}

OLD_MACHINE = {
    "flags": ["avx2", "fma"],
    "num_cores": 2,
    "processor": "AMD EPYC",
    "system": "Linux x86_64",
    "versions": {"numpy": "2.4.6", "onnxruntime": "1.32.0", "torch": "2.13.0+cpu"},
}
OLD_GATES = [
    {"name": "files", "passed": True, "sentence": "all whole", "number": 3, "limit": None, "asked": True},
    {
        "name": "parity",
        "passed": True,
        "sentence": "0 of 24 answers changed by the export, logits by up to 5.2e-06",
        "number": 5.2e-06,
        "limit": 0.001,
        "asked": True,
    },
    {
        "name": "accuracy",
        "passed": True,
        "sentence": "0.8333 (95 % interval 0.4365 to 0.9699, 6 pictures), limit 0.0000",
        "number": 5 / 6,
        "limit": 0.0,
        "asked": True,
    },
    {
        "name": "champion",
        "passed": True,
        "sentence": "no other version is champion",
        "number": None,
        "limit": None,
        "asked": False,
    },
]


def write_old_release(
    folder: Path,
    *,
    evaluation: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    int8: bool = False,
    **fields: Any,
) -> str:
    """Write a release of format 1 into a new folder; returns its digest. `fields` replace entries of release.json."""
    (folder / "data").mkdir(parents=True)
    make_onnx(folder / "model.onnx", release_id="old")
    (folder / "data" / "model.pt2").write_bytes(b"the weights, which nothing that serves opens")
    if int8:
        make_onnx(folder / "model.int8.onnx", release_id="old")
    flavors = {
        "onnx": {"code": None, "data": "model.onnx", "providers": ["CPUExecutionProvider"]},
        "python_function": {"loader_module": "vitcifar.serving.rest", "python_version": "3.11.7"},
        "pytorch": {"code": None, "model_data": "data", "pytorch_version": "2.13.0+cpu"},
    }
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors, "mlflow_version": "3.17.2"}))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    release = {
        "format": 1,
        "release_id": "old",
        "model_name": "toy",
        "class_names": [*COLOURS],
        "image_size": 32,
        "temperature": 1.0,
        "threshold": 0.5,
        "fingerprint": "f" * 64,
        "run_id": "r" * 32,
        "serves": "model.int8.onnx" if int8 else "model.onnx",
        "preprocessing": {"resize": "bilinear, antialiased", "mean": [0.485] * 3, "std": [0.229] * 3},
        "counts": {"train": dict.fromkeys(COLOURS, 100), "test": dict.fromkeys(COLOURS, 2)},
        "config": {**OLD_CONFIG, **(config or {})},
        "git": {"commit": "a37d1cc9301d24c11e23ff82f06d16c79219167b", "dirty": False},
        "environment": {"vitcifar": "0.1.0", "python": "3.11.7", "platform": "Linux", "packages": {"mlflow": "3.17.2"}},
        "proofs": _proofs(_as_then(evaluation), int8),
        "files": {path.relative_to(folder).as_posix(): _sha256(path) for path in files},
        **fields,
    }
    (folder / "release.json").write_text(json.dumps(release, indent=1, sort_keys=True) + "\n")
    return _sha256(folder / "release.json")


def add_old_version(folder: Path, **fields: Any) -> int:
    """Write, store and register such a release with the tags of 0.1; arguments as for `write_old_release`.

    The version has a latency table of another machine, a gate report and, where no alias has one, a first history entry
    of "champion" (the alias itself is not set). Returns the version's number.
    """
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id
    digest = write_old_release(folder, **{"run_id": run_id, **fields})
    release = json.loads((folder / "release.json").read_text())
    name = release["model_name"]
    model = client.create_logged_model("0", name="release", source_run_id=run_id, tags={"vitcifar_model": name})
    client.log_model_artifacts(model.model_id, str(folder))
    if not any(known.name == name for known in client.search_registered_models()):
        client.create_registered_model(name)
    tags = _version_tags(release, digest)
    source = f"models:/{model.model_id}"
    version = int(client.create_model_version(name, source, run_id=run_id, tags=tags, model_id=model.model_id).version)
    link = json.dumps([{"name": name, "version": version}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
    if version == 1:
        _note_promotion(client, name)
    return version


def _as_then(evaluation: dict[str, Any] | None) -> dict[str, Any]:
    """An evaluation with the keys of 0.1."""
    then = copy.deepcopy(evaluation or OLD_EVALUATION)
    for row in (rows := [dict(row) for row in then.get("confused", ())]):
        if "prediction" in row:
            row["answer"] = row.pop("prediction")
    return {**then, "confused": rows} if "confused" in then else then


def _proofs(evaluation: dict[str, Any], int8: bool) -> dict[str, Any]:
    static = {"accuracy": 0.9, "float_accuracy": 0.9, "outcome": "not enough evidence", "p_value": 1.0}
    static |= {"agreement": 1.0, "p95_ms": 1.0 if int8 else 3.0, "float_p95_ms": 2.0, "file_bytes": 1000}
    slower = "it is not faster: 3.0 ms against 2.0 ms at the 95th percentile"
    static |= {"kind": "static", "kept": int8, "reason": "as right as the float file and faster" if int8 else slower}
    proofs = {
        "parity": {
            "max_logit_difference": 5.2e-06,
            "num_changed": 0,
            "num_pictures": 24,
            "num_odd_files": 18,
            "worst_id": "odd/16-bit.png",
        },
        "test": evaluation,
        "weights_sha256": "a" * 64,
        "int8": {"dynamic": {**static, "kind": "dynamic", "kept": False, "reason": slower}, "static": static},
    }
    if int8:
        proofs["served"] = {
            "file": "model.int8.onnx",
            "evaluation": copy.deepcopy(evaluation),
            "agreement": 1.0,
            "num_odd_files": 18,
            "num_odd_changed": 0,
        }
    return proofs


def _version_tags(release: dict[str, Any], digest: str) -> dict[str, str]:
    rows = [
        {
            "form": form,
            "num_threads": 1,
            "file_bytes": 1000,
            "accuracy": None,
            "cold_ms": 10.7,
            "p50_ms": 0.3,
            "p95_ms": 0.4,
            "p99_ms": 0.5,
        }
        for form in ("torch", "pt2", "onnx", "int8")
    ]
    table = {"fingerprint": "99d09f5bd251e5d1", "image_size": 32, "machine": OLD_MACHINE, "num_runs": 20, "rows": rows}
    report = {"passed": True, "forced": False, "who": "root", "reason": "asked for by run 11afc", "gates": OLD_GATES}
    return {
        "release_digest": digest,
        "release_id": release["release_id"],
        "fingerprint": release["fingerprint"],
        "parity_max_logit_difference": str(release["proofs"]["parity"]["max_logit_difference"]),
        "test_accuracy": str(release["proofs"]["test"]["accuracy"]),
        "latency/99d09f5bd251e5d1": json.dumps(table, sort_keys=True),
        "gates/champion/20261125T111041.115687Z": json.dumps(report),
    }


def _note_promotion(client: mlflow.MlflowClient, name: str) -> None:
    event = {
        "kind": "promote",
        "alias": "champion",
        "before": None,
        "after": 1,
        "done": True,
        "forced": False,
        "gates": OLD_GATES,
        "reason": "asked for by run 11afc",
        "who": "root",
        "when": "2026-11-25T11:10:41.126129Z",
    }
    key = "history/champion/20261125T111041.126129Z-c63a0a92"
    client.set_registered_model_tag(name, key, json.dumps(event, sort_keys=True))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
