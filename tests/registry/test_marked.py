"""The gate of marked images: what only one of two versions predicts correctly, recorded with the promotion."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vitcifar.errors import ConfigError, GateError, RegistryError
from vitcifar.registry.approvals import set_policy
from vitcifar.registry.marked import check_marked, pair, read_marked
from vitcifar.registry.policy import Policy
from vitcifar.serving.feedback import Entry, FeedbackStore

OLD, NEW = "0" * 64, "1" * 64


def entry(image: int, digest: str, label: str, truth: str | None) -> Entry:
    return Entry(
        image_hash=f"{image:064}",
        model="toy",
        version=int(digest[0], 16) + 1,
        release_digest=digest,
        label=label,
        probability=0.5,
        truth=truth,
        source="rest",
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Eight marked images that only the old version predicts correctly, one that only the new one, one that both do."""
    store = FeedbackStore(f"sqlite:///{tmp_path}/feedback.db")
    for image in range(10):
        old, new = ("cat", "dog") if image < 8 else ("dog", "cat") if image == 8 else ("cat", "cat")
        store.add(entry(image, OLD, old, "cat"), None)
        store.add(entry(image, NEW, new, "cat"), None)
    store.add(entry(20, OLD, "cat", "cat"), None)  # the new one has not seen it
    return store.url


def check(url: str, *, version: str = NEW, holder: str | None = OLD) -> Any:
    registry: Any = SimpleNamespace(digest_of=lambda one: one.digest)
    versions: list[Any] = [SimpleNamespace(number=1, digest=digest) if digest else None for digest in (version, holder)]
    return check_marked(registry, *versions, Policy(feedback=url))


def test_a_version_that_is_worse_on_marked_images_fails(url):
    gate = check(url)
    assert gate.state == "FAILED" and gate.value == -0.7
    assert "worse than version 1 on 10 marked images: 1 that only this one, 8 that only the other" in gate.message
    assert "McNemar p = 0.02" in gate.message


def test_the_other_way_round_it_passes_and_proves_nothing(url):
    gate = check(url, version=OLD, holder=NEW)
    assert gate.state == "passed" and "not shown to be worse" in gate.message


def test_without_a_store_an_alias_or_images_it_is_not_required(url):
    assert check("none").state == check(url, holder=None).state == "not required"
    gate = check(url, holder="2" * 64)
    assert gate.state == "not required" and "no marked image was predicted by both" in gate.message


def test_images_that_are_marked_in_two_ways_or_as_none_of_the_classes_say_nothing():
    rows = [("a", OLD, "cat", "cat"), ("a", NEW, "dog", "cat"), ("a", NEW, "dog", "dog")]
    assert pair(rows, NEW, OLD).num_images == 0
    marked = pair([("b", OLD, "cat", ""), ("b", NEW, "dog", "")], NEW, OLD)
    assert (marked.num_images, marked.gained, marked.lost) == (1, 0, 0)


@pytest.mark.parametrize(
    "wrong", ["sqlite:////nowhere/feedback.db", "no url", "unknown://x/y", "sqlite:///{}/other.db"]
)
def test_a_store_that_cannot_be_read_is_one_sentence_and_is_not_made(tmp_path, wrong):
    (tmp_path / "other.db").write_bytes(b"")
    with pytest.raises(RegistryError, match="cannot be read"):
        read_marked(wrong.format(tmp_path), NEW, OLD)
    assert (tmp_path / "other.db").read_bytes() == b""


def test_a_policy_with_a_store_is_stricter_wherever_it_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    required = Policy(feedback=f"sqlite:///{tmp_path}/feedback.db")
    assert Policy(feedback="sqlite:///feedback.db") == required
    assert (
        Policy().looser_than(required) == Policy(feedback="sqlite:///other.db").looser_than(required) == ("feedback",)
    )
    assert required.looser_than(Policy()) == ()


def test_a_login_is_not_recorded_in_a_policy():
    registry: Any = SimpleNamespace()
    with pytest.raises(ConfigError, match=r"postgresql://\*\*\*@host/feedback is not recorded"):
        set_policy(registry, "", feedback="postgresql://ann:secret@host/feedback")


def test_the_gate_is_recorded_with_the_promotion(registry, tmp_path):
    store = FeedbackStore(f"sqlite:///{tmp_path}/feedback.db")
    versions = {number: registry.show(number) for number in (1, 2)}
    for image in range(6):
        for number, label in ((1, "0"), (2, "1")):
            store.add(entry(image, str(registry.digest_of(versions[number])), label, "0"), None)
    with pytest.raises(GateError) as error:
        registry.promote(2, feedback=store.url)
    gate = next(gate for gate in error.value.gates if gate.name == "feedback")
    assert gate.state == "FAILED" and "0 that only this one, 6 that only the other" in gate.message
    recorded = [json.loads(v) for k, v in registry.show(2).tags.items() if k.startswith("gates/champion/")]
    assert any(one == gate.to_dict() for verdict in recorded for one in verdict["gates"])
