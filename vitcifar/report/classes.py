"""The classes in a report: confusion matrix, most confused pairs and scores, readable for 2 classes and for 1,000.

Class names are HTML and not part of a figure, so that a browser draws every script. K classes: confusion (K, K).
"""

import numpy as np

from vitcifar.evaluation.metrics import ClassScore, Evaluation
from vitcifar.report.html import Heat, HeatMap, Raster, Section, Table
from vitcifar.report.style import GREEN, RED

MAX_PAIRS = 12  # of confused classes
MAX_ROWS = 40  # of classes, in a table and in a confusion matrix of cells
MAX_COUNTS = 15  # classes of a confusion matrix whose cells show their counts
MAX_SIDE = 250  # pixels of a confusion matrix of more classes than MAX_ROWS
UNDEFINED = "undefined"  # 0 / 0


def class_section(evaluation: Evaluation) -> Section:
    """Confusion matrix, the most confused pairs of classes, and the scores of every class, or of the weakest."""
    few = len(evaluation.class_names) <= MAX_ROWS
    pairs = Table(
        title="Most confused classes",
        header=["True class", "Prediction", "Images", "Share"],
        rows=[[p.label, p.prediction, f"{p.count:,}", p.share] for p in evaluation.confused[:MAX_PAIRS]],
        numeric=[2, 3],
    )
    return Section(
        title="Classes",
        heat_maps=[confusion_map(evaluation)] if few else [],
        raster=None if few else confusion_raster(evaluation),
        tables=[pairs, class_table(evaluation)] if pairs.rows else [class_table(evaluation)],
    )


def class_table(evaluation: Evaluation) -> Table:
    """Precision, recall and F1 of each class, or of those with the lowest recall."""
    predicted = evaluation.confusion.sum(axis=0).tolist()
    rows, note = list(zip(evaluation.classes, predicted, strict=True)), ""
    if len(rows) > MAX_ROWS:
        note = f"The {MAX_ROWS} of {len(rows):,} classes with the lowest recall; evaluation/test.json has all."
        rows = sorted(rows, key=lambda row: (row[0].recall, row[0].f1))[:MAX_ROWS]
    return Table(
        title="Scores by class",
        note=note,
        header=["Class", "Images", "Recall", "Recall, 95% interval", "Precision", "F1"],
        rows=[class_row(score, count) for score, count in rows],
        numeric=[1, 2, 3, 4, 5],
    )


def class_row(score: ClassScore, num_predicted: int) -> list[str | float]:
    """One row of the table; a share of nothing is undefined, not 0."""
    interval = f"{score.recall_low:.1%} to {score.recall_high:.1%}"
    return [
        score.name,
        f"{score.support:,}",
        score.recall if score.support else UNDEFINED,
        interval if score.support else UNDEFINED,
        score.precision if num_predicted else UNDEFINED,
        f"{score.f1:.3f}" if score.support or num_predicted else UNDEFINED,
    ]


def confusion_map(evaluation: Evaluation) -> HeatMap:
    """The confusion matrix of at most MAX_ROWS classes; of many, without counts in its cells."""
    confusion, names = evaluation.confusion, evaluation.class_names
    totals, counts = confusion.sum(axis=1), len(names) <= MAX_COUNTS

    def cell(row: int, column: int) -> Heat | None:
        count = int(confusion[row, column])
        if not count:
            return None
        part = count / totals[row]
        hint = f"{names[row]} predicted as {names[column]}: {count:,} of {totals[row]:,}"
        # The scale of errors rises as the square root, so that even one of them is visible.
        strength = part if row == column else part**0.5
        return Heat(
            strength=strength, tone="good" if row == column else "bad", text=f"{count:,}" if counts else "", hint=hint
        )

    return HeatMap(
        title="Confusion matrix",
        note="Green: right, orange: wrong; the stronger, the larger the share of the true class.",
        rows=names,
        columns=names,
        row_title="True class",
        column_title="Predicted class",
        cells=[[cell(row, column) for column in range(len(names))] for row in range(len(names))],
        upright=not counts or max(map(len, names)) > 4,
    )


def confusion_raster(evaluation: Evaluation) -> Raster:
    """The confusion matrix of many classes as pixels, each the largest share in a block of classes."""
    totals = np.maximum(evaluation.confusion.sum(axis=1, keepdims=True), 1)
    shares = evaluation.confusion / totals  # (K, K)
    block = -(-len(shares) // MAX_SIDE)
    right, wrong = np.diag(np.diag(shares)), shares - np.diag(np.diag(shares))
    pixels = np.zeros((*reduce(right, block).shape, 4), np.uint8)
    for colour, strength in ((RED, reduce(wrong, block) ** 0.5), (GREEN, reduce(right, block))):
        pixels[strength > 0, :3] = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        pixels[strength > 0, 3] = np.round(255 * (0.15 + 0.85 * strength[strength > 0]))
    names, size = evaluation.class_names, f"{block} × {block} classes" if block > 1 else "one cell"
    return Raster(
        title="Confusion matrix",
        note=f"Rows: true classes from {names[0]} to {names[-1]}; columns: predictions. A square is {size}. Green: "
        "right, orange: wrong; the stronger, the larger the share of the true class.",
        alt=f"Confusion matrix of {len(names):,} classes: {int(evaluation.correct.sum()):,} of "
        f"{evaluation.num_images:,} images on the diagonal. The most confused pairs follow as a table.",
        pixels=pixels,
    )


def reduce(matrix: np.ndarray, block: int) -> np.ndarray:
    """The largest value in each block of a square matrix (K, K) -> (ceil(K / block), ceil(K / block))."""
    starts = np.arange(0, len(matrix), block)
    return np.asarray(np.maximum.reduceat(np.maximum.reduceat(matrix, starts, axis=0), starts, axis=1))
