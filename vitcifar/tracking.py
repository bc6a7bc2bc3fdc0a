"""Connects to a tracking store, and starts, continues and ends runs in it."""

import contextlib
import logging
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES
from mlflow.utils.uri import is_local_uri

from vitcifar import signals
from vitcifar.errors import TrackingError, VitCifarError, redact
from vitcifar.journal import LAST_SECONDS, deliver_earlier
from vitcifar.lock import locked
from vitcifar.outage import expect_answers, expect_nothing, hurried, is_transient, limit_sqlite, wait_for_uploads
from vitcifar.run import SYSTEM_PREFIX, tag_without_secrets
from vitcifar.run import Run as Run
from vitcifar.stores import (
    ERRORS,
    check_server,
    explain,
    follow_moves,
    local_folder,
    open_file,
)
from vitcifar.stores import reaching as reaching
from vitcifar.tensorboard import FOLDER, new_folder
from vitcifar.uris import (
    check_writable,
    full_folder,
    quiet_threads,
    reserve,
    sqlite_path,
    sqlite_uri,
    without_credentials,
    without_quoted_folders,
)

MAX_NAME = 250  # characters in the name of a run or experiment: what every database of MLflow holds
_store_option = ""


def connect(uri: str | None = None, *, new: bool = True) -> str:
    """Point MLflow at a tracking store; a new SQLite file is created completely. Returns the absolute URI.

    Default: MLFLOW_TRACKING_URI, else ./mlflow.db. A password in a server's address moves to MLFLOW_TRACKING_PASSWORD,
    for MLflow prints the address. Raises TrackingError when the store is unreachable, when the URI is invalid, and for
    a missing SQLite file unless `new`.
    """
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of errors that it raises as well
    for chatty in ("alembic", "mlflow.system_metrics.system_metrics_monitor"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # It warns of every release that its wheel is not the vitcifar which makes it.
    logging.getLogger("mlflow.utils.requirements_utils").setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # commands say where to look, once
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
        limit_sqlite()
    else:
        uri = without_credentials(uri)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default blocks for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        wait_for_uploads()
    os.environ["MLFLOW_TRACKING_URI"] = uri  # for child processes
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri("")  # the registry is in the tracking store
    tag_without_secrets()
    if uri.startswith("http"):
        check_server(uri)
    try:
        with reaching(uri), without_quoted_folders(uri):
            follow_moves()  # the first use of the store
            if "%" in uri:
                mlflow.MlflowClient().search_registered_models(max_results=1)  # and of its registry
    except ModuleNotFoundError as error:  # the driver of a database
        raise explain(uri, error) from error
    global _store_option
    _store_option = f" --tracking-uri {shlex.quote(uri)}" if typed else ""
    return uri


def hide_secrets(run_id: str) -> None:
    """Take the passwords and tokens out of the tags with which `mlflow run` began a run: git's remote may have one."""
    with contextlib.suppress(VitCifarError, *ERRORS):  # the command itself says what is wrong with the store
        connect(new=False)
        client = mlflow.MlflowClient()
        for name, value in client.get_run(run_id).data.tags.items():
            if (shown := redact(value)) != value:
                client.set_tag(run_id, name, shown)


def store_option() -> str:
    """What a printed command needs to mean this store, with a space before it; nothing if the environment names it."""
    return _store_option


@contextlib.contextmanager
def start_run(
    *,
    experiment: str,
    output_dir: Path,
    run_name: str | None = None,
    run_id: str | None = None,
    nested: bool = False,
    shared: bool = False,
    tags: dict[str, str] | None = None,
) -> Iterator[Run]:
    """A run in both trackers. It ends FINISHED, FAILED (with the tag `failure`) or KILLED, never RUNNING.

    Uses the run that `mlflow run` created (MLFLOW_RUN_ID) if there is one; continues the run `run_id` if given. A
    nested run is a child of the active run, in its experiment. One that is `shared` several processes may continue.
    """
    check_writable(output_dir, "name another with --output-dir")
    expect_answers()
    if not nested:
        deliver_earlier(output_dir, except_run=run_id)
    by_project = os.environ.pop("MLFLOW_RUN_ID", None)  # else MLflow would use it for nested runs too
    given = run_id or (None if nested else by_project)
    parent = mlflow.active_run() if nested else None
    uri = os.environ["MLFLOW_TRACKING_URI"]
    active = run = None
    database = sqlite_path(uri) if uri.startswith("sqlite:///") else None
    with quiet_threads(), contextlib.ExitStack() as lock:
        free = lock.enter_context(reserve(database))
        try:
            if run_id and not shared:  # before the store is told that the run goes on
                lock.enter_context(locked(output_dir / run_id))
            with reaching(uri):
                if given and given == by_project:
                    check_unused(given)
                check_run_name(run_name or "")
                active = mlflow.start_run(
                    run_id=given,
                    experiment_id=parent.info.experiment_id if parent else None if given else experiment_id(experiment),
                    run_name=run_name if given is None else None,
                    nested=nested,
                    tags=tags,
                    log_system_metrics=True,
                )
            if not (run_id or shared):
                lock.enter_context(locked(output_dir / active.info.run_id))
            check_artifacts(active.info.artifact_uri)
            name = run_name if given == by_project else None
            run = open_run(active, output_dir, name=name, resumed=bool(run_id), shared=shared)
            yield run
            end_finished(run, uri)
        except BaseException as error:
            told = told_of(error, uri, output_dir, active)
            free()
            if active:
                told = end_failed(active.info.run_id, run, told, error)
            if told is not error:
                raise told from error
            raise
        run.journal.close()


def end_finished(run: Run, uri: str) -> None:
    """End a run whose work is done. Raises TrackingError when its store is away: `vitcifar sync` ends it then."""
    run.close()
    try:
        run.settle()
        with reaching(uri), hurried():
            mlflow.end_run()
    except TrackingError as error:
        if is_transient(error) and not run.journal.expects_release:
            run.journal.add("end", status="FINISHED")
        raise


def check_run_name(name: str) -> None:
    """Raise TrackingError for a name that not every database of MLflow holds."""
    if len(name) > MAX_NAME:
        raise TrackingError(f"The run's name has {len(name):,} characters: type --run-name with at most {MAX_NAME}.")


def check_artifacts(location: str) -> None:
    """Raise ConfigError when artifacts lie in a folder that cannot be written to."""
    if is_local_uri(location):  # type: ignore[no-untyped-call]
        check_writable(local_folder(location), "make it writable, or name another experiment with --experiment")


def told_of(error: BaseException, uri: str, output_dir: Path, run: Any) -> BaseException:
    """The error that a user can read for one that ended a run, or the error itself."""
    if isinstance(error, ERRORS):
        return explain(uri, error)
    if isinstance(error, SystemExit):  # else the command would end with its code, which may be 0
        return TrackingError(f"The run was ended from inside, by sys.exit({error.code!r}): see the lines above it.")
    folders = [output_dir, Path(tempfile.gettempdir())]
    if run and is_local_uri(run.info.artifact_uri):  # type: ignore[no-untyped-call]
        folders.append(local_folder(run.info.artifact_uri))
    if not isinstance(error, VitCifarError) and (full := full_folder(error, folders)):
        return TrackingError(
            f"The disk of {full.absolute()} is full: free space there, then type the command again; a training goes on "
            "with --resume last."
        )
    return error


def end_failed(run_id: str, run: Run | None, told: BaseException, error: BaseException) -> BaseException:
    """End a run that an error stopped, KILLED or FAILED with the tag `failure`; returns the error to raise.

    Of a run whose store is away, the error says how `vitcifar sync` delivers what is kept, and makes its release.
    """
    status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    tags = {"failure": str(told) or type(told).__name__} if isinstance(told, Exception) else {}
    lost = is_transient(error)
    if away := lost or (run is not None and run.journal.away is not None):
        expect_nothing()
    with signals.held(), contextlib.suppress(Exception):  # the error being raised matters more
        try:
            mlflow.end_run(status)
        except Exception as unreachable:
            if run is not None:  # what comes is not waited for
                run.journal.away = run.journal.away or unreachable
            raise
        kept = run is not None and (run.journal.pending or run.journal.expects_release)  # `sync` delivers how it ended
        for name, text in tags.items() if not (away and kept) else ():
            mlflow.MlflowClient().set_tag(run_id, name, text)
    if run is None:
        return told
    keep = lost and run.journal.expects_release
    with signals.held(), contextlib.suppress(Exception):
        run.close()
        if away and not (keep or run.journal.ended):
            run.set_tags(tags)
            run.journal.add("end", status=status)
        run.journal.settle(0 if away else LAST_SECONDS)
    if not run.journal.close(keep=keep) or not isinstance(told, Exception):
        return told
    rest = f"{len(run.journal.pending)} entries are in {run.folder}" if run.journal.pending else "but its release"
    folder = "" if run.folder.parent == Path("runs") else f" --output-dir {shlex.quote(str(run.folder.parent))}"
    command = f"vitcifar sync {run_id}{folder}{store_option()}"
    return TrackingError(f"{told} Of run {run_id} nothing is lost ({rest}): when the store is back, type {command}.")


def open_run(active: Any, output_dir: Path, *, name: str | None, resumed: bool, shared: bool) -> Run:
    """The writer of an active run; one that `mlflow run` named at random gets the `name`."""
    run_id, client = active.info.run_id, mlflow.MlflowClient()
    shown = client.get_run(run_id).info.run_name or run_id
    if name and is_random(shown):
        client.update_run(run_id, name=name)
        shown = name
    folder = output_dir / run_id / FOLDER  # of a run of vitcifar 0.2, which is resumed
    if recorded := active.data.tags.get(FOLDER):
        folder = output_dir / FOLDER / recorded
    elif not (resumed and folder.is_dir()):
        folder = new_folder(output_dir, shown, run_id)
        client.set_tag(run_id, FOLDER, folder.name)
    (output_dir / run_id).mkdir(parents=True, exist_ok=True)
    return Run(run_id, output_dir / run_id, folder, resumed=resumed, shared=shared)


def is_random(name: str) -> bool:
    """Whether MLflow made a run's name: an adjective, a noun and a number."""
    first, second, number = [*name.split("-"), "", "", ""][:3]
    known = first in map(str.lower, _GENERATOR_PREDICATES) and second in map(str.lower, _GENERATOR_NOUNS)
    return known and number.isdecimal() and name == f"{first}-{second}-{number}"


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
    if run.info.status != "RUNNING" or not all(name.startswith(SYSTEM_PREFIX) for name in run.data.metrics):
        raise TrackingError(f"MLFLOW_RUN_ID names run {run_id}, which is {run.info.status} or in use: unset it.")
    return run


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
