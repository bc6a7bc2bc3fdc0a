"""The head without epochs: a multinomial logistic regression on features of the frozen backbone.

Letters in the shapes: V views of each image, N images, M = V x N samples, D hidden size, K classes."""

import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from vitcifar import progress
from vitcifar.config import TrainConfig
from vitcifar.data.dataset import ImageDataset
from vitcifar.errors import TrainingError
from vitcifar.model.network import Classifier
from vitcifar.presets import resolve
from vitcifar.training.batches import CachedFeatures
from vitcifar.training.checkpoint import LAST
from vitcifar.training.distributed import launched_processes, peak_memory
from vitcifar.training.feature_cache import FeatureCache
from vitcifar.training.loop import TrainResult, finish, keep_best, validate
from vitcifar.training.stages import Log, LogHistograms, Setup, prepare, prepare_inputs
from vitcifar.training.state import TrainState

STRENGTHS = np.logspace(-4, 2, 13)  # inverse L2 strengths C, as scikit-learn counts them
NUM_FOLDS = 5
MAX_ITERATIONS = 1000
# Settings of minibatch training that have no effect here.
UNUSED = (
    *("epochs", "learning_rate", "schedule", "warmup_epochs", "optimizer", "weight_decay", "layer_decay", "clip_norm"),
    *("ema_decay", "patience", "accumulation_steps"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A fitted head: weight (K, D) and bias (K,), the inverse L2 strength that was chosen, and its loss in
    cross-validation, in nats per sample."""

    weight: np.ndarray
    bias: np.ndarray
    strength: float
    loss: float
    converged: bool


def fit_head(features: np.ndarray, labels: np.ndarray, *, seed: int) -> Head:
    """Fit a multinomial logistic regression with L-BFGS to features (V, N, D) of images with labels (N,).

    L2 is the strength with the lowest log loss in cross-validation, as for the linear probes of Radford et al. 2021
    ("CLIP"). Every fold has the classes in the same proportions, and all views of an image on one side. Raises
    TrainingError for a class of one image.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    num_views, num_images, _ = features.shape
    num_folds = min(NUM_FOLDS, int(np.bincount(labels).min()))
    if num_folds < 2:
        raise TrainingError(
            "L2 is chosen by cross-validation, which needs at least 2 training images of each class: add images, or "
            "type --head-solver minibatch."
        )
    samples = features.reshape(num_views * num_images, -1).astype(np.float64)  # (M, D)
    rows = np.arange(num_views)[:, None] * num_images  # of an image: one in each view
    split = StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(labels, labels)
    folds = [tuple((rows + part).ravel() for part in parts) for parts in split]
    model = LogisticRegression(max_iter=MAX_ITERATIONS)
    search = GridSearchCV(model, {"C": STRENGTHS}, scoring="neg_log_loss", cv=folds)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        best = search.fit(samples, np.tile(labels, num_views)).best_estimator_
    weight, bias = best.coef_, best.intercept_
    if len(best.classes_) == 2:  # scikit-learn has one row then, of the second class against the first
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Head(
        weight=weight.astype(np.float32),
        bias=bias.astype(np.float32),
        strength=float(search.best_params_["C"]),
        loss=-float(search.best_score_),
        converged=not caught,
    )


def solve_head(
    network: Classifier,
    train: ImageDataset,
    validation: ImageDataset,
    config: TrainConfig,
    *,
    log: Log,
    log_histograms: LogHistograms = lambda step, tensors: None,
    folder: Path,
    resume: Path | None = None,
    notify: Callable[[str], object] = progress.notify,
    feature_cache: FeatureCache | None = None,
) -> TrainResult:
    """Fit the head of the network in place, in one step: as `training.loop.fit`, whose arguments these are.

    A run that was killed fits again when it is resumed, unless the head was complete. Raises TrainingError when the
    features do not fit into memory, a class has one image, or several processes were started.
    """
    if launched_processes() > 1:
        raise TrainingError("head_solver is lbfgs, which one process computes: start one process.")
    setup, _, saved = prepare(
        network, train, validation, config, log, log_histograms, notify, folder, resume, feature_cache=feature_cache
    )
    state = TrainState.restore(saved, resume or folder, 1)
    if not state.epoch:
        solve(setup, state)
    method = f"The head was fitted by L-BFGS, C = {state.best_metrics['train/inverse_l2']:.3g} by cross-validation"
    return dataclasses.replace(finish(setup, state), method=method)


def solve(setup: Setup, state: TrainState) -> None:
    """Compute the features, fit, log the one point of this training, and write its checkpoint."""
    started = time.perf_counter()
    default = resolve("cifar10")
    if unused := [name for name in UNUSED if getattr(setup.config, name) != getattr(default, name)]:
        setup.notify(f"{', '.join(unused)}: no effect with head_solver lbfgs, which trains no epochs.")
    inputs = prepare_inputs(setup, "head")
    if not isinstance(inputs.train.source, CachedFeatures):
        raise TrainingError("head_solver is lbfgs, which needs all features in memory: type a larger --cache-memory.")
    views, labels = inputs.train.source.views, setup.train.labels  # (V, N, D), (N,)
    setup.notify(f"Fitting the head to {views.shape[0] * views.shape[1]:,} samples, L2 by cross-validation.")
    head = fit_head(views.numpy(), labels, seed=setup.config.seed)
    if not head.converged:
        setup.notify(f"L-BFGS stopped at {MAX_ITERATIONS} iterations for one of the strengths of L2.")
    with torch.no_grad():
        setup.network.head.weight.copy_(torch.from_numpy(head.weight))
        setup.network.head.bias.copy_(torch.from_numpy(head.bias))
        logits = setup.network.head(views.flatten(0, 1).to(setup.device)).float()  # (M, K)
    expected = setup.labels.repeat(len(views))
    state.epoch = state.step = state.stage_epoch = state.stage_step = 1
    metrics = {
        "train/loss": float(functional.cross_entropy(logits, expected)),
        "train/accuracy": float((logits.argmax(dim=1) == expected).double().mean()),
        "train/inverse_l2": head.strength,
        "train/cross_validation_loss": head.loss,
        **validate(setup, inputs),
    }
    keep_best(setup, state, metrics)
    speed = {
        "system/images_per_second": len(labels) / (time.perf_counter() - started),
        "system/peak_memory_megabytes": peak_memory(setup.device) / 1e6,
    }
    setup.log(1, {**metrics, **speed, "validation/best_accuracy": metrics["validation/accuracy"]})
    setup.log_histograms(1, {f"head/{name}": weight for name, weight in setup.network.head.named_parameters()})
    setup.checkpoints.save(LAST, state=dataclasses.asdict(state), optimizer={}, scaler={}, ema={})
