"""What people say of predictions: right, or what the image really is; kept in a database, with the image if they agree.

An image is known by its pixels: what is kept is a PNG of them as the network got them, without the metadata of the
file that was sent, such as its place and time. SQLAlchemy is imported when a store is opened.
"""

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vitcifar.data.dataset import pixel_hash
from vitcifar.data.edge_cases import to_png
from vitcifar.errors import ServingError, reason_of
from vitcifar.serving.loaded_model import LoadedModel

MAX_ENTRIES = 100_000
MAX_IMAGE_BYTES = 2 * 2**30  # of all images together
BUSY_SECONDS = 30  # that a process waits for others which write to the same SQLite file
MAX_TEXT = 500  # characters of a class name
SUGGESTED = "suggested"  # the source of what is said of an image that was chosen because a version was uncertain
NONE = ""  # the truth of an image of no class, as it is stored: SQL does not compare NULL


class FeedbackRefused(ServingError):
    """Feedback that is not stored, and why, in a sentence for visitors; `status` is the one of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One person's verdict on one prediction. `truth` is the true class, None for none of the version's classes."""

    image_hash: str  # sha256 over shape and pixels
    model: str
    version: int | None
    release_digest: str
    label: str  # what was predicted
    probability: float
    truth: str | None
    source: str  # page, rest, suggested, or shadow: of a challenger's prediction, by who marked the champion's
    time: str = ""  # UTC, such as 2026-01-31T12:00:00Z
    has_image: bool = False

    @property
    def is_right(self) -> bool:
        return self.truth == self.label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Live:
    """The marked images of one version; `num_contradictory` were marked in several ways and count as neither."""

    version: int | None
    release_digest: str
    num_right: int
    num_wrong: int
    num_contradictory: int
    num_images: int  # that were kept

    @property
    def accuracy(self) -> float | None:
        marked = self.num_right + self.num_wrong
        return self.num_right / marked if marked else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy, which would hold for images that are marked at random."""
        from vitcifar.evaluation.calibration import wilson_interval  # imports SciPy

        return wilson_interval(self.num_right, self.num_right + self.num_wrong)


class FeedbackStore:
    """A table of entries and one of images in the database of a SQLAlchemy URL; made if they are missing.

    Several processes may write at the same time. Without `new`, a SQLite file must exist. Raises ServingError when the
    database cannot be used.
    """

    def __init__(self, url: str, *, new: bool = True) -> None:
        try:
            import sqlalchemy
        except ImportError:
            raise ServingError("Feedback needs the package sqlalchemy: type pip install sqlalchemy.") from None
        self.url = url
        self.watch: Callable[[LoadedModel, Entry, np.ndarray], None] | None = None  # is told of what is recorded
        with self._reaching():
            parsed = sqlalchemy.make_url(url)
            is_sqlite = parsed.get_backend_name() == "sqlite"
            if is_sqlite and not new and not Path(parsed.database or "").is_file():
                raise ServingError(f"There is no store of feedback {url}: type vitcifar app --feedback {url}.")
            options = {"connect_args": {"timeout": BUSY_SECONDS}} if is_sqlite else {"pool_pre_ping": True}
            self._engine = sqlalchemy.create_engine(parsed, **options)
            self._entries, self._images = _tables(sqlalchemy)
            with self._engine.begin() as connection:
                for table in (self._entries, self._images):
                    connection.execute(sqlalchemy.schema.CreateTable(table, if_not_exists=True))

    def add(self, entry: Entry, pixels: np.ndarray | None) -> bool:
        """Store an entry and, if there are any, the image's pixels uint8 (H, W, 3).

        Returns False for what is known already: an image has one entry for each release and truth. Raises
        FeedbackRefused when the store is full, ServingError when it cannot be used.
        """
        from sqlalchemy.exc import IntegrityError

        content = to_png(pixels) if pixels is not None else None
        with self._reaching():
            self._check_room(len(content or b""))
            for _ in range(3):  # another process may store the same between our look and our write
                with contextlib.suppress(IntegrityError), self._engine.begin() as connection:
                    return self._insert(connection, entry, content)
        return False

    def _insert(self, connection: Any, entry: Entry, content: bytes | None) -> bool:
        import sqlalchemy

        entries, images = self._entries.c, self._images.c
        same_image = sqlalchemy.select(images.image_hash).where(images.image_hash == entry.image_hash)
        if content and connection.execute(same_image).first() is None:
            values = {"image_hash": entry.image_hash, "content": content, "num_bytes": len(content)}
            connection.execute(self._images.insert().values(values))
        same_entry = sqlalchemy.select(entries.id).where(
            entries.image_hash == entry.image_hash,
            entries.release_digest == entry.release_digest,
            entries.truth == (entry.truth or NONE),
        )
        if connection.execute(same_entry).first() is not None:
            return False
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        values = dataclasses.asdict(entry) | {"truth": entry.truth or NONE, "time": now}
        del values["has_image"]
        connection.execute(self._entries.insert().values(values))
        return True

    def entries(self, model: str) -> list[Entry]:
        """The entries of a model, in order of time."""
        import sqlalchemy

        table, images = self._entries, self._images
        joined = table.outerjoin(images, table.c.image_hash == images.c.image_hash)
        query = sqlalchemy.select(table, images.c.num_bytes).select_from(joined).where(table.c.model == model)
        with self._reaching(), self._engine.connect() as connection:
            rows = connection.execute(query.order_by(table.c.id)).mappings().all()
        fields = [field.name for field in dataclasses.fields(Entry) if field.name not in ("truth", "has_image")]
        return [
            Entry(
                **{name: row[name] for name in fields},
                truth=row["truth"] or None,
                has_image=row["num_bytes"] is not None,
            )
            for row in rows
        ]

    def hashes(self, model: str) -> set[str]:
        """The hashes of the images of which somebody said something to any version of a model."""
        import sqlalchemy

        query = sqlalchemy.select(self._entries.c.image_hash).where(self._entries.c.model == model).distinct()
        with self._reaching(), self._engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def image(self, image_hash: str) -> bytes:
        """The PNG of an image that was kept."""
        import sqlalchemy

        query = sqlalchemy.select(self._images.c.content).where(self._images.c.image_hash == image_hash)
        with self._reaching(), self._engine.connect() as connection:
            return bytes(connection.execute(query).scalar_one())

    def _check_room(self, num_bytes: int) -> None:
        import sqlalchemy

        count = sqlalchemy.select(sqlalchemy.func.count()).select_from(self._entries)
        total = sqlalchemy.select(sqlalchemy.func.coalesce(sqlalchemy.func.sum(self._images.c.num_bytes), 0))
        with self._engine.connect() as connection:
            num_entries, used = connection.execute(count).scalar_one(), connection.execute(total).scalar_one()
        if num_entries >= MAX_ENTRIES or used + num_bytes > MAX_IMAGE_BYTES:
            raise FeedbackRefused("Nothing was stored, the store of feedback is full: tell those who run it.", 507)

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn the errors of the database, and of a URL that is none, into one sentence."""
        from sqlalchemy.exc import IntegrityError, SQLAlchemyError

        try:
            yield
        except IntegrityError:
            raise
        except ModuleNotFoundError as error:
            raise ServingError(f"The store of feedback needs the package {error.name}: install it with pip.") from None
        except (SQLAlchemyError, ValueError, TypeError) as error:
            reason = reason_of(getattr(error, "orig", None) or error)
            raise ServingError(
                f"The store of feedback {self.url} cannot be used ({reason}): type --feedback sqlite:///feedback.db, "
                "or another URL of SQLAlchemy."
            ) from error


