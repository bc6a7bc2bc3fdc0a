"""One writer for a run: MLflow and TensorBoard get the same names, values and steps.

MLflow stores doubles, TensorBoard float32: `experiments.logs` compares them at float32.
"""

import contextlib
import functools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.schema import TensorDatasetSchema
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]
from mlflow.tracking.context.git_context import GitRunContext
from mlflow.tracking.context.registry import _run_context_provider_registry
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_LOGGED_ARTIFACTS

from vitcifar import journal, signals, tensorboard
from vitcifar.errors import TrackingError, redact
from vitcifar.journal import Journal
from vitcifar.stores import explain

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor

STEP_PREFIX = "step/"  # per-step metrics are buffered, all others are written at once
SYSTEM_PREFIX = "system/"  # metrics that MLflow samples, and these two of ours, which TensorBoard has too:
SPEED, MEMORY = "system/images_per_second", "system/peak_memory_megabytes"
FLUSH_SECONDS = 2.0
MAX_BUFFER = 1000  # MLflow's limit per call
NOTE = "mlflow.note.content"  # the description on MLflow's page of a run
MAX_NOTE = 8000  # characters of a tag


class Images(MetaDataset):
    """A split as MLflow's dataset: its schema, and a profile with its numbers of images and its fingerprint."""

    def __init__(self, name: str, fingerprint: str, location: str, profile: Mapping[str, Any]) -> None:
        source = LocalArtifactDatasetSource(location)
        super().__init__(source, name, fingerprint[:36])  # MLflow's limit for a digest; the profile has all of it
        self._profile = {**profile, "fingerprint": fingerprint}

    @property
    def profile(self) -> Any:
        return self._profile

    def to_dict(self) -> dict[str, str]:
        images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3), "image")])
        labels = Schema([TensorSpec(np.dtype(np.int64), (-1,), "label")])
        schema = TensorDatasetSchema(images, labels).to_dict()
        return {**super().to_dict(), "schema": json.dumps(schema), "profile": json.dumps(self._profile)}


