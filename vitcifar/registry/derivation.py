"""A version derived from another without training: the fastest variant that is not worse is registered.

Variants are chosen on validation images; the test images are used once, for the variant that was chosen.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitcifar import tracking
from vitcifar.config import TrainConfig
from vitcifar.data.splits import Splits
from vitcifar.evaluation.calibration import softmax
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.inference.machine import this_machine
from vitcifar.registry.registration import register
from vitcifar.registry.variants import Tokens, Variant, combinations, make_variant, measure
from vitcifar.release.build import build_release
from vitcifar.release.manifest import Manifest
from vitcifar.report.log import calibrate, log_datasets, log_evaluation
from vitcifar.report.pareto import latency_chart

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier


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
    choices: Sequence[Tokens] = (),
) -> Derived:
    """Measure the variants of a registered release, whose network, config and images are given, and register the
    fastest that is faster, not worse and within the budget (0 = none), as a version of the run.

    `choices` are the tokens that are tried (none = `combinations`), each in every format.

    Raises VitCifarError.
    """
    log_datasets(run, config, {"validation": splits.validation, "test": splits.test}, splits)
    variants = measure(network, release, config, splits, choices or combinations(network))
    log_variants(run, release, variants, max_p95_ms)
    own = Tokens(
        image_size=release.image_size,
        token_merging=config.token_merging,
        merging_schedule=config.merging_schedule if config.token_merging else "constant",
    )
    others = [row for row in variants if (row.tokens, row.format) != (own, release.serving_format)]
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
        p95 = float(np.median([row.version_p95_ms for row in variants if row.version_p95_ms] or [0.0]))
        if max_p95_ms and p95 > max_p95_ms:
            message += f" It takes {p95:.1f} ms, more than {max_p95_ms:g}."
        derived = Derived(variants=variants, message=message)
    run.note(f"{run_title(release)}: {derived.message}")
    return derived


def run_title(release: Manifest) -> str:
    return f"optimize {release.name}"


def run_tags(release: Manifest) -> dict[str, str]:
    return {"kind": "optimize", "optimizes": f"models:/{release.model_name}/{release.version}"}


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

    variant = make_variant(network, config, best.tokens)
    validation, logits = (predict_logits(variant, split.images) for split in (splits.validation, splits.test))
    evaluation = calibrate(validation, logits, splits, config.target_precision)
    variant.temperature.fill_(evaluation.temperature)
    log_evaluation(run, evaluation, splits.test, softmax(logits, evaluation.temperature))
    origin = {"version": release.version, "release_id": release.release_id}
    config = dataclasses.replace(config, **dataclasses.asdict(best.tokens), model_name=release.model_name)
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
