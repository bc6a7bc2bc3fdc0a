"""A release.json that is as registered, and odd: a command works or ends with one line, never with a traceback."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.releases import make_release
from support.scores import NUM_IMAGES, scores
from support.toys import make_image

from vitcifar import cli
from vitcifar.errors import ReleaseError, VitCifarError
from vitcifar.registry import gates
from vitcifar.registry.card import model_card
from vitcifar.registry.description import describe_model, describe_version
from vitcifar.registry.diff import compare_releases
from vitcifar.registry.gates import read_evaluation
from vitcifar.registry.registry import Registry, Version
from vitcifar.release.manifest import sha256_of, verify
from vitcifar.serving.loaded_model import open_folder, open_version

Fields = dict[str, Any]


def changed(place: str, value: Any) -> Callable[[Fields], Fields]:
    """Sets the value at a place, a.b.c."""

    def change(fields: Fields) -> Fields:
        *parents, last = place.split(".")
        inner = fields
        for name in parents:
            inner = inner.setdefault(name, {})
        inner[last] = value
        return fields

    return change


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def old(proofs: Any) -> Callable[[Fields], Fields]:
    """As vitcifar 0.1 wrote it."""
    return lambda fields: (
        {name: value for name, value in fields.items() if name != "checks"}
        | {
            "format": 1,
            "proofs": proofs,
        }
    )


SERVED = {"file": "model.onnx", "agreement": 1.0, "num_edge_cases": 1, "num_edge_cases_changed": 0}
REFUSED = {  # by whoever reads release.json
    "proofs are a number": old(5),
    "proofs hold numbers": old({"parity": 1, "test": 2}),
    "proofs hold a served number": old({"served": 3}),
    "checks are a list": changed("checks", []),
    "parity is a number": changed("checks.parity", 7),
    "difference is a text": changed("checks.parity.max_logit_difference", "x"),
    "test is a number": changed("checks.test", 3),
    "accuracy is a text": changed("checks.test.accuracy", "high"),
    "classes are numbers": changed("checks.test.classes", [1]),
    "a class has no scores": changed("checks.test.classes", [{"name": "red"}]),
    "served is a number": changed("checks.served", 4),
    "agreement is a list": changed("checks.served", SERVED | {"agreement": []}),
    "int8 is a list": changed("checks.int8", [1]),
    "statistics are a number": changed("checks.image_statistics", 3),
    "counts hold a number": changed("counts", {"test": 3}),
    "counts hold texts": changed("counts", {"test": {"red": "x"}}),
    "data is a list": changed("config", {"data": ["x"]}),
    "data_dir is a number": changed("config", {"data": "folder", "data_dir": 3}),
    "packages are a number": changed("environment", {"packages": 3}),
    "commit is a number": changed("git", {"commit": 5}),
    "1,000 nested lists": changed("config.epochs", nested(900)),
    "40 nested lists": changed("config.epochs", nested(40)),
    "a digest that is not hex": changed("files.MLmodel", "\x1b[31mred\n" * 10),
    "a file name with a line break": changed("files.a\nb", "0" * 64),
    "an endless temperature": changed("temperature", 10**400),
    "half a character": changed("class_names", ["red", "green", "\ud800"]),
    "not a number": changed("temperature", float("nan")),
}
READ = {  # shown, and promoted or refused by a gate
    "config of another time": changed("config", {"colour": 1, "data": "moon", "epochs": None}),
    "a folder without a name": changed("config", {"data": "folder"}),
    "labels of another number": changed("checks.test.labels", [0]),
    "labels of other classes": changed("checks.test.labels", [7] * NUM_IMAGES),
    "ragged labels": changed("checks.test.labels", [[1], 2]),
    "large labels": changed("checks.test.labels", [10**30] * NUM_IMAGES),
    "names are texts": changed("checks.test.confused", "x"),
    "no checks": changed("checks", {}),
    "empty records": changed("checks", {"parity": {}, "test": {}, "served": {}, "int8": {}}),
    "served without numbers": changed("checks.served", {"evaluation": None}),
}
UNSERVED = {  # shown, and not opened
    "statistics without a shape": changed("checks.image_statistics", {"mean": [1], "precision": 2, "threshold": 3}),
}
ODD = REFUSED | READ | UNSERVED


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete release, from which each test makes an odd one."""
    folder = tmp_path_factory.mktemp("good") / "release"
    parity = {"max_logit_difference": 1e-6, "num_changed": 0, "num_images": NUM_IMAGES, "worst_id": "x"}
    make_release(folder, checks={"test": scores(360), "parity": parity}, config={"data": "digits"})
    return folder


