"""What a run has to tell its tracking store: on disk first, then delivered in order: no outage ends a training.

An entry may be delivered twice (the store had it, and its answer was lost) and is one in the store all the same:
MLflow ignores a metric point with the same name, step, time and value, and everything else replaces what it repeats.
"""

import contextlib
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
)

from vitcifar.errors import TrackingError, redact
from vitcifar.lock import check_free, holder, locked
from vitcifar.outage import UPLOAD_SECONDS, answers, is_transient, unanswered
from vitcifar.progress import notify
from vitcifar.stores import ERRORS, explain

FOLDER = "journal"  # in the folder of a run; gone once the store has everything
ENTRIES, DELIVERED, STORE, FILES, RELEASE = "entries.jsonl", "delivered", "store", "files", "release"
PATIENCE = 5.0  # seconds until a writer goes on without the store
LAST_SECONDS = 15.0  # that the end of a run waits for the store: with the other waits, half a minute at most
EARLIER_SECONDS = 10.0  # that a run waits for the entries of an earlier one
UPLOADS = ("file", "folder")
PAUSES = (0.5, 1.0, 2.0, 5.0)  # seconds before the next try


class Journal:
    """The entries of a run that the store does not have yet. A thread delivers them; `add` and `settle` raise what is
    wrong with an entry, and wait for a store that is away only as long as said."""

    def __init__(self, folder: Path, run_id: str) -> None:
        """Open the journal of a run, with what an earlier process left in `folder`. Raises TrackingError when another
        process has it open."""
        self.folder, self.run_id = folder, run_id
        (folder / FILES).mkdir(parents=True, exist_ok=True)
        self.lock = contextlib.ExitStack()
        self.lock.enter_context(locked(folder))
        (folder / STORE).write_text(redact(mlflow.get_tracking_uri()), encoding="utf-8")
        self.num_delivered = read_count(folder)
        self.pending = deque(read_entries(folder)[self.num_delivered :])
        self.file = (folder / ENTRIES).open("a", encoding="utf-8")
        self.changed = threading.Condition()
        self.away: Exception | None = None  # why the last delivery did not work
        self.error: Exception | None = None  # what is wrong with an entry
        self.ended = self.closed = False  # an entry says how the run ended; nothing more is delivered
        threading.Thread(target=self._deliver, name=f"journal of {run_id}", daemon=True).start()

    def add(self, kind: str, **content: Any) -> None:
        """Write an entry, and wait until the store has it, or PATIENCE seconds when the store is away."""
        entry = {"kind": kind, **content}
        self.ended = self.ended or kind == "end"
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        with self.changed:
            self.pending.append(entry)
            self.changed.notify_all()
        if self.away is None:
            self.settle(PATIENCE)

    def add_file(self, path: str) -> Path:
        """Where to write a file of the run's artifacts, before an entry "file" with the same path."""
        target = self.folder / FILES / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def settle(self, seconds: float) -> bool:
        """Wait until the store has every entry, and no longer than `seconds` in all for those that it does not take
        within PATIENCE; whether it has all.

        At the end of a run a file may take UPLOAD_SECONDS, as long as the server answers other requests.
        """
        left, last = seconds, time.monotonic() + UPLOAD_SECONDS
        with self.changed:
            while self.pending and not self.error:
                num, uploads = self.num_delivered, self.away is None and self.pending[0]["kind"] in UPLOADS
                began = time.monotonic()
                if self.changed.wait_for(partial(self._has_news, num, uploads), timeout=seconds if uploads else left):
                    left -= 0 if uploads else max(0.0, time.monotonic() - began - PATIENCE)
                    last = time.monotonic() + UPLOAD_SECONDS
                elif not (uploads and answers(mlflow.get_tracking_uri())):
                    self.away = self.away or unanswered(mlflow.get_tracking_uri())
                    break
                elif seconds < LAST_SECONDS or time.monotonic() > last:
                    break
            if self.error:
                raise self.error
            return not self.pending

    def _has_news(self, num_delivered: int, uploads: bool) -> bool:
        """Whether an entry was delivered, one is wrong, or an upload has failed."""
        return self.num_delivered > num_delivered or self.error is not None or (uploads and self.away is not None)

    def expect_release(self) -> None:
        """Note that training has ended, and that `vitcifar sync` has to make the release if this process does not."""
        (self.folder / RELEASE).touch()

    def expect_no_release(self) -> None:
        (self.folder / RELEASE).unlink(missing_ok=True)

    @property
    def expects_release(self) -> bool:
        return (self.folder / RELEASE).exists()

    def close(self, *, keep: bool = False) -> bool:
        """Stop delivering. Whether the folder stays: it holds something for `vitcifar sync`, or `keep` is given."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.file.close()
        keep = keep or bool(self.pending)
        if not keep:
            discard(self.folder)
        self.lock.close()
        return keep

    def _deliver(self) -> None:
        client, failures = mlflow.MlflowClient(), 0
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.closed or self.pending)
                if self.closed:
                    return
                entry = self.pending[0]
            try:
                deliver(client, self.run_id, self.folder, entry)
            except Exception as error:
                with self.changed:
                    self.away = error
                    self.changed.notify_all()
                    if not is_transient(error):
                        self.error = error
                        return
                    self.changed.wait_for(lambda: self.closed, timeout=PAUSES[min(failures, len(PAUSES) - 1)])
                failures += 1
                continue
            failures = 0
            with self.changed:
                self._count()
                self.pending.popleft()
                self.away = None
                self.changed.notify_all()
            if entry["kind"] == "file":
                (self.folder / FILES / entry["path"]).unlink(missing_ok=True)

    def _count(self) -> None:
        self.num_delivered += 1
        new = self.folder / f"{DELIVERED}.part"
        with contextlib.suppress(OSError):  # a full disk: the entry is delivered once more, or the folder is gone
            new.write_text(str(self.num_delivered))
            os.replace(new, self.folder / DELIVERED)


def read_entries(folder: Path) -> list[dict[str, Any]]:
    """The complete entries of a journal. The line that a killed process was writing is dropped from the file."""
    path = folder / ENTRIES
    if not path.is_file():
        return []
    text = path.read_bytes()
    complete = text[: text.rfind(b"\n") + 1]
    if len(complete) < len(text):
        os.truncate(path, len(complete))
    return [json.loads(line) for line in complete.splitlines()]


def read_count(folder: Path) -> int:
    """How many entries of a journal the store has."""
    with contextlib.suppress(OSError, ValueError):
        return int((folder / DELIVERED).read_text())
    return 0


def deliver(client: mlflow.MlflowClient, run_id: str, folder: Path, entry: Mapping[str, Any]) -> None:
    """Tell the store one entry of a run; raises what MLflow raises."""
    match entry["kind"]:
        case "metrics":
            client.log_batch(run_id, metrics=[Metric(*point) for point in entry["points"]])
        case "params":
            client.log_batch(run_id, params=[Param(*pair) for pair in entry["params"].items()])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(*pair) for pair in entry["tags"].items()])
        case "file":
            client.log_artifact(run_id, str(folder / FILES / entry["path"]), os.path.dirname(entry["path"]) or None)
        case "folder":
            client.log_artifacts(run_id, entry["path"], entry["to"])
        case "dataset":
            tags = [InputTag(*pair) for pair in entry["tags"].items()]
            client.log_inputs(run_id, datasets=[DatasetInput(Dataset(**entry["dataset"]), tags)])
        case "checkpoint":
            create_checkpoint(client, run_id, **entry["model"], steps=entry["steps"])
        case "model":
            link_model(client, run_id, entry["model_id"], entry["steps"])
        case "end":
            client.set_terminated(run_id, entry["status"])


def create_checkpoint(
    client: mlflow.MlflowClient, run_id: str, name: str, step: int, params: Mapping[str, str], steps: Mapping[str, int]
) -> None:
    """A logged model for the checkpoint of a step, with the run's metrics of each split at the split's step in `steps`.

    It is an external model of MLflow's: its weights are not copied, so it cannot be served, and no version has it.
    """
    run = client.get_run(run_id)
    made = client.search_logged_models([run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'")
    model_id = next((model.model_id for model in made if model.name == name and model.params == params), None)
    if model_id is None:
        model_id = mlflow.create_external_model(
            name, run_id, params=dict(params), model_type="checkpoint", experiment_id=run.info.experiment_id
        ).model_id
    if model_id not in outputs_of(run):
        client.log_outputs(run_id, models=[LoggedModelOutput(model_id, step)])
    link_model(client, run_id, model_id, steps)


def outputs_of(run: Run) -> set[str]:
    """The ids of the logged models that a run has made."""
    return {made.model_id for made in (run.outputs.model_outputs if run.outputs else ())}


def link_model(client: mlflow.MlflowClient, run_id: str, model_id: str, steps: Mapping[str, int]) -> None:
    """Attach a run's metrics of each split, at the split's step, to a logged model, with the split's dataset.

    The points are those of the run, not new ones. A model that the run has not made becomes an input of it.
    """
    run = client.get_run(run_id)
    assert run.inputs is not None  # the datasets
    datasets = {tag.value: entry.dataset for entry in run.inputs.dataset_inputs for tag in entry.tags}
    points = []
    for split, step in steps.items():
        name, digest = datasets[split].name, datasets[split].digest
        for metric in sorted(run.data.metrics):
            history = client.get_metric_history(run_id, metric) if metric.startswith(f"{split}/") else []
            points += [
                Metric(metric, m.value, m.timestamp, step, model_id, name, digest, run_id)
                for m in history
                if m.step == step
            ]
    client.log_batch(run_id, metrics=points)
    if model_id not in outputs_of(run):
        client.log_inputs(run_id, models=[LoggedModelInput(model_id)])


def deliver_earlier(output_dir: Path, *, except_run: str | None) -> None:
    """Deliver what ended runs below an output folder could not, if the store takes it within seconds."""
    for path in sorted(output_dir.glob(f"*/{FOLDER}*/{STORE}")):
        folder, run_id = path.parent, path.parent.parent.name
        if run_id == except_run or holder(folder) or not is_of_this_store(folder):
            continue
        try:
            num, release = deliver_left(folder, EARLIER_SECONDS)
        except (TrackingError, OSError, *ERRORS) as error:
            notify(f"Run {run_id} has entries that the tracking store does not have yet: {error}")
            continue
        if num:
            notify(f"Delivered {num:,} entries of run {run_id}, from when the tracking store was away.")
        if release:
            notify(f"Run {run_id} has ended without its release: type vitcifar sync {run_id}.")


def is_of_this_store(folder: Path) -> bool:
    """Whether a journal is for the tracking store that is in use."""
    with contextlib.suppress(OSError):
        return (folder / STORE).read_text(encoding="utf-8") == redact(mlflow.get_tracking_uri())
    return False


def deliver_left(folder: Path, seconds: float) -> tuple[int, bool]:
    """Deliver the entries of a journal that an ended process left, within `seconds`: their number, and whether the
    training ended without its release. Raises TrackingError when a process writes it, or the store did not take all."""
    check_free(folder.parent)
    journal = Journal(folder, folder.parent.name)
    num, release = len(journal.pending), journal.expects_release
    done = False
    try:
        done = journal.settle(seconds)
    finally:
        journal.close(keep=release)
    if not done:
        cause = journal.away or TimeoutError("a file is still being sent: timed out")
        raise explain(mlflow.get_tracking_uri(), cause) from cause
    return num, release


def discard(folder: Path) -> None:
    """Delete a journal of which the store has everything."""
    shutil.rmtree(folder, ignore_errors=True)
