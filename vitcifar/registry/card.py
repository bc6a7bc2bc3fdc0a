"""A model card that says only what was recorded and proven."""

import json
from collections.abc import Iterator
from typing import Any

from vitcifar.registry.aliases import upgrade_gate
from vitcifar.registry.benchmark import read_tables
from vitcifar.registry.gates import PREFIX as GATES
from vitcifar.registry.registry import Version
from vitcifar.release.manifest import Manifest, served_evaluation

SHOWN_CONFIG = (
    *("arch", "weights", "train_layers", "epochs", "batch_size", "optimizer", "learning_rate", "schedule"),
    *("weight_decay", "augmentation", "seed"),
)


def model_card(version: Version, release: Manifest) -> str:
    """The card in Markdown."""
    return "\n".join(
        [
            f"# {version.model_name} {version.number}",
            "",
            *_summary(version, release),
            *_section("Data", _data(release)),
            *_section(f"Scores of {release.serves} on the test images", _scores(served_evaluation(release))),
            *_section("Training", _training(release)),
            *_section("Proofs", _proofs(release)),
            *_section("Latency, one image at a time", _latency(version)),
            *_section("Gates", _gates(version)),
            *_section("Files (sha256)", (f"- `{name}` {digest[:16]}…" for name, digest in release.files.items())),
        ]
    )


def _section(title: str, lines: Iterator[str]) -> list[str]:
    found = list(lines)
    return [f"## {title}", "", *found, ""] if found else []


def _summary(version: Version, release: Manifest) -> list[str]:
    held = ", ".join(version.aliases) or "none"
    return [
        f"- aliases: {held}",
        f"- registered: {version.created}",
        f"- release: {release.release_id}, digest {str(version.digest)[:16]}…",
        f"- answers: {', '.join(release.class_names)}",
        f"- input: one image of any size, resized to {release.image_size} x {release.image_size} "
        f"({release.preprocessing.get('resize', 'not recorded')})",
        f"- probabilities: softmax(logits / {release.temperature:.4f})",
        *([f"- sure enough to answer: confidence of at least {release.threshold:.4f}"] if release.threshold else []),
        f"- serves: {release.serves}",
        "",
    ]


def _data(release: Manifest) -> Iterator[str]:
    yield f"- source: {release.config.get('data', 'not recorded')}"
    yield f"- fingerprint: {release.fingerprint}"
    for split, counts in release.counts.items():
        numbers = sorted(set(counts.values()))
        each = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        yield f"- {split}: {sum(counts.values())} images, {each} in each of {len(counts)} classes"


def _scores(test: dict[str, Any]) -> Iterator[str]:
    if "accuracy" not in test:
        return
    if {"accuracy_low", "accuracy_high", "labels"} <= test.keys():
        yield (
            f"- accuracy: {test['accuracy']:.4f} (95 % interval {test['accuracy_low']:.4f} to "
            f"{test['accuracy_high']:.4f}, {len(test['labels'])} images)"
        )
    else:
        yield f"- accuracy: {test['accuracy']:.4f}"
    for name in ("top2_accuracy", "top3_accuracy", "f1_macro", "loss", "ece", "brier"):
        if name in test:
            yield f"- {name}: {test[name]:.4f}"
    rows = test.get("classes", ())
    if rows:
        yield from ("", "| class | precision | recall | F1 | images |", "|---|---|---|---|---|")
        for row in rows:
            numbers = " | ".join(f"{row[name]:.3f}" for name in ("precision", "recall", "f1"))
            yield f"| {row['name']} | {numbers} | {row['support']} |"


def _training(release: Manifest) -> Iterator[str]:
    yield f"- run: {release.run_id}"
    commit = release.git.get("commit")
    changed = ", with changes that were not committed" if release.git.get("dirty") else ""
    yield f"- code: {f'commit {commit}{changed}' if commit else 'not recorded'}"
    packages = release.environment.get("packages", {})
    known = [f"{name} {packages[name]}" for name in ("torch", "torchvision", "onnxruntime") if name in packages]
    yield f"- environment: Python {release.environment.get('python', '?')}, {', '.join(known)}"
    for name in SHOWN_CONFIG:
        if name in release.config:
            yield f"- {name}: {release.config[name]}"


def _proofs(release: Manifest) -> Iterator[str]:
    parity = release.checks.get("parity")
    if parity:
        yield (
            f"- the ONNX file answers as the network: logits off by at most {parity['max_logit_difference']:.2g}, "
            f"{parity.get('num_changed')} of {parity.get('num_images')} answers changed "
            f"({parity.get('num_edge_cases', 0)} of them odd files), worst on {parity.get('worst_id')}"
        )
    for kind, candidate in release.checks.get("int8", {}).items():
        kept = "kept" if candidate["accepted"] else "not kept"
        yield f"- int8, {kind}: {kept}, {candidate['reason']}"
    if served := release.checks.get("served"):
        yield (
            f"- {served['file']} serves: it agrees with the network on {served['agreement']:.2%} of the test images; "
            f"{served['num_edge_cases_changed']} of {served['num_edge_cases']} answers to odd files changed"
        )
    if "weights_sha256" in release.checks:
        yield f"- weights: sha256 {release.checks['weights_sha256']}"


def _gates(version: Version) -> Iterator[str]:
    keys = [key for key in version.tags if key.startswith(GATES)]
    for key in sorted(keys, key=lambda key: key.rsplit("/", 1)[-1]):  # in order of time
        verdict = json.loads(version.tags[key])
        alias, when = key.removeprefix(GATES).split("/")
        outcome = "passed" if verdict["passed"] else "forced" if verdict["forced"] else "refused"
        why = f": {verdict['reason']}" if verdict.get("reason") else ""
        time = f"{when[:4]}-{when[4:6]}-{when[6:8]} {when[9:11]}:{when[11:13]}:{when[13:15]}Z"
        yield f"- {time}, {alias}, {verdict.get('who', 'unknown')}: {outcome}{why}"
        for gate in map(upgrade_gate, verdict["gates"]):
            state = ("passed" if gate.get("required", True) else "not asked") if gate["passed"] else "FAILED"
            yield f"  - {state} {gate['name']}: {gate['message']}"


def _latency(version: Version) -> Iterator[str]:
    for index, table in enumerate(read_tables(version).values()):
        machine = table.machine
        if index:
            yield ""
        yield f"{machine.processor}, {machine.num_cores} cores, {' '.join(machine.flags)}; " + ", ".join(
            f"{name} {number}" for name, number in machine.versions.items()
        )
        yield from ("", "| form | threads | size MB | accuracy | cold ms | p50 ms | p95 ms | p99 ms |")
        yield "|---|---|---|---|---|---|---|---|"
        for row in table.rows:
            accuracy = "-" if row.accuracy is None else f"{row.accuracy:.4f}"
            size = f"{row.file_bytes / 1e6:.1f}" if row.file_bytes else "-"
            times = " | ".join(f"{time:.1f}" for time in (row.cold_ms, row.p50_ms, row.p95_ms, row.p99_ms))
            yield f"| {row.format} | {row.num_threads} | {size} | {accuracy} | {times} |"
