"""The tab Batch: many images in; a sortable table with a thumbnail and a prediction for each, also as CSV."""

import csv
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from vitcifar.serving import tables
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page.html import percent
from vitcifar.serving.page.images import Decoded, Part, build_images, build_skeleton, decode, describe, error_row, row
from vitcifar.serving.score import predict_row
from vitcifar.serving.tables import Row, csv_row

if TYPE_CHECKING:
    import gradio

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes a cell that starts with one of these
COLUMNS = (("label", "Label"), ("probability", "Probability"), ("confident", "Confident"))


def build_batch(pool: ModelPool, version: "gradio.HTML", max_bytes: int) -> None:
    """The tab. The version that is selected when the first image is classified answers all of them."""

    def answer(part: Part, specs: Sequence[str]) -> dict[str, Any]:
        return answer_batch(pool, part, specs[0])

    skeleton = build_skeleton(
        COLUMNS,
        action="Classify",
        name="Predictions",
        below="A row for each image appears here while they are classified.",
        csv="predictions.csv",
        max_bytes=max_bytes,
    )
    build_images(pool, answer, [version], skeleton=skeleton, elem_id="batch", max_bytes=max_bytes)


def answer_batch(pool: ModelPool, part: Part, spec: str) -> dict[str, Any]:
    """The rows of a part, for the table and for its CSV. Raises VitCifarError."""
    model = pool.get(spec)
    rows = []
    for number, image in enumerate(decode(part), part.start + 1):
        scored = predict_row(model, (image.name, b""), read=image.read)
        rows.append({"row": table_row(number, image, scored, model), "line": csv_line(csv_row(scored))})
    return {
        "rows": rows,
        "head": csv_line(dict(zip(tables.COLUMNS, tables.COLUMNS, strict=True))),
        "versions": [str(model.version)],
        "caption": f"Predicted by {describe(model, pool.state)}",
    }


def table_row(number: int, image: Decoded, scored: Row, model: LoadedModel) -> str:
    """The row of the page for a row of `vitcifar score`."""
    if scored["error"] is not None:
        return error_row(number, image, len(COLUMNS))
    confident = {None: "–", True: "yes", False: "no"}[scored["confident"]]
    label, probability = scored["label"], scored["probability"]
    cells = f'<td>{escape(label)}</td><td class="number">{percent(probability)}</td><td>{confident}</td>'
    return row(number, image, cells, label=label, probability=f"{probability:.9f}", confident=confident)


def csv_line(cells: Row) -> str:
    """One line of CSV. A text that a spreadsheet would take for a formula is preceded by an apostrophe."""
    text = io.StringIO()
    safe = {name: f"'{cell}" if str(cell).startswith(FORMULA) else cell for name, cell in cells.items()}
    csv.DictWriter(text, tables.COLUMNS).writerow(safe)
    return text.getvalue()