class Run:
    """A run being written to MLflow and TensorBoard."""

    def __init__(
        self, run_id: str, folder: Path, event_files: Path, *, resumed: bool = False, shared: bool = False
    ) -> None:
        self.run_id = run_id
        self.folder = folder  # of the checkpoints
        self.event_files = event_files
        self.client = mlflow.MlflowClient()
        own = f"{journal.FOLDER}-{os.getpid()}" if shared else journal.FOLDER
        self.journal = Journal(folder / own, run_id)
        self.buffer: list[tuple[str, float, int, int]] = []  # name, value, milliseconds, step
        self.tables: list[str] = []
        self.flushed = time.monotonic()
        if resumed and not self.journal.settle(journal.LAST_SECONDS):
            raise self.unsettled() from self.journal.away
        self.in_mlflow = {point[:2] for point in mlflow_points(self.client, run_id)} if resumed else set()
        self.in_tensorboard = {point[:2] for point in tensorboard.read_points(event_files)} if resumed else set()
        self.writer = tensorboard.open_writer(event_files)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics to both; none means to write those of steps that are still in the buffer.

        Points that exist already (a resumed run repeats some steps) are not written twice.
        """
        now = time.time()
        for name, value in metrics.items():
            if (name, step) not in self.in_tensorboard:
                self.writer.add_scalar(name, value, step, walltime=now)
            if (name, step) not in self.in_mlflow:
                self.buffer.append((name, float(value), int(now * 1000), step))
        waited = time.monotonic() - self.flushed > FLUSH_SECONDS or len(self.buffer) >= MAX_BUFFER // 2
        if waited or not metrics or not all(name.startswith(STEP_PREFIX) for name in metrics):
            self.flush()

    def log_histograms(self, step: int, tensors: Mapping[str, "Tensor"]) -> None:
        """Log the distribution of each tensor's values; MLflow has none of these."""
        for name, tensor in tensors.items():
            self.writer.add_histogram(name, tensor.detach().float().cpu().numpy(), step)

    @signals.held()
    def flush(self) -> None:
        """Write all buffered metrics."""
        while self.buffer:
            self.journal.add("metrics", points=self.buffer[:MAX_BUFFER])
            del self.buffer[:MAX_BUFFER]
        self.writer.flush()
        self.flushed = time.monotonic()

    def settle(self) -> None:
        """Wait until the tracking store has everything that was logged. Raises TrackingError when it is away."""
        self.flush()
        if not self.journal.settle(journal.LAST_SECONDS):
            raise self.unsettled() from self.journal.away

    def unsettled(self) -> TrackingError:
        assert self.journal.away is not None
        return explain(os.environ["MLFLOW_TRACKING_URI"], self.journal.away)

    @signals.held()
    def log_params(self, params: dict[str, Any], prefix: str = "config.") -> None:
        """Log parameters under a prefix: `mlflow run` has logged its raw text under the bare names."""
        self.journal.add("params", params={prefix + name: str(value) for name, value in params.items()})

    @signals.held()
    def set_tags(self, tags: dict[str, str]) -> None:
        self.journal.add("tags", tags={name: str(value) for name, value in tags.items()})

    def note(self, markdown: str) -> None:
        """Replace the description: MLflow shows it on the page of the run, TensorBoard as a text."""
        text = markdown if len(markdown) <= MAX_NOTE else f"{markdown[: MAX_NOTE - 1]}…"
        self.set_tags({NOTE: text})
        self.writer.add_text("summary", text)

    @contextlib.contextmanager
    def log_file(self, path: str) -> Iterator[Path]:
        """Log the file that the block writes where it is told, as the artifact `path`."""
        with signals.held():
            yield self.journal.add_file(path)
            self.journal.add("file", path=path)

    def log_figure(self, name: str, figure: "Figure", step: int = 0) -> None:
        """Log a matplotlib figure: figures/NAME.png in MLflow, image NAME in TensorBoard."""
        with self.log_file(f"figures/{name}.png") as file:
            figure.savefig(file, dpi=150)
        self.writer.add_figure(name, figure, step, close=False)

    def log_image(self, name: str, image: "Image") -> None:
        """Log an image: figures/NAME.png in MLflow, image NAME in TensorBoard."""
        with self.log_file(f"figures/{name}.png") as file:
            image.save(file)
        self.writer.add_image(name, np.asarray(image), dataformats="HWC")

    def log_text(self, name: str, text: str) -> None:
        with self.log_file(name) as file:
            file.write_text(text, encoding="utf-8")

    def log_json(self, name: str, content: dict[str, Any]) -> None:
        self.log_text(name, json.dumps(content, indent=2))

    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Log a table that MLflow's pages sort and filter, as NAME.json; a column may hold PIL images.

        In the format of MLflow's `log_table`, which would add the rows once more when a file is delivered twice.
        """
        cells = {column: list(values) for column, values in columns.items()}
        for column, values in cells.items():
            if values and hasattr(values[0], "save"):
                cells[column] = [self._log_cell(f"table_images/{name}/{column}-{i}", v) for i, v in enumerate(values)]
        rows = [list(row) for row in zip(*cells.values(), strict=True)]
        self.log_text(f"{name}.json", json.dumps({"columns": list(cells), "data": rows}, default=float))
        self.tables += [name] if name not in self.tables else []
        listed = [{"path": f"{table}.json", "type": "table"} for table in self.tables]
        self.set_tags({MLFLOW_LOGGED_ARTIFACTS: json.dumps(listed)})

    def _log_cell(self, path: str, image: "Image") -> dict[str, str]:
        files = {"filepath": f"{path}.png", "compressed_filepath": f"{path}.webp"}
        for file in files.values():
            with self.log_file(file) as target:
                image.save(target)
        return {"type": "image", **files}

    @signals.held()
    def log_dataset(
        self, split: str, fingerprint: str, *, name: str, location: str, profile: Mapping[str, Any]
    ) -> None:
        """Log a split as an MLflow dataset input: the digest is cut to MLflow's 36 characters, a tag has all of it."""
        tags = {"fingerprint": fingerprint, "num_images": str(profile["num_images"]), MLFLOW_DATASET_CONTEXT: split}
        self.journal.add(
            "dataset", dataset=Images(f"{name}-{split}", fingerprint, location, profile).to_dict(), tags=tags
        )

    @signals.held()
    def log_checkpoint(
        self, name: str, path: Path, step: int, params: Mapping[str, Any], steps: Mapping[str, int]
    ) -> None:
        """Create a logged model for the checkpoint of a step, whose file stays where it is.

        It gets the run's metrics of each split, at the split's step in `steps`.
        """
        self.flush()
        texts = {key: str(value) for key, value in {**params, "step": step, "checkpoint": path.absolute()}.items()}
        model = {"name": model_name(name), "step": step, "params": texts}
        self.journal.add("checkpoint", model=model, steps=dict(steps))

    @signals.held()
    def link_model(self, model_id: str, steps: Mapping[str, int]) -> None:
        """Attach this run's metrics of each split, at the split's step, to a logged model, with the split's dataset."""
        self.flush()
        self.journal.add("model", model_id=model_id, steps=dict(steps))

    @signals.held()
    def close(self) -> None:
        """Flush, and log TensorBoard's event files as artifacts."""
        self.flush()
        self.writer.close()
        self.journal.add("folder", path=str(self.event_files.absolute()), to="tensorboard")


def model_name(name: str) -> str:
    """A name that MLflow accepts for a logged model."""
    return name.translate(str.maketrans("/:.%\"'", "______"))


def mlflow_points(client: Any, run_id: str) -> list[tensorboard.Point]:
    """Every metric point of a run except those that MLflow samples of the system, sorted."""
    metrics = client.get_run(run_id).data.metrics
    names = sorted(name for name in metrics if name in (SPEED, MEMORY) or not name.startswith(SYSTEM_PREFIX))
    return sorted((name, m.step, m.value) for name in names for m in client.get_metric_history(run_id, name))


class GitWithoutSecrets(GitRunContext):
    """MLflow's own tags of git; the address of a remote may have a token in it."""

    def tags(self) -> dict[str, str]:
        return {name: redact(value) for name, value in super().tags().items()}  # type: ignore[no-untyped-call]


@functools.cache
def tag_without_secrets() -> None:
    """From now on, what MLflow makes, runs and logged models, has tags without secrets: the last provider counts."""
    _run_context_provider_registry.register(GitWithoutSecrets)  # type: ignore[no-untyped-call]
