"""The cache keeps the releases that were used last, and those that a process has open."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.project import ROOT
from support.releases import make_release

from vitcifar.cache import cache_dir
from vitcifar.cli import main
from vitcifar.errors import ReleaseError
from vitcifar.release.cache import cached_releases, fetch, lock


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """Four releases in a store on this machine and their digests; an empty cache that keeps two."""
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VITCIFAR_CACHE_KEEP", "2")
    folders = [tmp_path / name for name in "abcd"]
    return [(folder, make_release(folder, release_id=folder.name)) for folder in folders]


def pull(release: tuple[Path, str]) -> Path:
    """Pull a release, a minute later than any before it."""
    folder = fetch(release[0].as_uri(), release[1]).folder
    assert folder is not None
    for other in folder.parent.iterdir():
        if other != folder:
            os.utime(other, (other.stat().st_atime - 60, other.stat().st_mtime - 60))
    return folder


def cached() -> set[Path]:
    return set((cache_dir() / "releases").iterdir())


def test_pulling_deletes_the_releases_that_were_not_used_for_longest(stored):
    a, b = pull(stored[0]), pull(stored[1])
    assert cached() == {a, b} and pull(stored[0]) == a
    c = pull(stored[2])
    assert cached() == {a, c}, "b was not used for longest"
    assert [release.path for release in cached_releases()] == [c, a]
    assert cached_releases()[0].num_bytes == sum(path.stat().st_size for path in c.rglob("*") if path.is_file())


def test_a_release_that_another_process_has_open_stays(stored):
    a = pull(stored[0])
    code = (
        "from pathlib import Path\nfrom vitcifar.release.cache import lock\n"
        f"held = lock(Path({str(a)!r}), shared=True)\nprint('locked', flush=True)\ninput()"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        b, c = pull(stored[1]), pull(stored[2])
        assert cached() == {a, b, c} and {release.path for release in cached_releases() if release.open} == {a}
        pull(stored[3])
        assert a in cached() and len(cached()) == 3
        process.communicate("\n", timeout=20)
    pull(stored[3])
    assert len(cached()) == 2 and a not in cached()


def test_a_closed_lock_holds_nothing(stored):
    with lock(pull(stored[0]), shared=True), lock(pull(stored[0]), shared=True), pytest.raises(BlockingIOError):
        lock(pull(stored[0]), shared=False)
    lock(pull(stored[0]), shared=False).close()


@pytest.mark.parametrize("keep", ["0", "all", "-1", ""])
def test_a_wrong_number_to_keep_is_one_sentence(stored, monkeypatch, keep):
    monkeypatch.setenv("VITCIFAR_CACHE_KEEP", keep)
    with pytest.raises(ReleaseError, match=f"VITCIFAR_CACHE_KEEP is '{keep}': set it to a whole number"):
        pull(stored[0])


def test_the_command_lists_the_cache_and_prunes_it(stored):
    pull(stored[0])
    b = pull(stored[1])
    listed = CliRunner().invoke(main, ["cache", "list"])
    assert [line.split()[0] for line in listed.output.splitlines()[1:3]] == [stored[1][1][:16], stored[0][1][:16]]
    assert "2 releases, " in listed.output and str(cache_dir()) in listed.output
    assert "0 releases, 0.0 MB, deleted" in CliRunner().invoke(main, ["cache", "prune"]).output
    pruned = CliRunner().invoke(main, ["cache", "prune", "--keep", "1"])
    assert stored[0][1][:16] in pruned.output and "1 releases" in pruned.output
    assert cached() == {b}
