"""Examines a network at the end of its training, in the run of the training."""

from typing import TYPE_CHECKING

import numpy as np

from vitcifar.config import TrainConfig
from vitcifar.data.splits import Splits
from vitcifar.evaluation.calibration import softmax
from vitcifar.evaluation.scores import Evaluation
from vitcifar.examine.checks import examine
from vitcifar.examine.record import data_name, record_report
from vitcifar.tracking import Run

if TYPE_CHECKING:
    from vitcifar.training.network import Classifier


def examine_trained(
    run: Run, network: "Classifier", splits: Splits, config: TrainConfig, evaluation: Evaluation, logits: np.ndarray
) -> None:
    """Look at what config.examine asks for and write it into the run, with the report; logits (N, K) are the test's."""
    from vitcifar.training.predict import predict_logits

    if config.examine == "none":
        return
    examination = examine(
        evaluation,
        splits.test,
        logits,
        config,
        predictor=lambda images: predict_logits(network, images, config.batch_size),
        trained_on={"train": splits.train, "validation": splits.validation},
        network=network,
    )
    record_report(
        run,
        examination,
        evaluation,
        splits.test,
        softmax(logits, evaluation.temperature),
        title=f"{config.arch} on {data_name(config)}",
        subtitle=f"Trained on {len(splits.train):,} pictures, calibrated on {len(splits.validation):,}, and tested "
        f"once on {len(splits.test):,} that it had never seen.",
        facts={
            "Run": run.run_id,
            "Network": f"{config.arch}, {network.image_size} pixels, trained: {config.train_layers}",
            "Started from": config.weights if config.weights != "none" else "new weights",
            "Fingerprint of the pictures": splits.fingerprint[:16],
        },
    )
