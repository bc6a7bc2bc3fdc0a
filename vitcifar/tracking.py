"""One writer for a run: MLflow and TensorBoard get the same names, values and steps.

MLflow stores doubles, TensorBoard float32: `experiments.logs` compares them at float32.
"""

import contextlib
import json
import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.uri import is_local_uri

from vitcifar import signals
from vitcifar.errors import TrackingError
from vitcifar.stores import ERRORS, check_server, explain, find_run, follow_moves, local_folder, open_file
from vitcifar.stores import reaching as reaching
from vitcifar.uris import check_writable, sqlite_path, sqlite_uri, without_credentials

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

STEP_PREFIX = "step/"  # per-step metrics are buffered, all others are written at once
FLUSH_SECONDS = 2.0
MAX_BUFFER = 1000  # MLflow's limit per call
MAX_NAME = 250  # characters in the name of a run or experiment: what every database of MLflow holds
_store_option = ""

Point = tuple[str, int, float]  # name, step, value


def connect(uri: str | None = None, *, new: bool = True) -> str:
    """Point MLflow at a tracking store; a new SQLite file is created completely. Returns the absolute URI.

    Default: MLFLOW_TRACKING_URI, else ./mlflow.db. A password in a server's address moves to MLFLOW_TRACKING_PASSWORD,
    for MLflow prints the address. Raises TrackingError when the store is unreachable, when the URI is invalid, and for
    a missing SQLite file unless `new`.
    """
    for chatty in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    usual = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    typed, uri = uri not in (None, usual), uri or usual
    if "://" not in uri and uri != "databricks":
        shown = uri.rpartition("@")[2]
        raise TrackingError(f"{shown!r} is not a tracking URI: type sqlite:///FILE or http://HOST:PORT.")
    if uri.startswith("sqlite:///"):
        try:
            path = sqlite_path(uri)
            open_file(path, new=new)
        except OSError as error:  # a folder that this user may not read
            raise explain(uri, error) from error
        uri = sqlite_uri(path)
    else:
        uri = without_credentials(uri)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default blocks for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ["MLFLOW_TRACKING_URI"] = uri  # for child processes
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri("")  # the registry is in the tracking store
    if uri.startswith("http"):
        check_server(uri)
    try:
        with reaching(uri):
            follow_moves()  # the first use of the store
    except ModuleNotFoundError as error:  # the driver of a database
        raise explain(uri, error) from error
    global _store_option
    _store_option = f" --tracking-uri {shlex.quote(uri)}" if typed else ""
    return uri


def store_option() -> str:
    """What a printed command needs to mean this store, with a space before it; nothing if the environment names it."""
    return _store_option


