"""Many files, one after the other: each gets an answer or the sentence that says why not, and the rest goes on."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vitcifar.errors import ImageError
from vitcifar.inference.session import Prediction
from vitcifar.serving.loaded_model import LoadedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilePrediction:
    """What came of one file: an answer, or an error in one sentence."""

    path: str
    model_name: str
    version: int | None
    answer: Prediction | None = None
    error: str = ""

    def row(self) -> dict[str, Any]:
        """The fields of this file's line of JSON."""
        if self.answer is None:
            return {"path": self.path, "error": self.error}
        return {
            "path": self.path,
            "label": self.answer.label,
            "probabilities": self.answer.probabilities,
            "model": self.model_name,
            "version": self.version,
            "timing": dataclasses.asdict(self.answer.timing),
        }

    def to_json(self) -> str:
        """This file's line of JSON."""
        return json.dumps(self.row(), ensure_ascii=False)


def predict_files(opened: LoadedModel, paths: Iterable[Path | str]) -> Iterator[FilePrediction]:
    """Answer the files in order, each as soon as it is ready."""
    for path in paths:
        shown = str(path) if str(path).isprintable() else repr(str(path))
        who: dict[str, Any] = {"path": shown, "model_name": opened.model_name, "version": opened.version}
        try:
            yield FilePrediction(**who, answer=opened.classifier.predict(Path(path), shown))
        except ImageError as error:
            yield FilePrediction(**who, error=str(error))


class Table:
    """Lines of text under one heading, wide enough from the start, so that they can be printed one by one."""

    def __init__(self, opened: LoadedModel, paths: Sequence[Path | str]) -> None:
        self.path_width = max([len("file"), *(len(str(path)) for path in paths)])
        self.label_width = max(len(name) for name in ("label", *opened.classifier.class_names))

    def heading(self) -> str:
        return f"{'file':<{self.path_width}}  {'label':<{self.label_width}}  probability  version  milliseconds"

    def line(self, prediction: FilePrediction) -> str:
        """One file's line; that of an error names the file by itself."""
        if prediction.answer is None:
            return prediction.error
        answer, version = prediction.answer, "-" if prediction.version is None else prediction.version
        return (
            f"{prediction.path:<{self.path_width}}  {answer.label:<{self.label_width}}  "
            f"{answer.probability:>11.3f}  {version:>7}  {answer.timing.total_ms:>12.1f}"
        )
