"""Opens a tracking store, or says why it cannot be used: one table leads from MLflow's words to cause and cure."""

import contextlib
import os
import re
import shlex
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import alembic.util
import filelock
import mlflow
import requests
import sqlalchemy.exc
from mlflow.entities import Run
from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.rest_utils import http_request
from mlflow.utils.uri import is_local_uri

from vitcifar import signals
from vitcifar.errors import TrackingError, reason_of, redact
from vitcifar.uris import beside, sqlite_path, sqlite_uri, without_quoted_folders

ERRORS = (
    mlflow.MlflowException,
    requests.RequestException,
    sqlalchemy.exc.SQLAlchemyError,
    alembic.util.CommandError,
)
LOCK_SECONDS = 60
OTHER = "name another with --tracking-uri"
START = "start it (mlflow server), or " + OTHER
LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of this server"
AGAIN = "try again later; if it persists, see the server's log"
CAUSES = (  # pattern in MLflow's message -> the cause, and what to do; the first that matches
    (
        r"out-of-date database schema \(found version (\w+)",
        "an older MLflow made it",
        "back it up, then type mlflow db upgrade {uri}",
    ),
    (r"Can't locate revision", "a newer MLflow made it", "update MLflow here, or " + OTHER),
    (r"file is not a database", "the file is not an SQLite database", OTHER),
    (r"disk image is malformed", "the database is damaged", "restore a copy of the file, or " + OTHER),
    (r"database is locked", "another program has locked the database", "end that program, then try again"),
    (r"readonly database", "the database cannot be written", "change the permissions of the file and its folder"),
    (
        r"unable to open database|Permission denied",
        "the database cannot be opened",
        "change the permissions of the file and its folder",
    ),
    (r"disk is full|No space left", "the disk is full", "free disk space, then try again"),
    (r"No module named '([\w.]+)'", "its database needs the Python package {0}", "install it, or " + OTHER),
    (
        r"unsupported URI|Invalid SQLite URL",
        "there is no such kind of store",
        "type sqlite:///FILE or http://HOST:PORT",
    ),
    (
        r"maintenance mode",
        "it is a folder of MLflow's old file store",
        "type mlflow migrate-filestore --source FOLDER --target sqlite:///mlflow.db, and name that database",
    ),
    (r"Run with id=(\S+) not found", "Run {0} does not exist", "the MLflow UI lists the runs with their ids"),
    (
        r"run (?:with ID )?(\w+) (?:must be in the 'active'|because it is in the deleted) state",
        "Run {0} was deleted",
        "type MLFLOW_TRACKING_URI={uri} mlflow runs restore --run-id {0}",
    ),
    (
        r"for SOCKS support",
        "the environment names a SOCKS proxy, which needs the Python package PySocks",
        "unset the variable of that proxy, or " + OTHER,
    ),
    (r"Invalid Host header", "the server rejects this host name", "start it with --allowed-hosts HOST:PORT"),
    (
        r"(?:error code|too many) 401|UNAUTHENTICATED",
        "it wants a user name and a password, or does not accept these (401)",
        LOGIN,
    ),
    (
        r"(?:error code|too many) 403|PERMISSION_DENIED",
        "this user is not allowed to do that (403)",
        "ask the administrator of the server for the permission",
    ),
    (
        r"error code 413",
        "a request is larger than the server, or a proxy before it, accepts (413)",
        "raise its limit (nginx: client_max_body_size)",
    ),
    (r"(?:error code|too many) 429", "it gets too many requests (429)", "try again later"),
    (r"too many (50[234])", "a proxy answers, and the MLflow server behind it does not ({0})", START),
    (r"(?:error code|too many) (5\d\d)", "the server failed ({0})", AGAIN),
    (
        r"error code 404|not in a valid JSON|INTERNAL_ERROR: Response:",
        "what answers is not an MLflow server",
        "check host, port and path, or " + OTHER,
    ),
    (r"NameResolutionError|Failed to resolve", "there is no such host", "check its name, or " + OTHER),
    (r"SSLError", "no secure connection is possible", "check the certificate, or type http:// instead of https://"),
    (r"[Tt]ime(d )?out", "the server does not answer in time", AGAIN),
    (r"Max retries exceeded|Connection (aborted|refused)", "no server answers", START),
    (r"Invalid url", "it is not an address", "type http://HOST:PORT"),
)


def explain(uri: str, error: Exception, store: str = "The tracking store") -> TrackingError:
    """The error to raise for one of `ERRORS`: its cause and its cure, else MLflow's own words."""
    text = str(error)
    for pattern, cause, cure in CAUSES:
        if match := re.search(pattern, text):
            found = match.groups()
            if "db upgrade" in cure and not is_known_schema(found[0]):
                return explain(uri, alembic.util.CommandError("Can't locate revision"))
            filled = [part.format(*found, uri=shlex.quote(uri)) for part in (cause, cure)]
            subject = filled[0] if cause.startswith("Run ") else f"{store} {uri} cannot be used ({filled[0]})"
            return TrackingError(f"{subject}: {filled[1]}.")
    return TrackingError(f"{store} {uri} cannot be used: {reason_of(error)}")


def is_known_schema(version: str) -> bool:
    """Whether this MLflow has a migration to a version of the database schema."""
    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    return any(migrations.glob(f"{version}_*.py"))


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn MLflow's errors about a store into one TrackingError."""
    try:
        with signals.held():
            yield
    except ERRORS as error:
        raise explain(uri, error) from error


