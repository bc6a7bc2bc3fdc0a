"""The parts of a report that show pictures: mistakes, what the network looked at, what it found alike."""

from collections.abc import Mapping, Sequence

import numpy as np

from vitcifar.data.pictures import Pictures
from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.galleries import highlight, most_confident_mistakes
from vitcifar.evaluation.neighbours import Duplicate, Nearest
from vitcifar.evaluation.report import Section, Table, Tile
from vitcifar.evaluation.scores import Evaluation


def mistakes_section(evaluation: Evaluation, pictures: Pictures, probabilities: np.ndarray, limit: int = 24) -> Section:
    """The wrong answers that the classifier was surest of."""
    places = most_confident_mistakes(pictures.labels, probabilities, limit)
    wrong = evaluation.num_pictures - int(evaluation.correct.sum())
    text = f"{len(places)} of {wrong} wrong answers, the surest first: look here for wrong labels too."
    return Section(
        title="Most confident mistakes",
        text=text if wrong else "No picture was answered wrongly.",
        tiles=[answer_tile(pictures, probabilities, int(place)) for place in places],
    )


def lost_section(pictures: Pictures, probabilities: np.ndarray, comparison: Comparison, limit: int = 24) -> Section:
    """Pictures that this classifier gets wrong and the other one got right."""
    places = sorted(comparison.lost, key=lambda place: -float(probabilities[place].max()))[:limit]
    return Section(
        title="Lost to the other version",
        text=f"{len(places)} of {len(comparison.lost)} pictures that only the other version answered rightly.",
        tiles=[answer_tile(pictures, probabilities, place) for place in places],
    )


def attention_section(pictures: Pictures, probabilities: np.ndarray, maps: Mapping[int, np.ndarray]) -> Section:
    """What right and wrong answers were made from."""
    tiles = []
    for place, patches in maps.items():
        tile = answer_tile(pictures, probabilities, place)
        tiles += [
            tile,
            Tile(image=highlight(tile.image, patches), title="attention", tone="plain"),
        ]
    return Section(
        title="Where the network looked",
        text="Attention rollout: how much of the answer came from each patch, through all layers. Bright counts most.",
        tiles=tiles,
        columns=6,
    )


def neighbour_section(pictures: Pictures, probabilities: np.ndarray, nearest: Nearest) -> Section:
    """Mistakes with the training pictures that look most alike to the network."""
    train, tiles = nearest.train, []
    for place, indices, cosines in zip(nearest.places, nearest.indices, nearest.cosines, strict=True):
        tiles.append(answer_tile(pictures, probabilities, int(place)))
        for index, cosine in zip(indices, cosines, strict=True):
            same = train.labels[index] == pictures.labels[place]
            tiles.append(
                Tile(
                    image=train.images[index],
                    title=train.class_names[train.labels[index]],
                    note=f"cosine {cosine:.3f}",
                    id=train.ids[index],
                    tone="good" if same else "bad",
                )
            )
    return Section(
        title="Nearest training pictures",
        text="Each mistake, followed by the training pictures nearest to it; green ones have its true class.",
        tiles=tiles,
        columns=1 + nearest.indices.shape[1],
    )


def duplicate_section(duplicates: Sequence[Duplicate], limit: int = 50) -> Section:
    """Pictures that are in more than one split, by their ids."""
    if not duplicates:
        return Section(title="Duplicates", text="No picture of one split is also in another.", tone="good")
    exact = sum(d.same_pixels for d in duplicates)
    text = f"{len(duplicates):,} pairs between splits, {exact:,} of them with the same pixels."
    if len(duplicates) > limit:
        text += f" The first {limit} are shown."
    return Section(
        title="Duplicates",
        text=text,
        tables=[
            Table(
                header=["Split", "Picture", "Other split", "Picture", "Cosine", "Same pixels", "Same class"],
                rows=[
                    [
                        d.split,
                        d.id,
                        d.other_split,
                        d.other_id,
                        f"{d.similarity:.4f}",
                        "yes" if d.same_pixels else "no",
                        "yes" if d.same_label else "no",
                    ]
                    for d in duplicates[:limit]
                ],
                numeric=[4],
            )
        ],
    )


def answer_tile(pictures: Pictures, probabilities: np.ndarray, place: int) -> Tile:
    """One picture with its answer and, when that is wrong, the true class."""
    answer, label = int(probabilities[place].argmax()), int(pictures.labels[place])
    truth = f"is {pictures.class_names[label]} ({probabilities[place, label]:.0%})"
    return Tile(
        image=pictures.images[place],
        title=f"{pictures.class_names[answer]} · {probabilities[place, answer]:.0%}",
        note="" if answer == label else truth,
        id=pictures.ids[place],
        tone="good" if answer == label else "bad",
    )