@pytest.fixture
def odd(request: pytest.FixtureRequest, release: Path, workspace: Path) -> Iterator[Path]:
    """The store holds an odd release as the only version of `odd`, by its digest."""
    good = (release / "release.json").read_bytes()
    try:
        fields = ODD[request.param](json.loads(good))
        (release / "release.json").write_text(json.dumps(fields, indent=1))
        client = Registry("odd").client
        client.create_registered_model("odd")
        digest = sha256_of(release / "release.json")
        client.create_model_version("odd", release.as_uri(), tags={"release_digest": digest}, await_creation_for=0)
        yield release
    finally:
        (release / "release.json").write_bytes(good)
        client.delete_registered_model("odd")


def run(*words: str) -> tuple[int, list[str]]:
    """The exit code of a command and its lines on stderr, at most one of which is an error."""
    result = CliRunner().invoke(cli.main, [*words, "--model-name", "odd"])
    assert isinstance(result.exception, SystemExit | None), f"{words}: {result.exception!r}"
    assert result.exit_code in (0, 1)
    errors = [line for line in result.stderr.splitlines() if line and not line.startswith("Note: ")]
    assert len(errors) <= 1 and not any("\x1b" in line for line in errors), errors
    assert [line[:7] for line in errors] == ["Error: "] * result.exit_code
    return result.exit_code, errors


@pytest.mark.parametrize("name", REFUSED)
def test_an_odd_release_is_refused_with_one_sentence(release: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(release, folder)
    fields = json.loads((folder / "release.json").read_bytes())
    (folder / "release.json").write_text(json.dumps(REFUSED[name](fields), indent=1))
    with pytest.raises(ReleaseError) as error:
        verify(folder)
    assert len(str(error.value)) < 1000 and "\x1b" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*READ, *UNSERVED])
def test_odd_records_that_nothing_needs_do_not_stop_what_reads_them(release: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(release, folder)
    fields = json.loads((folder / "release.json").read_bytes())
    (folder / "release.json").write_text(json.dumps((READ | UNSERVED)[name](fields), indent=1))
    odd, version = verify(folder), replace_version(folder)
    assert model_card(version, odd).startswith("# odd 1")
    assert describe_version(version, odd, odd) and describe_model(odd)
    assert isinstance(compare_releases(verify(release), odd), list)
    assert gates._parity(odd.checks).message
    assert gates._accuracy(read_evaluation(odd), 0.0).message
    if name in UNSERVED:
        with pytest.raises(ReleaseError, match=r"image statistics in release\.json cannot be read"):
            open_folder(folder)
    else:
        assert open_folder(folder).class_names == ("red", "green", "blue")


def replace_version(folder: Path) -> Version:
    return Version(
        model_name="odd",
        number=1,
        aliases=(),
        status="READY",
        created="2026-01-01T00:00:00Z",
        run_id="",
        source="",
        tags={"release_digest": sha256_of(folder / "release.json")},
    )


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("odd", "code"), [("proofs are a number", 1), ("1,000 nested lists", 1), ("empty records", 0)], indirect=["odd"]
)
def test_every_command_answers_an_odd_release_in_one_line(odd: Path, tmp_path: Path, code: int) -> None:
    (tmp_path / "red.png").write_bytes(make_image("red"))
    predict = ["predict", str(tmp_path / "red.png"), "--version", "1"]
    assert [run(*words)[0] for words in (["show", "1"], ["versions"], predict)] == [code, 0, code]
    assert run("promote", "1")[0] == 1  # by a gate
    run("doctor")
    assert Registry("odd").aliases() == {}


@pytest.mark.parametrize("workspace", ["sqlite"], indirect=True)
@pytest.mark.parametrize("digest", ["../../etc", "é" * 64, "a" * 4000])
def test_a_digest_that_is_not_hex_is_one_line_of_every_command(workspace: Path, release: Path, digest: str) -> None:
    registry = Registry("odd")
    registry.client.create_registered_model("odd")
    try:
        registry.client.create_model_version("odd", release.as_uri(), tags={"release_digest": digest})
        for words in (["show", "1"], ["promote", "1"], ["doctor"]):
            assert run(*words)[0] == 1
        run("doctor", "--repair", "yes")
        with pytest.raises(VitCifarError, match="was not released by vitcifar"):
            open_version(registry, 1)
    finally:
        registry.client.delete_registered_model("odd")
