"""Images in a store of feedback that two versions have predicted: what only one of them got right.

The store is written by the server (serving/feedback.py), the challenger's predictions by its shadow.
"""

import dataclasses
from pathlib import Path
from typing import Any

from vitcifar.errors import RegistryError, reason_of, redact
from vitcifar.evaluation.compare import mcnemar
from vitcifar.registry.policy import Gate, Policy
from vitcifar.registry.registry import Registry, Version

SIGNIFICANCE = 0.05  # of the test that rejects a version


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marked:
    """How many marked images two versions have both predicted, and on how many exactly one is right."""

    num_images: int
    gained: int  # only the first is right
    lost: int  # only the second


def check_marked(registry: Registry, version: Version, holder: Version | None, policy: Policy) -> Gate:
    """The gate: McNemar's test on the marked images that a version and the other holder of the alias have predicted.

    People mark what they see, the predictions of the version that serves, and mistakes above all: that favours the
    other version. So the gate can reject one, and proves none better.
    """
    if policy.feedback == "none" or holder is None:
        why = "no store set" if policy.feedback == "none" else "the alias points to no other version"
        return Gate(name="feedback", passed=True, required=False, message=why)
    marked = read_marked(policy.feedback, registry.digest_of(version), registry.digest_of(holder))
    if not marked.num_images:
        message = f"no marked image was predicted by both it and version {holder.number}"
        return Gate(name="feedback", passed=True, required=False, message=message)
    p_value = mcnemar(marked.gained, marked.lost)
    worse = marked.lost > marked.gained and p_value <= SIGNIFICANCE
    message = (
        f"{'worse' if worse else 'not shown to be worse'} than version {holder.number} on {marked.num_images:,} marked "
        f"images: {marked.gained} that only this one, {marked.lost} that only the other predicts correctly "
        f"(McNemar p = {p_value:.2g})"
    )
    value = (marked.gained - marked.lost) / marked.num_images
    return Gate(name="feedback", passed=not worse, message=message, value=value)


def read_marked(url: str, digest: str, other_digest: str) -> Marked:
    """Pair the predictions of two releases on the images whose truth everybody agrees on. Raises RegistryError."""
    try:
        import sqlalchemy
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        raise RegistryError("Feedback needs the package sqlalchemy: type pip install sqlalchemy.") from None
    names = ("image_hash", "release_digest", "label", "truth")
    table: Any = sqlalchemy.table("feedback", *map(sqlalchemy.column, names))
    query = sqlalchemy.select(table).where(table.c.release_digest.in_([digest, other_digest]))
    try:
        parsed = sqlalchemy.make_url(url)
        if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
            raise ValueError("there is no such file")  # SQLite would make an empty one
        engine = sqlalchemy.create_engine(parsed)
        with engine.connect() as connection:
            rows = connection.execute(query).all()
        engine.dispose()
    except (SQLAlchemyError, ValueError, TypeError, ModuleNotFoundError) as error:
        reason = reason_of(getattr(error, "orig", None) or error)
        raise RegistryError(
            f"The store of feedback {redact(url)} cannot be read ({reason}): name it with --feedback, as vitcifar app."
        ) from error
    return pair([tuple(row) for row in rows], digest, other_digest)


def pair(rows: list[tuple[str, str, str, str]], digest: str, other_digest: str) -> Marked:
    """Count the images in rows of (image, release, label, truth) that both releases have predicted."""
    truths: dict[str, set[str]] = {}
    labels: dict[str, dict[str, str]] = {}
    for image, release, label, truth in rows:
        truths.setdefault(image, set()).add(truth)
        labels.setdefault(image, {})[release] = label
    right = [
        tuple(labels[image][release] == next(iter(truths[image])) for release in (digest, other_digest))
        for image in labels
        if len(truths[image]) == 1 and len(labels[image]) == 2
    ]
    return Marked(
        num_images=len(right),
        gained=sum(one and not other for one, other in right),
        lost=sum(other and not one for one, other in right),
    )
