"""What an examination found, as numbers, as JSON and as figures."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vitcifar.data.pictures import Pictures
from vitcifar.evaluation import charts, galleries
from vitcifar.evaluation.figures import risk_coverage_curve
from vitcifar.evaluation.neighbours import Duplicate, Nearest
from vitcifar.evaluation.outliers import OutlierScore
from vitcifar.evaluation.robustness import Robustness
from vitcifar.evaluation.scores import Evaluation
from vitcifar.evaluation.selective import Threshold
from vitcifar.evaluation.slices import Slice


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Examination:
    """What was found; None = not looked at. Maps of attention are by the place of the picture in the test split."""

    threshold: Threshold | None = None
    slices: tuple[Slice, ...] = ()
    duplicates: tuple[Duplicate, ...] | None = None
    attention: Mapping[int, np.ndarray] | None = None
    nearest: Nearest | None = None
    robustness: Robustness | None = None
    outliers: tuple[OutlierScore, ...] = ()
    outlier_source: str = "none"

    def scalars(self) -> dict[str, float]:
        """Every number by its flat name."""
        flat: dict[str, float] = {}
        if self.threshold:
            flat |= {"coverage": self.threshold.coverage, "precision": self.threshold.precision}
        flat |= {f"slice/{slice.property}/{slice.name}": slice.accuracy for slice in self.slices}
        if self.duplicates is not None:
            flat["duplicates"] = float(len(self.duplicates))
            flat["duplicates_same_pixels"] = float(sum(pair.same_pixels for pair in self.duplicates))
        if self.robustness:
            flat |= self.robustness.scalars()
        return flat | {f"outliers/{score.name}_auroc": score.auroc for score in self.outliers}

    def to_dict(self, pictures: Pictures) -> dict[str, Any]:
        """All of it as JSON's own types, pictures by their ids."""
        nearest = None
        if self.nearest:
            ids = self.nearest.train.ids
            rows = zip(self.nearest.places, self.nearest.indices, self.nearest.cosines, strict=True)
            nearest = {
                pictures.ids[place]: {ids[index]: float(cosine) for index, cosine in zip(row, cosines, strict=True)}
                for place, row, cosines in rows
            }
        maps = {pictures.ids[place]: patches.tolist() for place, patches in (self.attention or {}).items()}
        bulky = ("inside", "outside")
        return {
            "threshold": self.threshold and dataclasses.asdict(self.threshold),
            "slices": [dataclasses.asdict(slice) for slice in self.slices],
            "duplicates": self.duplicates and [dataclasses.asdict(pair) for pair in self.duplicates],
            "attention": maps or None,
            "nearest_training": nearest,
            "robustness": self.robustness and self.robustness.to_dict(),
            "outliers": [
                {name: value for name, value in dataclasses.asdict(score).items() if name not in bulky}
                for score in self.outliers
            ],
            "outlier_source": self.outlier_source,
        }

    def figures(self, evaluation: Evaluation, pictures: Pictures, probabilities: np.ndarray) -> dict[str, Figure]:
        """A figure of each thing that was looked at, by its name."""
        made = {}
        if self.threshold:
            made["threshold"] = risk_coverage_curve(evaluation, self.threshold)
        if self.slices:
            made["slices"] = charts.slice_chart(self.slices, evaluation.accuracy)
        if self.attention:
            places, maps = np.array([*self.attention]), np.stack([*self.attention.values()])
            made["attention"] = galleries.attention_gallery(pictures, probabilities, maps, places)
        if self.nearest:
            made["nearest"] = galleries.nearest_gallery(pictures, self.nearest)
        if self.robustness:
            made["robustness"] = charts.robustness_heatmap(self.robustness)
        if self.outliers:
            made["outliers"] = charts.outlier_chart(self.outliers)
        return made
