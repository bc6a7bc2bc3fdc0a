"""Addresses of tracking stores: the path in a SQLite URI, the password in that of a server; folders to write to."""

import contextlib
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vitcifar.errors import ConfigError, TrackingError

CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "VITCIFAR_CREDENTIALS_HOST")
RESERVE = 2**18  # bytes
FULL = (errno.ENOSPC, errno.EDQUOT)


def sqlite_path(uri: str) -> Path:
    """The absolute path in a SQLite URI. `mlflow run` quotes it (a space is %20), people do not: the file decides."""
    text = uri.removeprefix("sqlite:///")
    if text.startswith("~/"):
        text = os.path.expanduser(text)
    raw, _, query = text.partition("?")
    quoted, unquoted = Path(raw).absolute(), Path(unquote(raw)).absolute()
    if "/" in query and Path(text).absolute().parent.is_dir():
        return Path(text).absolute()
    if quoted.is_file() or not (unquoted.is_file() or (unquoted.parent.is_dir() and not quoted.parent.is_dir())):
        return quoted
    if "MLFLOW_RUN_ID" in os.environ:  # `mlflow run` has made an empty folder with the quoted name beside the project
        with contextlib.suppress(OSError):
            for folder in (quoted.parent, *quoted.parent.parents):
                if "%" in folder.name:
                    folder.rmdir()
    return unquoted


@contextlib.contextmanager
def without_quoted_folders(uri: str) -> Iterator[None]:
    """Remove the empty folders that MLflow makes where a quoted SQLite URI seems to lead."""
    missing = [folder for folder in Path(uri.removeprefix("sqlite:///")).absolute().parents if not folder.exists()]
    yield
    for folder in missing:
        with contextlib.suppress(OSError):
            folder.rmdir()


def sqlite_uri(path: Path) -> str:
    """The URI of a SQLite file, unquoted where SQLAlchemy (which unquotes from 2.1 on) and MLflow agree on its path."""
    for text in (str(path), os.path.relpath(path)):
        if not {"%", "?"} & set(text):
            return f"sqlite:///{text}"
    import sqlalchemy

    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


def without_credentials(uri: str) -> str:
    """A server's address whose user name and password are in the environment instead, where MLflow reads them."""
    try:
        address = urlsplit(uri)
    except ValueError:
        raise TrackingError("The tracking URI is not an address: type http://HOST:PORT.") from None
    if address.scheme not in ("http", "https"):
        return uri
    user, at, host = address.netloc.rpartition("@")
    if at:
        name, _, password = user.partition(":")
        if not (name and password):
            raise TrackingError(f"The address of {host} needs both: type http://NAME:PASSWORD@{host}.")
        values = (unquote(name), unquote(password), host)
        os.environ.update(zip(CREDENTIALS, values, strict=True))
    elif os.environ.get(CREDENTIALS[2], host) != host:  # those of an earlier address are not for this server
        for variable in CREDENTIALS:
            os.environ.pop(variable, None)
    return address._replace(netloc=host).geturl()


def beside(location: Path, folder: Path) -> Path:
    """Where the files lie that MLflow recorded at a location: there, or in the folder `mlruns` of a project that moved.

    `folder` is that of the database. The deepest folder that exists decides; a new project's does not exist yet.
    """
    root = next((parent for parent in location.parents if parent.name == "mlruns"), None)
    if root is None:
        return location
    moved = folder / "mlruns"
    for path in (location, *location.parents):
        if path.exists() or path == root.parent:
            break
        if (moved / path.relative_to(root)).exists():
            return moved / location.relative_to(root)
    return location if root.parent.is_dir() else moved / location.relative_to(root)


def check_writable(folder: Path, cure: str) -> None:
    """Raise ConfigError for a folder that cannot be made or written to; leaves nothing there."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    try:
        tempfile.TemporaryDirectory(dir=existing).cleanup()
    except OSError as error:
        raise ConfigError(f"The folder {folder} cannot be written to ({error.strerror}): {cure}.") from None


def full_folder(error: BaseException, folders: Iterable[Path]) -> Path | None:
    """Which of the folders is on a full disk, for an error of one; None for another error.

    An error of a write does not say of which file: the folder whose disk has the least space is taken.
    """
    chain: BaseException | None = error
    while chain is not None and not (isinstance(chain, OSError) and chain.errno in FULL):
        chain = chain.__cause__
    if chain is None:
        return None
    return min((folder for folder in folders if folder.is_dir()), key=lambda folder: shutil.disk_usage(folder).free)


def check_space(folder: Path, num_bytes: int) -> None:
    """Raise the error of a full disk before a write that would fail; torch's of a pt2 aborts the process then."""
    if shutil.disk_usage(folder).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Let threads print no traceback for a full disk: TensorBoard's next write raises the error where it is told."""
    before = threading.excepthook

    def told(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.exc_value, OSError) and failed.exc_value.errno in FULL):
            before(failed)

    threading.excepthook = told
    try:
        yield
    finally:
        threading.excepthook = before


@contextlib.contextmanager
def reserve(database: Path | None) -> Iterator[Callable[[], None]]:
    """Space on the disk of a SQLite file, kept inside the block, and a function that frees it earlier.

    With it the end of a run can be written to a database whose disk has become full.
    """
    path = database and database.with_name(f"{database.name}.reserve")
    if path:
        with contextlib.suppress(OSError):
            path.write_bytes(bytes(RESERVE))

    def free() -> None:
        if path:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    try:
        yield free
    finally:
        free()
