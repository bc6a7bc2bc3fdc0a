"""Predictions for many files, one after the other; a file that cannot be classified does not stop the others."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vitcifar.errors import ImageError
from vitcifar.serving.loaded_model import LoadedModel


def predict_files(model: LoadedModel, paths: Iterable[Path | str]) -> Iterator[dict[str, Any]]:
    """Classify files in order; each row is yielded as soon as it is ready.

    A row has `path` and the keys of `Prediction.to_dict`, or `path` and `error`, one sentence that names the file.
    """
    for path in paths:
        name = str(path) if str(path).isprintable() else repr(str(path))
        try:
            prediction = model.classifier.predict(Path(path), name)
        except ImageError as error:
            yield {"path": name, "error": str(error)}
        else:
            yield {"path": name, **prediction.to_dict(model.model_name, model.version)}


class PredictionTable:
    """Rows as lines of text under one heading; the widths are known in advance, so lines can be streamed."""

    def __init__(self, model: LoadedModel, paths: Sequence[Path | str]) -> None:
        self.path_width = max(len(str(path)) for path in ("file", *paths))
        self.label_width = max(len(name) for name in ("label", *model.class_names))

    def heading(self) -> str:
        return f"{'file':<{self.path_width}}  {'label':<{self.label_width}}  probability  version  milliseconds"

    def line(self, row: dict[str, Any]) -> str:
        """The line of one row, or its error."""
        if "error" in row:
            return str(row["error"])
        version = "-" if row["version"] is None else row["version"]
        return (
            f"{row['path']:<{self.path_width}}  {row['label']:<{self.label_width}}  "
            f"{row['probabilities'][row['label']]:>11.3f}  {version:>7}  {row['timing']['total_ms']:>12.1f}"
        )
