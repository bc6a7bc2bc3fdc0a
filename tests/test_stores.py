"""Each cause for which a tracking store cannot be used is told with its own cure, before anything is trained."""

import contextlib
import http.server
import shutil
import sqlite3
import threading
from pathlib import Path

import mlflow
import pytest
import sqlalchemy
from support.releases import add_version
from support.toys import settle

from vitcifar import stores, tracking
from vitcifar.errors import TrackingError
from vitcifar.registry.aliases import move_alias
from vitcifar.registry.doctor import repair
from vitcifar.registry.registry import Registry

SCHEMA_OF_OLD_MLFLOW = "0584bdc529eb"  # one of the migrations of MLflow 2


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    yield
    mlflow.set_tracking_uri(None)


@contextlib.contextmanager
def serving(status, body=b"", version=b""):
    """A server that gives every request the same answer, but its version to GET /version."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = version if self.path == "/version" else body
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, b"You are not authenticated.", "wants a user name and a password.*set MLFLOW_TRACKING_USERNAME"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": ""}', "not allowed.*ask the administrator"),
        (403, b"Invalid Host header - possible attack", "rejects this host name.*--allowed-hosts"),
        (404, b"<html>nginx</html>", "not an MLflow server.*check host, port and path"),
        (404, b'{"detail": "Not Found"}', "not an MLflow server.*check host, port and path"),
        (200, b"<html>Welcome</html>", "not an MLflow server.*check host, port and path"),
        (413, b"<html>nginx</html>", "larger than the server, or a proxy before it, accepts.*client_max_body_size"),
        (429, b"", "too many requests.*try again later"),
        (500, b"", r"the server failed \(500\).*see the server's log"),
        (502, b"", r"the MLflow server behind it does not \(502\).*start it"),
        (503, b"", r"the MLflow server behind it does not \(503\).*start it"),
        (504, b"", r"the MLflow server behind it does not \(504\).*start it"),
    ],
)
def test_what_a_server_answers_is_told_with_its_cure(status, body, message):
    with serving(status, body) as uri, pytest.raises(TrackingError, match=message):
        tracking.connect(uri)


def test_a_server_of_mlflow_2_is_refused_before_its_first_use():
    refused = pytest.raises(TrackingError, match=r"MLflow 2\.22\.4.*needs MLflow 3")
    with serving(200, b"{}", version=b"2.22.4") as uri, refused:
        tracking.connect(uri)
    for version in (b"3.1.0", b"<html>", b""):
        with serving(200, b"{}", version=version) as uri:
            assert tracking.connect(uri) == uri


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://no.such.host.invalid:5000", "no such host.*check its name"),
        ("http://127.0.0.1:port", "not an address.*type http://HOST:PORT"),
        ("postgres://host/mlflow", "no such kind of store.*type sqlite:///FILE or http://HOST:PORT"),
        ("mysql://host/mlflow", "needs the Python package MySQLdb.*install it"),
        ("file:///nowhere/mlruns", "old file store.*mlflow migrate-filestore --source FOLDER --target"),
    ],
)
def test_an_address_that_names_no_store_is_told_with_its_cure(uri, message):
    with pytest.raises(TrackingError, match=message):
        tracking.connect(uri)


def test_a_server_without_encryption_is_told_from_one_that_is_away():
    with serving(200, b"{}") as uri, pytest.raises(TrackingError, match=r"no secure connection.*type http://"):
        tracking.connect(uri.replace("http", "https"))


def schema(path, version, *statements):
    with contextlib.closing(sqlite3.connect(path)) as database:
        for statement in (f"UPDATE alembic_version SET version_num = '{version}'", *statements):
            database.execute(statement)
        database.commit()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path.unlink(), path.mkdir()), "is a folder: type sqlite:///FILE"),
        (lambda path: path.write_text("no database" * 500), "not an SQLite database"),
        (
            lambda path: schema(path, SCHEMA_OF_OLD_MLFLOW),
            "older MLflow.*back it up, then type mlflow db upgrade sqlite:///",
        ),
        (lambda path: schema(path, "f" * 12), "newer MLflow.*update MLflow here"),
        (lambda path: schema(path, "f" * 12, "DROP TABLE webhooks"), "newer MLflow.*update MLflow here"),
    ],
    ids=["folder", "text", "old schema", "new schema", "new schema with other tables"],
)
def test_what_is_wrong_with_a_database_is_told_with_its_cure(folder, damage, message):
    damage(folder / "mlflow.db")
    with pytest.raises(TrackingError, match=message):
        tracking.connect(f"sqlite:///{folder}/mlflow.db")


@pytest.mark.parametrize(
    ("query", "message"),
    [("mode=ro", "cannot be written.*permissions"), ("mode=rw", "another program has locked.*end that program")],
    ids=["read-only", "locked"],
)
def test_a_database_that_cannot_be_written_is_told_with_its_cure(folder, query, message):
    uri = f"sqlite:///file:{folder}/mlflow.db?{query}&uri=true"
    engine = sqlalchemy.create_engine(uri, connect_args={"timeout": 0})
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as other:
        if query == "mode=rw":
            other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match=message), stores.reaching(uri), engine.begin() as connection:
            connection.execute(sqlalchemy.text("DELETE FROM tags"))
    engine.dispose()


def test_an_error_without_a_known_cause_keeps_the_words_of_mlflow():
    error = stores.explain("sqlite:///x.db", mlflow.MlflowException("The moon is full.\nMore of it"))
    assert str(error) == "The tracking store sqlite:///x.db cannot be used: The moon is full. More of it"


def test_a_store_is_not_created_for_a_run_that_is_in_another_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(TrackingError, match=r"no tracking store .*with the run that MLFLOW_RUN_ID names"):
        tracking.connect("sqlite:///mlflow.db")
    assert not list(tmp_path.iterdir())


def test_a_project_that_was_moved_is_used_where_it_lies_and_keeps_its_aliases(folder, monkeypatch):
    before, after = folder / "before", folder / "after it moved"
    before.mkdir()
    shutil.move(folder / "mlflow.db", before)
    with contextlib.closing(sqlite3.connect(before / "mlflow.db")) as database:
        database.execute("UPDATE experiments SET artifact_location = ?", (f"{before}/mlruns/0",))
        database.commit()
    settle(before, monkeypatch)
    add_version(before, "one")
    move_alias(Registry("toy"), "champion", 1)
    before.rename(after)
    note = f"{before}/mlruns, which does not exist: they are used in {after}/mlruns.*ln -s"
    with pytest.warns(UserWarning, match=note):
        settle(after, monkeypatch)
    registry = Registry("toy")
    assert repair(registry, stale_seconds=0) == []
    assert registry.aliases() == {"champion": 1}
    assert registry.pull("champion").release_id == "one"
    add_version(after, "two")
    assert len(list((after / "mlruns" / "0" / "models").iterdir())) == 2
    assert not before.exists()
    Path(before).mkdir()
    (before / "mlruns").symlink_to(after / "mlruns")  # as the note says
    settle(after, monkeypatch)  # without a warning
    registry.verify_store(registry.show(2))


def test_a_store_in_a_folder_with_a_question_mark_leaves_no_folder_of_a_quoted_name(tmp_path):
    folder = tmp_path / "a z?k"
    folder.mkdir()
    for _ in range(2):
        tracking.connect(f"sqlite:///{folder}/mlflow.db")
    assert [path.name for path in tmp_path.iterdir()] == ["a z?k"]
