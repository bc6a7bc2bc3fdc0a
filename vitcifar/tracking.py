"""One writer for a run: MLflow and TensorBoard get the same names, values and steps.

MLflow keeps doubles, TensorBoard's files keep float32: `compare_logs` holds them together at float32.
"""

import contextlib
import dataclasses
import json
import logging
import os
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcifar.errors import TrackingError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

STEP_PREFIX = "step/"  # written in batches, everything else at once
FLUSH_SECONDS = 2.0
MAX_BUFFER = 1000  # the most that MLflow takes in one call

Point = tuple[str, int, float]  # name, step, value


def connect(uri: str | None = None, *, new: bool = True) -> str:
    """Point MLflow at a tracking store, made whole if it is a new SQLite file; returns the absolute URI.

    Without a URI: MLFLOW_TRACKING_URI, else ./mlflow.db. Raises TrackingError when the store cannot be reached, when
    the text is no address of a store, and for a SQLite file that is not there unless it may be `new`.
    """
    import mlflow

    for chatty in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if "://" not in uri and uri != "databricks":
        raise TrackingError(f"{uri!r} is not the address of a tracking store: type sqlite:///FILE or http://HOST:PORT.")
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///").split("?")[0]).absolute()
        if not new and not path.exists():
            raise TrackingError(
                f"There is no tracking store {path}: go to the folder where it is, name it with --tracking-uri, "
                "or make one with vitcifar train."
            )
        create_store(path)
        uri = f"sqlite:///{path}"
    else:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default hangs for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ["MLFLOW_TRACKING_URI"] = uri  # for the processes that are started from here
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri("")  # the registry of the tracking store
    with reaching(uri):
        mlflow.MlflowClient().search_experiments(max_results=1)
    return uri


def create_store(path: Path) -> None:
    """Make a new SQLite store in a temporary file and move it into place: two processes may start at once, and one
    that is killed meanwhile leaves no half-made store behind."""
    import filelock
    import mlflow

    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            if path.exists():
                return
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.") as folder:
                new = Path(folder) / path.name
                mlflow.MlflowClient(tracking_uri=f"sqlite:///{new}").search_experiments(max_results=1)
                os.replace(new, path)
    except OSError as error:
        raise TrackingError(
            f"The tracking store {path} cannot be made ({error.strerror or error}): "
            "name one that can with --tracking-uri."
        ) from error


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn what MLflow raises when its store is away into one sentence."""
    import mlflow
    import requests
    import sqlalchemy.exc

    try:
        yield
    except (mlflow.MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError) as error:
        reason = textwrap.shorten(str(error).splitlines()[0], 200, placeholder="…")
        if "Max retries exceeded" in reason:
            reason = "nobody answers there"
        raise TrackingError(
            f"The tracking store {uri} cannot be used ({reason}): see that it is there, or name another with "
            "--tracking-uri."
        ) from error


class Run:
    """A run that is being written."""

    def __init__(self, run_id: str, folder: Path, *, resumed: bool = False) -> None:
        import mlflow
        from torch.utils.tensorboard import SummaryWriter

        self.run_id = run_id
        self.folder = folder
        self.client = mlflow.MlflowClient()
        self.buffer: list[Any] = []
        self.flushed = time.monotonic()
        self.in_mlflow = {point[:2] for point in mlflow_points(self.client, run_id)} if resumed else set()
        self.in_tensorboard = {point[:2] for point in tensorboard_points(self.tensorboard)} if resumed else set()
        self.writer = SummaryWriter(str(self.tensorboard))

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write numbers to both; what is there already (a resumed run redoes some steps) is not written twice."""
        from mlflow.entities import Metric

        now = time.time()
        for name, value in metrics.items():
            if (name, step) not in self.in_tensorboard:
                self.writer.add_scalar(name, value, step, walltime=now)
            if (name, step) not in self.in_mlflow:
                self.buffer.append(Metric(name, float(value), int(now * 1000), step))
        waited = time.monotonic() - self.flushed > FLUSH_SECONDS or len(self.buffer) >= MAX_BUFFER // 2
        if waited or not all(name.startswith(STEP_PREFIX) for name in metrics):
            self.flush()

    def flush(self) -> None:
        """Hand everything to both stores."""
        while self.buffer:
            with reaching(os.environ["MLFLOW_TRACKING_URI"]):
                self.client.log_batch(self.run_id, metrics=self.buffer[:MAX_BUFFER])
            del self.buffer[:MAX_BUFFER]
        self.writer.flush()
        self.flushed = time.monotonic()

    def log_params(self, params: dict[str, Any], prefix: str = "config.") -> None:
        """Parameters, under a prefix: `mlflow run` has written its own raw text under the bare names."""
        from mlflow.entities import Param

        entries = [Param(prefix + name, str(value)) for name, value in params.items()]
        self.client.log_batch(self.run_id, params=entries)

    def set_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def log_figure(self, name: str, figure: "Figure", step: int = 0) -> None:
        """A matplotlib figure: figures/NAME.png in MLflow, NAME among TensorBoard's images."""
        self.client.log_figure(self.run_id, figure, f"figures/{name}.png", save_kwargs={"dpi": 150})
        self.writer.add_figure(name, figure, step, close=False)

    def log_image(self, name: str, image: "Image") -> None:
        """An image: figures/NAME.png in MLflow, NAME among TensorBoard's images."""
        self.client.log_image(self.run_id, image, f"figures/{name}.png")
        self.writer.add_image(name, np.asarray(image), dataformats="HWC")

    def log_text(self, name: str, text: str) -> None:
        self.client.log_text(self.run_id, text, name)

    def log_json(self, name: str, content: dict[str, Any]) -> None:
        self.log_text(name, json.dumps(content, indent=2))

    def log_dataset(self, split: str, num_images: int, fingerprint: str, *, source: str, location: str) -> None:
        """A split as an MLflow dataset input; its digest is the 36 characters of the fingerprint that MLflow takes,
        the whole is a tag."""
        import mlflow
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]

        dataset = MetaDataset(  # type: ignore[abstract]
            LocalArtifactDatasetSource(location), name=f"{source}-{split}", digest=fingerprint[:36]
        )
        tags = {"fingerprint": fingerprint, "num_images": str(num_images)}
        mlflow.log_input(dataset, context=split, tags=tags)

    def close(self) -> None:
        """Flush, and keep TensorBoard's event files as artifacts of the run."""
        self.flush()
        self.writer.close()
        self.client.log_artifacts(self.run_id, str(self.tensorboard), "tensorboard")


