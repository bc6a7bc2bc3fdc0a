"""What is done when a tracking store is away: which errors pass by themselves, and how long a request is waited for."""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from typing import Any

import mlflow
import requests
import sqlalchemy
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from vitcifar.stores import ERRORS

TIMEOUT_VARIABLE = MLFLOW_HTTP_REQUEST_TIMEOUT.name
SHORT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", TIMEOUT_VARIABLE: "2"}  # of a store that is away
_usual: dict[str, str | None] = {}  # what SHORT replaced
# What passes by itself or with a new login, in MLflow's words; "disk is full" does not. Two runs that record the same
# dataset at once get IntegrityError.
TRANSIENT = (
    r"database is locked|[Tt]ime(d )?out|Max retries exceeded|Connection (aborted|refused|reset)|not in a valid JSON|"
    r"(error code|too many) (40[134]|413|429|5\d\d)|INTERNAL_ERROR|TEMPORARILY_UNAVAILABLE|UNAUTHENTICATED|"
    r"PERMISSION_DENIED|REQUEST_LIMIT_EXCEEDED|IntegrityError"
)
PERMANENT = r"disk is full|No space left|readonly database|disk image is malformed"
UPLOAD_SECONDS = 300  # until a server has stored a file
ANSWER_SECONDS = 5  # that a server may take to say it is there


def is_transient(error: BaseException) -> bool:
    """Whether the same request to the tracking store may succeed later."""
    if isinstance(error, TimeoutError | requests.RequestException):
        return True
    text = str(error)
    return isinstance(error, ERRORS) and not re.search(PERMANENT, text) and bool(re.search(TRANSIENT, text))


@contextlib.contextmanager
def uploading() -> Iterator[None]:
    """Wait longer for the answer to a request that carries a file."""
    before = os.environ.get(TIMEOUT_VARIABLE, "30")
    os.environ[TIMEOUT_VARIABLE] = str(max(int(before), UPLOAD_SECONDS))
    try:
        yield
    finally:
        os.environ[TIMEOUT_VARIABLE] = before


def expect_nothing() -> None:
    """Make every request to a store that is away fail within seconds, until another run begins."""
    for name in SHORT.keys() - _usual.keys():
        _usual[name] = os.environ.get(name)
    os.environ.update(SHORT)


def expect_answers() -> None:
    """Undo `expect_nothing`."""
    while _usual:
        name, value = _usual.popitem()
        os.environ.pop(name) if value is None else os.environ.update({name: value})


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


def unanswered(uri: str) -> TimeoutError:
    """The error of a store that has not answered yet: a file of SQLite is locked then."""
    sqlite = uri.startswith("sqlite:")
    return TimeoutError("database is locked" if sqlite else "the server does not answer: timed out")


def answers(uri: str) -> bool:
    """Whether a tracking server answers within seconds, whatever it says; a store that is no server does."""
    if not uri.startswith("http"):
        return True
    try:
        credentials = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
        http_request(credentials, "/health", "GET", max_retries=0, timeout=ANSWER_SECONDS)  # type: ignore[no-untyped-call]
    except (mlflow.MlflowException, requests.RequestException):
        return False
    return True
