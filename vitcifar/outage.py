"""What is done when a tracking store is away: which errors pass by themselves, and how long a request is waited for."""

import concurrent.futures
import contextlib
import functools
import os
import posixpath
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import mlflow
import requests
import sqlalchemy
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.mime_type_utils import _guess_mime_type
from mlflow.utils.request_utils import augmented_raise_for_status
from mlflow.utils.rest_utils import http_request

from vitcifar.errors import VitCifarError, reason_of
from vitcifar.progress import notify
from vitcifar.stores import ERRORS
from vitcifar.uris import sqlite_path

RETRIES_VARIABLE, TIMEOUT_VARIABLE = MLFLOW_HTTP_REQUEST_MAX_RETRIES.name, MLFLOW_HTTP_REQUEST_TIMEOUT.name
SHORT = {RETRIES_VARIABLE: "0", TIMEOUT_VARIABLE: "2"}  # of a store that is away
# Of a store that may fail while the end of a run waits for it. A request that is sent twice may register two versions.
HURRIED = {RETRIES_VARIABLE: "0", TIMEOUT_VARIABLE: "16"}
BLIP_SECONDS = 5.0  # without an answer, until what met an error is not tried again
AWAY_SECONDS = 10.0  # without an answer, until a store that is watched counts as away
_usual: dict[str, str | None] = {}  # what these replaced
_watching, _away, _lock = threading.Event(), threading.Event(), threading.Lock()
Result = TypeVar("Result")
# What passes by itself or with a new login, in MLflow's words; "disk is full" does not. Two runs that record the same
# dataset at once get IntegrityError.
TRANSIENT = (
    r"database is locked|[Tt]ime(d )?out|Max retries exceeded|Connection (aborted|refused|reset)|not in a valid JSON|"
    r"(error code|too many) (40[134]|413|429|5\d\d)|INTERNAL_ERROR|TEMPORARILY_UNAVAILABLE|UNAUTHENTICATED|"
    r"PERMISSION_DENIED|REQUEST_LIMIT_EXCEEDED|IntegrityError"
)
PERMANENT = r"disk is full|No space left|readonly database|disk image is malformed"
UPLOAD_SECONDS = 300  # until a server has stored a file
ANSWER_SECONDS = 5  # that a store may take to say it is there


def is_transient(error: BaseException | None) -> bool:
    """Whether the same request to the tracking store may succeed later, by an error or one that it was raised from."""
    while error is not None:
        if isinstance(error, TimeoutError | requests.RequestException):
            return True
        if isinstance(error, ERRORS):
            text = str(error)
            if re.search(PERMANENT, text):
                return False
            if re.search(TRANSIENT, text):
                return True
        error = error.__cause__
    return False


def expect_nothing() -> None:
    """Make every request to a store that is away fail within seconds, until another run begins."""
    _limit(SHORT)