class Run:
    """A run being written to MLflow and TensorBoard."""

    def __init__(self, run_id: str, folder: Path, *, resumed: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run_id = run_id
        self.folder = folder
        self.tensorboard = folder / "tensorboard"
        self.client = mlflow.MlflowClient()
        self.buffer: list[Any] = []
        self.flushed = time.monotonic()
        self.in_mlflow = {point[:2] for point in mlflow_points(self.client, run_id)} if resumed else set()
        self.in_tensorboard = {point[:2] for point in tensorboard_points(self.tensorboard)} if resumed else set()
        self.writer = SummaryWriter(str(self.tensorboard))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics to both. Points that exist already (a resumed run repeats some steps) are not written twice."""
        now = time.time()
        for name, value in metrics.items():
            if (name, step) not in self.in_tensorboard:
                self.writer.add_scalar(name, value, step, walltime=now)
            if (name, step) not in self.in_mlflow:
                self.buffer.append(Metric(name, float(value), int(now * 1000), step))
        waited = time.monotonic() - self.flushed > FLUSH_SECONDS or len(self.buffer) >= MAX_BUFFER // 2
        if waited or not all(name.startswith(STEP_PREFIX) for name in metrics):
            self.flush()

    @signals.held()
    def flush(self) -> None:
        """Write all buffered metrics."""
        while self.buffer:
            with reaching(os.environ["MLFLOW_TRACKING_URI"]):
                self.client.log_batch(self.run_id, metrics=self.buffer[:MAX_BUFFER])
            del self.buffer[:MAX_BUFFER]
        self.writer.flush()
        self.flushed = time.monotonic()

    @signals.held()
    def log_params(self, params: dict[str, Any], prefix: str = "config.") -> None:
        """Log parameters under a prefix: `mlflow run` has logged its raw text under the bare names."""
        self.client.log_batch(self.run_id, params=[Param(prefix + name, str(value)) for name, value in params.items()])

    @signals.held()
    def set_tags(self, tags: dict[str, str]) -> None:
        self.client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    @signals.held()
    def log_figure(self, name: str, figure: "Figure", step: int = 0) -> None:
        """Log a matplotlib figure: figures/NAME.png in MLflow, image NAME in TensorBoard."""
        self.client.log_figure(self.run_id, figure, f"figures/{name}.png", save_kwargs={"dpi": 150})
        self.writer.add_figure(name, figure, step, close=False)

    @signals.held()
    def log_image(self, name: str, image: "Image") -> None:
        """Log an image: figures/NAME.png in MLflow, image NAME in TensorBoard."""
        self.client.log_image(self.run_id, image, f"figures/{name}.png")
        self.writer.add_image(name, np.asarray(image), dataformats="HWC")

    @signals.held()
    def log_text(self, name: str, text: str) -> None:
        self.client.log_text(self.run_id, text, name)

    def log_json(self, name: str, content: dict[str, Any]) -> None:
        self.log_text(name, json.dumps(content, indent=2))

    @signals.held()
    def log_dataset(self, split: str, num_images: int, fingerprint: str, *, source: str, location: str) -> None:
        """Log a split as an MLflow dataset input: the digest is cut to MLflow's 36 characters, a tag has all of it."""
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]

        local = LocalArtifactDatasetSource(location)
        dataset = MetaDataset(local, f"{source}-{split}", fingerprint[:36])  # type: ignore[abstract]
        tags = {"fingerprint": fingerprint, "num_images": str(num_images)}
        mlflow.log_input(dataset, context=split, tags=tags)

    @signals.held()
    def close(self) -> None:
        """Flush, and log TensorBoard's event files as artifacts."""
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
    """A run in both trackers. It ends FINISHED, FAILED (with the tag `failure`) or KILLED, never RUNNING.

    Uses the run that `mlflow run` created (MLFLOW_RUN_ID) if there is one; continues the run `run_id` if given. A
    nested run is a child of the active run, in its experiment.
    """
    check_writable(output_dir, "name another with --output-dir")
    by_project = os.environ.pop("MLFLOW_RUN_ID", None)  # else MLflow would use it for nested runs too
    given = run_id or (None if nested else by_project)
    parent = mlflow.active_run() if nested else None
    uri = os.environ["MLFLOW_TRACKING_URI"]
    active = run = None
    try:
        with reaching(uri):
            if given and given == by_project:
                check_unused(given)
            if len(run_name or "") > MAX_NAME:
                raise TrackingError(
                    f"The run's name has {len(run_name or ''):,} characters: type --run-name with at most {MAX_NAME}."
                )
            active = mlflow.start_run(
                run_id=given,
                experiment_id=parent.info.experiment_id if parent else None if given else experiment_id(experiment),
                run_name=run_name if given is None else None,
                nested=nested,
                tags=tags,
                log_system_metrics=True,
            )
        if is_local_uri(active.info.artifact_uri):  # type: ignore[no-untyped-call]
            cure = "make it writable, or name another experiment with --experiment"
            check_writable(local_folder(active.info.artifact_uri), cure)
        run = Run(active.info.run_id, output_dir / active.info.run_id, resumed=run_id is not None)
        yield run
        run.close()
    except BaseException as error:
        told = explain(uri, error) if isinstance(error, ERRORS) else error
        if active:
            with signals.held(), contextlib.suppress(Exception):  # the error being raised matters more
                mlflow.end_run("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                if isinstance(error, Exception):
                    mlflow.MlflowClient().set_tag(active.info.run_id, "failure", str(told) or type(error).__name__)
                if run is not None:
                    run.close()
        if told is not error:
            raise told from error
        raise
    with reaching(uri):
        mlflow.end_run()


def project_experiment() -> str | None:
    """The experiment of the run that `mlflow run` made for this process (MLFLOW_RUN_ID); None without one."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id is None:
        return None
    with reaching(mlflow.get_tracking_uri()):
        return str(mlflow.get_experiment(check_unused(run_id).info.experiment_id).name)


def check_unused(run_id: str) -> Any:
    """A run as `mlflow run` has just made it: running, and without metrics of ours. Raises TrackingError for others."""
    try:
        run = mlflow.get_run(run_id)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise TrackingError(f"MLFLOW_RUN_ID names run {run_id}, which does not exist: unset it.") from None
    if run.info.status != "RUNNING" or not all(name.startswith("system/") for name in run.data.metrics):
        raise TrackingError(f"MLFLOW_RUN_ID names run {run_id}, which is {run.info.status} or in use: unset it.")
    return run


def check_resumable(run_id: str, fingerprint: str) -> None:
    """Raise TrackingError when a run has finished, or has started with images of another fingerprint."""
    run = find_run(run_id)
    if run.info.status == "FINISHED":
        version = run.data.tags.get("version", "no version").replace("/", " ")
        raise TrackingError(f"Run {run_id} has finished ({version}): there is nothing to resume, omit --resume.")
    recorded = run.data.params.get("config.fingerprint", fingerprint)
    if recorded != fingerprint:
        raise TrackingError(
            f"The images are not those of run {run_id}: it started with fingerprint {recorded[:16]}…, they have "
            f"{fingerprint[:16]}…. Restore them, or omit --resume to start another run."
        )


def experiment_id(name: str) -> str:
    """The id of the experiment, created if it is new (concurrent creation is safe)."""
    if not name.strip() or len(name) > MAX_NAME:
        length = f"has {len(name):,} characters" if name.strip() else "is empty"
        raise TrackingError(f"The experiment's name {length}: type --experiment with 1 to {MAX_NAME} characters.")
    client = mlflow.MlflowClient()
    with contextlib.suppress(mlflow.MlflowException):
        return client.create_experiment(name)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise TrackingError(f"Experiment {name!r} cannot be created: name another with --experiment.")
    if experiment.lifecycle_stage != "active":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise TrackingError(
            f"Experiment {name!r} was deleted: name another with --experiment, or type "
            f"MLFLOW_TRACKING_URI={shlex.quote(mlflow.get_tracking_uri())} {restore}."
        )
    return str(experiment.experiment_id)


def mlflow_points(client: Any, run_id: str) -> list[Point]:
    """Every metric point of a run except MLflow's system metrics, sorted."""
    names = sorted(name for name in client.get_run(run_id).data.metrics if not name.startswith("system/"))
    return sorted((name, m.step, m.value) for name in names for m in client.get_metric_history(run_id, name))


def tensorboard_points(folder: Path) -> list[Point]:
    """Every scalar in the event files of a folder, sorted."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    if not folder.is_dir():
        return []
    accumulator = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    names = accumulator.Tags()[SCALARS]
    return sorted((name, event.step, event.value) for name in names for event in accumulator.Scalars(name))
