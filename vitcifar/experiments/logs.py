"""Whether MLflow and TensorBoard hold the same points of a run, and where the training of two runs parts."""

import dataclasses
import tempfile
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np

from vitcifar.errors import TrackingError
from vitcifar.registry.diff import Difference
from vitcifar.run import STEP_PREFIX, mlflow_points
from vitcifar.stores import find_run, reaching
from vitcifar.tensorboard import read_points

LOSS = f"{STEP_PREFIX}loss"
TRAINING = (STEP_PREFIX, "train/", "validation/")  # what the training loop logs that the settings decide


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogComparison:
    """The metric points of a run in MLflow and TensorBoard, and one sentence per difference."""

    num_metrics: int
    num_points: int
    differences: tuple[str, ...]


def compare_logs(run_id: str) -> LogComparison:
    """Compare every metric point of a run with the event files among its artifacts, at float32.

    Raises TrackingError when the run or its event files do not exist.
    """
    client = mlflow.MlflowClient()
    find_run(run_id)
    with reaching(mlflow.get_tracking_uri()):
        ours = mlflow_points(client, run_id)
        has_files = bool(client.list_artifacts(run_id, "tensorboard"))
    if not has_files:
        raise TrackingError(f"Run {run_id} has no TensorBoard files: it has not ended, or another tool created it.")
    with reaching(mlflow.get_tracking_uri()), tempfile.TemporaryDirectory() as folder:
        theirs = read_points(Path(client.download_artifacts(run_id, "tensorboard", folder)))
    mlflow_counts, tensorboard_counts = (
        Counter((name, step, str(np.float32(value))) for name, step, value in points) for points in (ours, theirs)
    )
    only_one = {"MLflow": mlflow_counts - tensorboard_counts, "TensorBoard": tensorboard_counts - mlflow_counts}
    return LogComparison(
        num_metrics=len({name for name, _, _ in ours}),
        num_points=len(ours),
        differences=tuple(
            f"{name} at step {step} is {value} only in {side}" + (f" ({count} times)" if count > 1 else "")
            for side, points in only_one.items()
            for (name, step, value), count in sorted(points.items())
        ),
    )


def first_difference(run_id: str, other_id: str) -> Difference | None:
    """The first step at which a training metric of two runs differs in MLflow, with both values; None without one.

    Metrics that one of the two has not, as a run of an earlier vitcifar, are left out. Raises TrackingError when a run
    does not exist.
    """
    client, runs = mlflow.MlflowClient(), []
    for one in (run_id, other_id):
        try:
            points = mlflow_points(client, one)
        except mlflow.MlflowException as error:
            raise TrackingError(f"There is no run {one!r} any more, so its metrics cannot be compared.") from error
        runs.append({(step, name): value for name, step, value in points if name.startswith(TRAINING)})
    ours, theirs = runs
    common = {name for _, name in ours} & {name for _, name in theirs}

    def order(at: tuple[int, str]) -> tuple[int, bool, bool, str]:
        step, name = at
        return step, not name.startswith(STEP_PREFIX), name != LOSS, name

    for step, name in sorted((at for at in ours.keys() | theirs.keys() if at[1] in common), key=order):
        before, after = ours.get((step, name)), theirs.get((step, name))
        if before != after:
            return Difference(section="training", name=f"{name} at step {step}", before=before, after=after)
    return None