def expect_answers() -> None:
    """Undo `expect_nothing`, but not inside of `hurried`."""
    if _watching.is_set():
        return
    while _usual:
        name, value = _usual.popitem()
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def _limit(limits: dict[str, str]) -> None:
    for name in limits.keys() - _usual.keys():
        _usual[name] = os.environ.get(name)
    os.environ.update(limits)


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Bound what a store costs that fails inside the block, by less than half a minute for all of its requests.

    A request is tried once, for 16 seconds. While the store has not answered for 10, whoever asks, every new request
    fails within seconds, also those that MLflow makes after an error, or whose errors do not count.
    """
    if _watching.is_set():
        yield
        return
    done = threading.Event()
    _away.clear()
    _limit(HURRIED)
    _watching.set()
    threading.Thread(
        target=_watch, args=(mlflow.get_tracking_uri(), done), name="watch of the store", daemon=True
    ).start()
    try:
        yield
    except BaseException:
        _watching.clear()  # the limits stay for what ends the run
        raise
    finally:
        with _lock:  # the watch sets no limit after this
            done.set()
    _watching.clear()
    expect_answers()


def again(work: Callable[[], Result]) -> Result:
    """The result of work that goes on from what it has done, called once more after a failure of the store that passes
    within BLIP_SECONDS: one request of it may have been too many for a server, or have met its restart."""
    try:
        return work()
    except VitCifarError as error:
        if not is_transient(error) or _away.is_set():
            raise
        notify(f"The store failed ({reason_of(error)}): waiting for it.")
        deadline = time.monotonic() + BLIP_SECONDS
        time.sleep(1)
        while not answers(mlflow.get_tracking_uri()):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
    return work()


def _watch(uri: str, done: threading.Event) -> None:
    answered = time.monotonic()
    while not done.wait(1.0):
        if answers(uri):
            answered = time.monotonic()
            _away.clear()
        elif time.monotonic() - answered >= AWAY_SECONDS:
            _away.set()
        with _lock:
            if not done.is_set():
                _limit(SHORT if _away.is_set() else HURRIED)


@functools.cache
def limit_sqlite() -> None:
    """From now on, a locked SQLite database is waited for as long as a request to a server, if that is less than the 20
    seconds of MLflow."""

    def shorten(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
    ) -> tuple[str, Any]:
        limit = 1000 * MLFLOW_HTTP_REQUEST_TIMEOUT.get()  # type: ignore[no-untyped-call]
        if statement.startswith("PRAGMA busy_timeout") and limit < 20_000:
            statement = f"PRAGMA busy_timeout = {limit}"
        return statement, parameters

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", shorten, retval=True)


class ServerFiles(MlflowArtifactsRepository):
    """The files behind a tracking server: it may take UPLOAD_SECONDS for one, as long as it answers other requests."""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        if self._should_multipart_upload(local_file):  # type: ignore[no-untyped-call]
            super().log_artifact(local_file, artifact_path)  # type: ignore[no-untyped-call]
        else:
            while_answering(mlflow.get_tracking_uri(), functools.partial(self._send, local_file, artifact_path or ""))

    def _send(self, path: str, folder: str) -> None:
        headers = {"Content-Type": _guess_mime_type(path)}  # type: ignore[no-untyped-call]
        with open(path, "rb") as file:
            target = posixpath.join("/", folder, os.path.basename(path))
            options: dict[str, Any] = {"data": file, "extra_headers": headers, "timeout": UPLOAD_SECONDS}
            response = http_request(self._host_creds, target, "PUT", **options)  # type: ignore[no-untyped-call]
            augmented_raise_for_status(response)  # type: ignore[no-untyped-call]


@functools.cache
def wait_for_uploads() -> None:
    """From now on, files go to a tracking server as `ServerFiles` says."""
    repositories: dict[str, Any] = get_registered_artifact_repositories()
    repositories["mlflow-artifacts"] = ServerFiles


def while_answering(uri: str, work: Callable[[], None]) -> None:
    """Wait for work, which is done in a thread, as long as a store answers. Raises what the work raises, or
    requests.Timeout."""
    ended: concurrent.futures.Future[None] = concurrent.futures.Future()

    def run() -> None:
        try:
            work()
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, name="upload", daemon=True).start()
    while not concurrent.futures.wait([ended], timeout=ANSWER_SECONDS).done:
        if not answers(uri):
            raise requests.Timeout(str(unanswered(uri)))
    ended.result()


def unanswered(uri: str) -> TimeoutError:
    """The error of a store that has not answered yet: a file of SQLite is locked then."""
    sqlite = uri.startswith("sqlite:")
    return TimeoutError("database is locked" if sqlite else "the server does not answer: timed out")


def answers(uri: str) -> bool:
    """Whether a tracking server answers within seconds, whatever it says, or a SQLite database can be written; other
    stores count as answering."""
    if uri.startswith("sqlite:///"):
        path = f"{sqlite_path(uri).absolute().as_uri()}?mode=rw"  # else a missing file would be made
        try:
            with contextlib.closing(sqlite3.connect(path, ANSWER_SECONDS, uri=True, isolation_level=None)) as database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return False
    elif uri.startswith("http"):
        try:
            credentials = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
            http_request(credentials, "/health", "GET", max_retries=0, timeout=ANSWER_SECONDS)  # type: ignore[no-untyped-call]
        except (mlflow.MlflowException, requests.RequestException):
            return False
    return True