def _tables(sqlalchemy: Any) -> tuple[Any, Any]:
    text, column, integer = sqlalchemy.String(MAX_TEXT), sqlalchemy.Column, sqlalchemy.Integer
    sha256, metadata = sqlalchemy.String(64), sqlalchemy.MetaData()
    entries = sqlalchemy.Table(
        "feedback",
        metadata,
        column("id", integer, primary_key=True),
        column("image_hash", sha256, nullable=False),
        column("model", text, nullable=False),
        column("version", integer),
        column("release_digest", sha256, nullable=False),
        column("label", text, nullable=False),
        column("probability", sqlalchemy.Double, nullable=False),
        column("truth", text, nullable=False),
        column("source", sqlalchemy.String(10), nullable=False),
        column("time", sqlalchemy.String(20), nullable=False),
        sqlalchemy.UniqueConstraint("image_hash", "release_digest", "truth"),
    )
    content = sqlalchemy.LargeBinary(2**24)  # MySQL's would end at 64 KiB
    images = sqlalchemy.Table(
        "feedback_image",
        metadata,
        column("image_hash", sha256, primary_key=True),
        column("num_bytes", integer, nullable=False),
        column("content", content, nullable=False),  # last: SQLite would read all of it to reach what follows
    )
    return entries, images


def record(
    store: FeedbackStore,
    model: LoadedModel,
    pixels: np.ndarray,
    *,
    right: bool | None,
    truth: str,
    keep_image: bool,
    source: str,
) -> tuple[Entry, bool]:
    """Predict an image, uint8 (H, W, 3), again and store what somebody says of it; also returns whether that is new.

    If it is not `right`, `truth` is the true class, "" for none of the classes; with None, the truth decides. What is
    said of a suggested image tells no monitor and no challenger: it is none that was sent to be classified. Raises
    FeedbackRefused, ServingError.
    """
    suggested = source == SUGGESTED
    prediction = model.classifier.predict_images([pixels], observed=not suggested)[0]
    right = truth == prediction.label if right is None else right
    if right and truth not in ("", prediction.label):
        raise FeedbackRefused(f"The prediction is {prediction.label!r}, so {truth[:100]!r} makes it wrong.", 422)
    if truth and truth not in model.class_names:
        raise FeedbackRefused(f"{truth[:100]!r} is no class of {model.name}: choose another, or none.", 422)
    if not right and truth == prediction.label:
        raise FeedbackRefused(f"The prediction is {truth!r}, as you say: mark it as right.", 422)
    entry = Entry(
        image_hash=pixel_hash(pixels),
        model=model.model_name,
        version=model.version,
        release_digest=model.digest,
        label=prediction.label,
        probability=prediction.probability,
        truth=prediction.label if right else truth or None,
        source=source,
    )
    is_new = store.add(entry, pixels if keep_image else None)
    if store.watch and not suggested:
        store.watch(model, entry, pixels)
    return entry, is_new


def live_accuracies(entries: Iterable[Entry]) -> list[Live]:
    """What was marked of each version, the newest version first, without suggested images: it was uncertain of them."""
    by_release: dict[tuple[int | None, str], dict[str, list[Entry]]] = {}
    for entry in entries:
        if entry.source == SUGGESTED:
            continue
        images = by_release.setdefault((entry.version, entry.release_digest), {})
        images.setdefault(entry.image_hash, []).append(entry)
    lives = []
    for (version, digest), images in by_release.items():
        verdicts = [{entry.truth for entry in marks} for marks in images.values()]
        single = [marks[0].is_right for marks in images.values() if len({entry.truth for entry in marks}) == 1]
        live = Live(
            version=version,
            release_digest=digest,
            num_right=sum(single),
            num_wrong=len(single) - sum(single),
            num_contradictory=sum(len(truths) > 1 for truths in verdicts),
            num_images=sum(marks[0].has_image for marks in images.values()),
        )
        lives.append(live)
    return sorted(lives, key=lambda live: (live.version or 0, live.release_digest), reverse=True)
