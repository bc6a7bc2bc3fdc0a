"""The model card of a version: Markdown made of what was recorded and checked, by card.md.j2."""

from pathlib import Path
from typing import Any

from jinja2 import Environment

from vitcifar.registry.benchmark import read_tables
from vitcifar.registry.gates import read_evaluation, read_verdicts
from vitcifar.registry.version import Version
from vitcifar.release.manifest import Manifest, served_evaluation

TEMPLATE = Path(__file__).with_name("card.md.j2")
CONFIG = (
    *("arch", "weights", "train_layers", "epochs", "batch_size", "optimizer", "learning_rate", "schedule"),
    *("weight_decay", "augmentation", "seed"),
)
SCORES = ("top2_accuracy", "top3_accuracy", "f1_macro", "loss", "ece", "brier")
PACKAGES = ("torch", "torchvision", "onnxruntime")


def model_card(version: Version, release: Manifest) -> str:
    """The card of a version and its release in Markdown."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, finalize=one_line)  # Markdown: no HTML escapes
    evaluation, packages = served_evaluation(release), release.environment.get("packages", {})
    complete = read_evaluation(release)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        version=version,
        release=release,
        splits=[describe_split(name, counts) for name, counts in release.counts.items()],
        accuracy=complete.accuracy_text() if complete else evaluation.get("accuracy"),
        scores={name: evaluation[name] for name in SCORES if name in evaluation},
        classes=evaluation.get("classes", ()),
        config={name: release.config[name] for name in CONFIG if name in release.config},
        packages={name: packages[name] for name in PACKAGES if name in packages},
        checks={"int8": {}, **release.checks},
        tables=list(read_tables(version).values()),
        verdicts=read_verdicts(version),
    )


def one_line(value: Any) -> str:
    """A value of the template on one line, its `|` escaped: a class name or a reason cannot break a table or a list."""
    return " ".join(str(value).split()).replace("|", "\\|")


def describe_split(name: str, counts: dict[str, int]) -> dict[str, Any]:
    """The size of a split, and the images of each class: a number, or the smallest and the largest."""
    low, high = min(counts.values()), max(counts.values())
    per_class = str(low) if low == high else f"{low} to {high}"
    return {"name": name, "num_images": sum(counts.values()), "per_class": per_class, "num_classes": len(counts)}