def open_file(path: Path, *, new: bool) -> None:
    """Check a SQLite store, which SQLAlchemy would try to open for minutes; create a missing one if `new`."""
    if path.is_dir():
        raise TrackingError(f"The tracking store {path} is a folder: type sqlite:///FILE with the file of a database.")
    if not path.exists() and "MLFLOW_RUN_ID" in os.environ:
        raise TrackingError(
            f"There is no tracking store {path} with the run that MLFLOW_RUN_ID names: name its store with "
            "--tracking-uri, or unset MLFLOW_RUN_ID."
        )
    if not path.exists() and not new:
        raise TrackingError(
            f"There is no tracking store {path}: change to its folder, use --tracking-uri, or run vitcifar train."
        )
    create_store(path)
    if not os.access(path, os.R_OK):
        raise explain(sqlite_uri(path), sqlalchemy.exc.SQLAlchemyError("unable to open database"))
    if new and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        raise explain(sqlite_uri(path), sqlalchemy.exc.SQLAlchemyError("readonly database"))


def create_store(path: Path) -> None:
    """Create a SQLite store in a temporary file and rename it: safe with concurrent starts, and a killed process leaves
    no half-created store."""
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            if path.exists():
                return
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.") as folder:
                new = Path(folder) / path.name
                with without_quoted_folders(sqlite_uri(new)):
                    mlflow.MlflowClient(tracking_uri=sqlite_uri(new)).search_experiments(max_results=1)
                os.replace(new, path)
    except OSError as error:
        problem = f"The tracking store {path} cannot be created ({error.strerror or error})"
        raise TrackingError(f"{problem}: name another with --tracking-uri.") from error


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let no other process be in such a block of this SQLite store; a server cannot be locked."""
    uri = mlflow.get_tracking_uri()
    lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if uri.startswith("sqlite:///"):
        try:
            lock = filelock.FileLock(f"{sqlite_path(uri)}.lock", timeout=LOCK_SECONDS).acquire()
        except OSError as error:
            raise explain(uri, error) from error
    with lock:
        yield


def local_folder(location: str) -> Path:
    """The folder that holds the files of an artifact location on this machine, also if the project was moved."""
    recorded, uri = Path(local_file_uri_to_path(location)), mlflow.get_tracking_uri()  # type: ignore[no-untyped-call]
    return beside(recorded, sqlite_path(uri).parent) if uri.startswith("sqlite:///") else recorded


def follow_moves() -> None:
    """Make MLflow, in this process, read and write the files of a moved project beside its database, and say so."""

    def open_local(location: str, **more: Any) -> LocalArtifactRepository:
        return LocalArtifactRepository(local_folder(location).as_uri(), **more)

    repositories: dict[str, Any] = get_registered_artifact_repositories()
    repositories |= {"": open_local, "file": open_local}
    with without_quoted_folders(mlflow.get_tracking_uri()):  # the first use of the store
        experiments = mlflow.MlflowClient().search_experiments(max_results=1)
    for experiment in experiments:
        location = experiment.artifact_location
        if is_local_uri(location):  # type: ignore[no-untyped-call]
            old, new = Path(local_file_uri_to_path(location)).parent, local_folder(location).parent  # type: ignore[no-untyped-call]
            if old != new and new.is_dir():
                warnings.warn(
                    f"MLflow recorded the files of this project in {old}, which does not exist: they are "
                    f"used in {new}. For MLflow's own pages, type: mkdir -p {shlex.quote(str(old.parent))} && "
                    f"ln -s {shlex.quote(str(new))} {shlex.quote(str(old))}",
                    stacklevel=3,
                )


def check_server(uri: str) -> None:
    """Raise TrackingError for a server of MLflow 1 or 2 before anything is trained: it cannot hold a release."""
    version = ""
    with contextlib.suppress(mlflow.MlflowException):  # the first use of the store says why it cannot be used
        credentials = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
        version = http_request(credentials, "/version", "GET", max_retries=0).text  # type: ignore[no-untyped-call]
    if re.match(r"[012]\.\d", version):
        raise TrackingError(
            f"The server at {uri} is MLflow {version[:20]}, and vitcifar needs MLflow 3: update it, or name another "
            "with --tracking-uri."
        )


def find_run(run_id: str) -> Run:
    """A run that is not deleted. Raises TrackingError."""
    uri = mlflow.get_tracking_uri()
    with reaching(uri):
        run = mlflow.MlflowClient().get_run(run_id)
        if run.info.lifecycle_stage != "active":
            raise mlflow.MlflowException(f"The run {run_id} must be in the 'active' state")
    return run


def run_url(run_id: str) -> str:
    """The address of a run in MLflow's pages, without a password; "" unless the store is a server."""
    server = redact(mlflow.get_tracking_uri()).replace("***@", "").rstrip("/")
    if not (run_id and server.startswith(("http://", "https://"))):
        return ""
    experiment = quote(mlflow.get_run(run_id).info.experiment_id)
    # MLflow 3.17 opens its pages of GenAI, without models and metrics, unless the address asks for the others.
    return f"{server}/#/experiments/{experiment}/runs/{quote(run_id)}?workflowType=machine_learning"