@contextlib.contextmanager
def start_run(
    *,
    experiment: str,
    output_dir: Path,
    run_name: str | None = None,
    run_id: str | None = None,
    nested: bool = False,
    tags: dict[str, str] | None = None,
) -> Iterator[Run]:
    """A run in both trackers; ends FINISHED, FAILED (the tag `failure` says why), or KILLED, never RUNNING.

    The run that `mlflow run` made (MLFLOW_RUN_ID) is used when there is one; a given `run_id` is continued. A nested
    run is a child of the one that is open, in that one's experiment.
    """
    import mlflow

    by_project = os.environ.pop("MLFLOW_RUN_ID", None)  # left there, MLflow would take it for a nested run's id
    given = run_id or (None if nested else by_project)
    parent = mlflow.active_run() if nested else None
    with reaching(os.environ["MLFLOW_TRACKING_URI"]):
        active = mlflow.start_run(
            run_id=given,
            experiment_id=parent.info.experiment_id if parent else None if given else experiment_id(experiment),
            run_name=run_name if given is None else None,
            nested=nested,
            tags=tags,
            log_system_metrics=True,
        )
    run, status = None, "FAILED"
    try:
        run = Run(active.info.run_id, output_dir / active.info.run_id, resumed=run_id is not None)
        yield run
        run.close()
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception as error:
        if run is not None:
            with contextlib.suppress(Exception):  # what is being raised says more
                run.set_tags({"failure": str(error) or type(error).__name__})
        raise
    finally:
        if run is not None and status != "FINISHED":
            with contextlib.suppress(Exception):
                run.close()
        mlflow.end_run(status)


def experiment_id(name: str) -> str:
    """The id of the experiment, made when it is new (also when another process makes it at the same moment)."""
    import mlflow

    client = mlflow.MlflowClient()
    with contextlib.suppress(mlflow.MlflowException):
        return client.create_experiment(name)
    experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        raise TrackingError(f"The experiment {name!r} was deleted: restore it, or name another with --experiment.")
    return experiment.experiment_id


def mlflow_points(client: Any, run_id: str) -> list[Point]:
    """Every metric of a run, but for MLflow's own system metrics, in order."""
    names = sorted(name for name in client.get_run(run_id).data.metrics if not name.startswith("system/"))
    return sorted((name, m.step, m.value) for name in names for m in client.get_metric_history(run_id, name))


def tensorboard_points(folder: Path) -> list[Point]:
    """Every scalar in a folder's event files, in order."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    if not folder.is_dir():
        return []
    accumulator = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    names = accumulator.Tags()[SCALARS]
    return sorted((name, event.step, event.value) for name in names for event in accumulator.Scalars(name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """What MLflow and TensorBoard say of one run."""

    run_id: str
    num_metrics: int
    num_points: int
    differences: tuple[str, ...]


def compare_logs(run_id: str) -> Agreement:
    """Compare every metric of a run with the event files among its artifacts, value by value at float32."""
    import mlflow

    client = mlflow.MlflowClient()
    try:
        ours = mlflow_points(client, run_id)
    except mlflow.MlflowException as error:
        raise TrackingError(f"There is no run {run_id!r}: the MLflow page lists the runs and their ids.") from error
    with tempfile.TemporaryDirectory() as folder:
        if not client.list_artifacts(run_id, "tensorboard"):
            raise TrackingError(f"Run {run_id} has no TensorBoard files: it has not ended, or another tool made it.")
        theirs = tensorboard_points(Path(client.download_artifacts(run_id, "tensorboard", folder)))
    return Agreement(
        run_id=run_id,
        num_metrics=len({name for name, _, _ in ours}),
        num_points=len(ours),
        differences=tuple(differences(ours, theirs)),
    )


def differences(ours: list[Point], theirs: list[Point]) -> Iterator[str]:
    """One sentence for each point that one side lacks, has twice, or has with another value."""
    sides = {"MLflow": ours, "TensorBoard": theirs}
    values = {side: {(name, step): value for name, step, value in points} for side, points in sides.items()}
    for side, points in sides.items():
        for (name, step), count in Counter(point[:2] for point in points).items():
            if count > 1:
                yield f"{name} at step {step} is {count} times in {side}"
            if any((name, step) not in other for other in values.values()):
                yield f"{name} at step {step} is in {side} alone"
    for point in sorted(values["MLflow"].keys() & values["TensorBoard"].keys()):
        left, right = values["MLflow"][point], values["TensorBoard"][point]
        if not np.array_equal(np.float32(left), np.float32(right), equal_nan=True):
            yield f"{point[0]} at step {point[1]}: MLflow {left!r}, TensorBoard {right!r}"
