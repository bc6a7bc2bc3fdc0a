"""The audit of a dataset as sections of a report and as a table, and as one section in the report of a run."""

import csv
import io

from vitcifar.data.contact_sheet import Tile
from vitcifar.data.quality import QUALITY_CHECKS
from vitcifar.evaluation.audit import IDENTICAL, LABEL_ERROR, NEAR, Audit, Issue
from vitcifar.report.html import Finding, Number, Section, Table

COLUMNS = ("file", "split", "class", "kind", "score", "suggestion")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes a cell that starts with one of these
MAX_SHOWN = 48  # images of a kind
MAX_CLASSES = 100  # rows of the table of classes
PAIRS = (IDENTICAL, NEAR)
WORST, MAX_WORST = 3, 18  # images of a kind, and of all, in the report of a run

TITLES = {LABEL_ERROR: "Likely label errors", IDENTICAL: "Identical images", NEAR: "Near-duplicates"}
TEXTS = {
    LABEL_ERROR: "Images whose class the predictions contradict, the least probable label first. Only a person can say "
    "which of them are errors.",
    IDENTICAL: "Each image beside its identical twin, first those in two splits and those of two classes.",
    NEAR: "Each image beside the most similar one, first those in two splits and those of two classes.",
}


def audit_csv(audit: Audit) -> str:
    """One row per image and issue. An apostrophe precedes a text that a spreadsheet would take for a formula."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for issue in audit.issues:
        cells = (issue.id, issue.split, issue.label, issue.kind, f"{issue.score:.4f}", issue.suggestion)
        writer.writerow([f"'{cell}" if cell.startswith(FORMULA) else cell for cell in cells])
    return text.getvalue()


def audit_sections(audit: Audit) -> list[Section]:
    """A summary, the classes, and one section for each kind of issue that was found."""
    summary = Section(title="Summary", findings=_findings(audit), numbers=_numbers(audit))
    return [summary, _classes(audit), *(_kind_section(audit, kind) for kind in audit.counts())]


def data_section(audit: Audit) -> Section:
    """The audit of a run's images in short: how many of each kind, and the worst of them."""
    worst = [issue for kind in audit.counts() for issue in audit.of_kind(kind)[:WORST]][:MAX_WORST]
    return Section(
        title="Data",
        text="Labels are compared with this model's predictions for the images that it did not learn from, those of "
        "validation and test. Labels of train and near-duplicates within a split are left out here: vitcifar data "
        "audit looks for them.",
        findings=_findings(audit),
        numbers=_numbers(audit),
        tiles=[_tile(audit, issue, title=issue.kind, note=f"{issue.label}: {issue.detail}") for issue in worst],
    )


def _findings(audit: Audit) -> list[Finding]:
    nothing = [] if audit.issues else [Finding(text="No image or label stands out.", tone="good")]
    return [*nothing, *(Finding(text=note) for note in audit.notes)]


def _numbers(audit: Audit) -> list[Number]:
    splits = ", ".join(f"{len(dataset):,} {split}" for split, dataset in audit.datasets.items())
    numbers = [Number(name="Images", value=f"{audit.num_images:,}", note=splits)]
    if audit.num_judged:
        note = f"of the predictions that {audit.num_judged:,} labels are compared with"
        numbers.append(Number(name="Accuracy", value=f"{audit.accuracy:.1%}", note=note))
    for kind, count in audit.counts().items():
        numbers.append(Number(name=TITLES.get(kind, kind.capitalize()), value=f"{count:,}", note="images"))
    return numbers


def _classes(audit: Audit) -> Section:
    """How many images each class has in each split, the classes with the fewest first if there are many."""
    counts = {split: dataset.counts() for split, dataset in audit.datasets.items()}
    names, ranges = list(next(iter(counts.values()))), []
    for split, count in counts.items():
        fewest, most = min(count.values()), max(count.values())
        ranges.append(f"{split} {fewest:,}" if fewest == most else f"{split} {fewest:,} to {most:,}")
    shown = sorted(names, key=lambda name: sum(count[name] for count in counts.values()))[:MAX_CLASSES]
    note = f"The {MAX_CLASSES} of {len(names):,} classes with the fewest images." if len(names) > MAX_CLASSES else ""
    rows = [[name, *(f"{count[name]:,}" for count in counts.values())] for name in (shown if note else names)]
    table = Table(
        title="Images by class and split",
        note=note,
        header=["Class", *counts],
        rows=rows,
        numeric=[*range(1, 1 + len(counts))],
    )
    return Section(title="Class balance", text=f"Images of each class: {', '.join(ranges)}.", tables=[table])


def _kind_section(audit: Audit, kind: str) -> Section:
    issues = audit.of_kind(kind)
    text = TEXTS.get(kind) or _advice(kind)
    if len(issues) > MAX_SHOWN:
        text += f" The first {MAX_SHOWN} of {len(issues):,} are shown; the table has all."
    tiles, shown = [], set()
    for issue in issues[:MAX_SHOWN]:
        place = (issue.split, issue.index)
        if frozenset((place, issue.other)) in shown:
            continue  # the same pair the other way round
        shown.add(frozenset((place, issue.other)))
        tiles.append(_tile(audit, issue, title=issue.label, note=issue.detail))
        if issue.other:
            split, index = issue.other
            dataset = audit.datasets[split]
            name, id = dataset.class_names[dataset.labels[index]], dataset.ids[index]
            tiles.append(Tile(image=dataset.images[index], title=name, note=split, id=id))
    return Section(title=TITLES.get(kind, kind.capitalize()), text=text, tiles=tiles, columns=4 if kind in PAIRS else 0)


def _advice(kind: str) -> str:
    check = QUALITY_CHECKS[kind]
    return f"{check.advice[0].upper()}{check.advice[1:]}. Scores below {check.limit:g}, the lowest first."


def _tile(audit: Audit, issue: Issue, *, title: str, note: str) -> Tile:
    image = audit.datasets[issue.split].images[issue.index]
    return Tile(image=image, title=title, note=f"{note}, {issue.split}", id=issue.id, tone="bad")
