"""One writer, two trackers: the same names, values and steps, and a run that always ends."""

import base64
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from urllib.parse import quote

import mlflow
import pytest
import requests
from PIL import Image
from support.project import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitcifar import tracking, uris
from vitcifar.errors import ConfigError, TrackingError
from vitcifar.experiments.logs import compare_logs
from vitcifar.registry.registry import Registry
from vitcifar.training.resume import check_resumable


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch, database):
    """Each test works in a folder of its own; the store is one for all, since making one takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    yield tracking.connect(database)
    mlflow.set_tracking_uri(None)


def start(**given):
    return tracking.start_run(experiment="tests", output_dir=Path("runs"), **given)


def test_both_trackers_get_the_same_names_values_and_steps():
    with start() as run:
        for step in range(1, 251):
            run.log(step, {"step/loss": 1 / step, "step/learning_rate": 1e-3 / step})
        run.log(250, {"train/loss": 0.1, "validation/accuracy": 2 / 3})
    agreement = compare_logs(run.run_id)
    assert agreement.differences == ()
    assert (agreement.num_metrics, agreement.num_points) == (4, 502)


def test_a_run_after_one_whose_store_was_away_waits_for_the_store_as_long_as_ever(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "45")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with pytest.raises(TrackingError), start():
        raise requests.ConnectionError("Max retries exceeded")
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "2"
    with start():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "45"
        assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_compare_logs_finds_a_value_that_only_one_tracker_has():
    with start() as run:
        run.log(1, {"train/loss": 0.5})
        run.client.log_metric(run.run_id, "train/loss", 0.25, step=2)
        run.writer.add_scalar("train/loss", 0.75, 2)
        run.client.log_metric(run.run_id, "train/accuracy", 1.0, step=1)
    found = compare_logs(run.run_id).differences
    assert found == (
        "train/accuracy at step 1 is 1.0 only in MLflow",
        "train/loss at step 2 is 0.25 only in MLflow",
        "train/loss at step 2 is 0.75 only in TensorBoard",
    )


def test_a_resumed_run_has_no_gap_and_no_double_point():
    with pytest.raises(RuntimeError), start() as run:
        for step in range(1, 8):
            run.log(step, {"step/loss": 1 / step})
        raise RuntimeError("the machine went down")
    with start(run_id=run.run_id) as resumed:
        for step in range(4, 11):  # from the last checkpoint on
            resumed.log(step, {"step/loss": 1 / step})
    steps = [metric.step for metric in resumed.client.get_metric_history(run.run_id, "step/loss")]
    assert sorted(steps) == list(range(1, 11))
    assert compare_logs(run.run_id).differences == ()
    assert resumed.client.get_run(run.run_id).info.status == "FINISHED"


def test_an_image_is_in_both_trackers():
    with start() as run:
        run.log_image("augmentation", Image.new("RGB", (8, 6), "red"))
    events = EventAccumulator(str(run.event_files)).Reload()
    assert [(image.width, image.height) for image in events.Images("augmentation")] == [(8, 6)]
    assert [item.path for item in run.client.list_artifacts(run.run_id, "figures")] == ["figures/augmentation.png"]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (SystemExit, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_failed_run_is_never_left_running(error, status):
    with pytest.raises(TrackingError if error is SystemExit else error), start() as run:
        raise error
    assert run.client.get_run(run.run_id).info.status == status


def test_an_output_folder_that_cannot_be_written_is_one_sentence_and_leaves_no_run():
    Path("notes.txt").write_text("mine")
    for folder in ("notes.txt", "notes.txt/runs"):
        with (
            pytest.raises(ConfigError, match=rf"^The folder {folder} cannot be written to \(.*\): .*--output-dir"),
            tracking.start_run(experiment="unwritten", output_dir=Path(folder)),
        ):
            pass
    assert mlflow.MlflowClient().get_experiment_by_name("unwritten") is None


def test_artifacts_that_cannot_be_written_are_one_sentence_before_training(tmp_path):
    (tmp_path / "file").touch()
    mlflow.create_experiment("full", artifact_location=f"{tmp_path}/file/artifacts")
    with (
        pytest.raises(ConfigError, match=r"file/artifacts/.* cannot be written to \(.*\): .* with --experiment"),
        tracking.start_run(experiment="full", output_dir=Path("runs")),
    ):
        pytest.fail("the run started")


def test_the_run_that_mlflow_run_created_is_used(monkeypatch):
    made = mlflow.MlflowClient().create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    with start() as run:
        run.log_params({"learning_rate": 1e-3})
    written = run.client.get_run(made.info.run_id)
    assert run.run_id == made.info.run_id
    assert written.data.params == {"config.learning_rate": "0.001"}


@pytest.mark.parametrize("state", ["FINISHED", "with metrics", "missing"])
def test_a_run_that_mlflow_run_did_not_just_create_is_not_touched(monkeypatch, state):
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id if state != "missing" else "0" * 32
    if state == "FINISHED":
        client.set_terminated(run_id)
    elif state == "with metrics":
        client.log_metric(run_id, "test/accuracy", 0.5)
    before = None if state == "missing" else client.get_run(run_id).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(TrackingError, match=rf"MLFLOW_RUN_ID names run {run_id}.*unset it"), start():
        pass
    assert before is None or client.get_run(run_id).to_dictionary() == before


def test_only_an_unfinished_run_with_the_same_images_can_be_resumed():
    with start() as run:
        run.log_params({"fingerprint": "a" * 64})
    with pytest.raises(TrackingError, match=r"has finished \(no version\): there is nothing to resume"):
        check_resumable(run.run_id, "a" * 64)
    run.client.update_run(run.run_id, "KILLED")
    check_resumable(run.run_id, "a" * 64)
    with pytest.raises(TrackingError, match=r"started with fingerprint aaaaaaaaaaaaaaaa…, they have bbbbbbbbbbbbbbbb…"):
        check_resumable(run.run_id, "b" * 64)


def test_a_deleted_run_and_a_missing_one_say_so_and_how_to_get_it_back():
    with start() as run:
        run.client.delete_run(run.run_id)
        run.client.restore_run(run.run_id)
    run.client.delete_run(run.run_id)
    for use in (compare_logs, lambda run_id: check_resumable(run_id, "")):
        with pytest.raises(
            TrackingError, match=rf"^Run {run.run_id} was deleted: .*mlflow runs restore --run-id {run.run_id}"
        ):
            use(run.run_id)
        with pytest.raises(TrackingError, match=r"^Run nowhere does not exist: the MLflow UI lists"):
            use("nowhere")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"experiment": ""}, "experiment's name is empty: type --experiment"),
        ({"experiment": "x" * 600}, "experiment's name has 600 characters: type --experiment"),
        ({"run_name": "x" * 600}, "run's name has 600 characters: type --run-name"),
    ],
    ids=["empty experiment", "long experiment", "long run name"],
)
def test_a_name_that_no_database_holds_is_refused_for_what_it_is(names, message):
    with (
        pytest.raises(TrackingError, match=message),
        tracking.start_run(**{"experiment": "tests", "output_dir": Path("runs")} | names),
    ):
        pass


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it():
    client = mlflow.MlflowClient()
    number = client.create_experiment("gone")
    client.delete_experiment(number)
    with pytest.raises(
        TrackingError, match=rf"'gone' was deleted: .*mlflow experiments restore --experiment-id {number}\."
    ):
        tracking.experiment_id("gone")


def test_the_experiment_of_a_run_is_the_one_that_mlflow_run_chose(monkeypatch):
    client = mlflow.MlflowClient()
    assert tracking.project_experiment() is None
    run = client.create_run(client.create_experiment("mine"))
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    assert tracking.project_experiment() == "mine"


def test_an_error_of_mlflow_within_a_run_is_one_sentence_and_the_failure_of_the_run():
    with (
        pytest.raises(TrackingError, match=r"a request is larger than the server, or a proxy .* \(413\)\): raise"),
        start() as run,
    ):
        raise mlflow.MlflowException("API request to endpoint /x failed with error code 413 != 200. Response body: ''")
    assert "larger than the server" in run.client.get_run(run.run_id).data.tags["failure"]


def test_system_metrics_are_logged(monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with start() as run:
        time.sleep(1)
    names = run.client.get_run(run.run_id).data.metrics
    assert any(name.startswith("system/") for name in names)


def test_processes_that_start_at_once_share_one_new_store(tmp_path):
    code = "from vitcifar import tracking; tracking.connect('sqlite:///new/mlflow.db')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment) for _ in range(3)]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    assert [path.name for path in (tmp_path / "new").iterdir() if not path.name.endswith(".lock")] == ["mlflow.db"]


def test_a_kill_during_creation_leaves_no_store(tmp_path):
    code = "from vitcifar import tracking; tracking.connect('sqlite:///new/mlflow.db')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    while not list((tmp_path / "new").glob("mlflow.db.*/mlflow.db")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "new" / "mlflow.db").exists()
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment).returncode == 0


def test_a_relative_store_is_made_absolute(tmp_path, database):
    (tmp_path / "here.db").symlink_to(database.removeprefix("sqlite:///"))
    assert tracking.connect("sqlite:///here.db") == f"sqlite:///{tmp_path}/here.db"


def test_a_printed_command_names_a_store_that_the_environment_does_not_name(tmp_path, database):
    tracking.connect()
    assert tracking.store_option() == ""
    (tmp_path / "my store.db").symlink_to(database.removeprefix("sqlite:///"))
    tracking.connect("sqlite:///my store.db")
    assert tracking.store_option() == f" --tracking-uri 'sqlite:///{tmp_path}/my store.db'"
    assert Registry("a b").model_option == " --model-name 'a b'" + tracking.store_option()
    tracking.connect(database)
    tracking.connect(database)
    assert tracking.store_option() == ""


def test_an_unreachable_server_is_one_sentence():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(TrackingError, match=r"no server answers.*name another with --tracking-uri"):
        tracking.connect(uri)


def test_a_store_behind_a_socks_proxy_that_requests_cannot_use_is_one_sentence(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"SOCKS proxy.*: unset the variable of that proxy"):
        tracking.connect("http://store.invalid:5000")


def test_the_password_in_an_address_reaches_the_server_and_nothing_else(monkeypatch, capsys):
    received = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST

    for name in uris.CREDENTIALS:
        monkeypatch.setenv(name, "")
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        assert tracking.connect(f"http://ann:S%40CRET@{address}") == f"http://{address}"
        tracking.connect(f"http://{address}")  # a child process gets the address alone
        tracking.connect(f"http://localhost:{server.server_address[1]}")
        server.shutdown()
    assert [path for path, _ in received] == 3 * ["/version", "/api/2.0/mlflow/experiments/search"]
    *logins, last, other = (login for _, login in received)
    assert len(set(logins)) == 1 and last is other is None, "another server gets no password"
    assert base64.b64decode(logins[0].removeprefix("Basic ")) == b"ann:S@CRET"
    assert "CRET" not in mlflow.get_tracking_uri() + os.environ["MLFLOW_TRACKING_URI"] + capsys.readouterr().err


@pytest.mark.parametrize(
    "uri",
    ["ann:SECRET@host:5000", "http://:SECRET@host", "http://SECRET@host", "http://ann:SECRET@[::1", "http://a℀SECRET"],
)
def test_an_address_that_cannot_be_used_is_one_sentence_without_its_password(uri):
    with pytest.raises(TrackingError, match=r"type .*http://") as caught:
        tracking.connect(uri)
    assert "SECRET" not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize("name", ["my project ü", "100% real", "what?", "a#b", "5%20x"])
def test_a_store_is_the_same_file_in_a_folder_of_any_name_and_as_mlflow_quotes_it(
    tmp_path, monkeypatch, database, name
):
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    file = f"{sum(name.encode())}.db"  # MLflow keeps the stores of a process by address, and some of these are relative
    if name != "what?":  # one new store; copying the others is quicker
        shutil.copy(database.removeprefix("sqlite:///"), folder / file)
    typed = tracking.connect(f"sqlite:///{folder}/{file}")
    mlflow.create_experiment(f"ours {name}")
    by_mlflow_run = f"sqlite:///{tmp_path}/{quote(name)}/{file}"
    os.makedirs(tmp_path / quote(name), exist_ok=True)  # as MLflow does, without using it
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow unquotes the last of these folders where it puts files
        assert tracking.connect(by_mlflow_run) == tracking.connect(f"sqlite:///{file}") == typed
    assert mlflow.get_experiment_by_name(f"ours {name}")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_folder_of_the_user_is_removed(tmp_path, monkeypatch, database):
    for name in ("a b", "a%20b"):
        (tmp_path / name).mkdir()
    shutil.copy(database.removeprefix("sqlite:///"), tmp_path / "a b" / "mlflow.db")
    assert tracking.connect(f"sqlite:///{tmp_path}/a%20b/mlflow.db") == f"sqlite:///{tmp_path}/a b/mlflow.db"
    assert (tmp_path / "a%20b").is_dir()


def test_a_missing_store_is_created_only_when_new_is_allowed(tmp_path):
    for wrong in (f"sqlite:///{tmp_path}/none/x.db", f"sqlite:///{tmp_path}/x.db"):
        with pytest.raises(TrackingError, match=r"There is no tracking store .*x\.db: change to its folder"):
            tracking.connect(wrong, new=False)
    with pytest.raises(TrackingError, match="is not a tracking URI: type sqlite"):
        tracking.connect(str(tmp_path / "x.db"))
    assert list(tmp_path.iterdir()) == []


def test_the_tags_of_mlflow_run_keep_no_token_of_gits_remote(tmp_path, monkeypatch):
    remote = "https://example.org/a.git?token=canary-token"
    uri = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    made = mlflow.MlflowClient().create_run("0", tags={"mlflow.source.git.repoURL": remote, "mlflow.user": "ann"})
    tracking.hide_secrets(made.info.run_id)
    tags = mlflow.MlflowClient().get_run(made.info.run_id).data.tags
    assert tags["mlflow.source.git.repoURL"] == "https://example.org/a.git?token=***" and tags["mlflow.user"] == "ann"
    assert b"canary-token" not in Path(uri.removeprefix("sqlite:///")).read_bytes()
    tracking.hide_secrets("0" * 32)  # the command itself says that there is no such run
