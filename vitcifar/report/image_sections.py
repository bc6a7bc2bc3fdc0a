"""The parts of a report that show images: mistakes, what the network looked at, what it found alike."""

from collections.abc import Mapping, Sequence

import numpy as np

from vitcifar.data.dataset import ImageDataset
from vitcifar.evaluation.compare import Comparison
from vitcifar.evaluation.metrics import Evaluation
from vitcifar.evaluation.neighbors import Duplicate, NearestImages
from vitcifar.report.galleries import highlight, most_confident_mistakes
from vitcifar.report.html import Section, Table, Tile


def mistakes_section(
    evaluation: Evaluation, dataset: ImageDataset, probabilities: np.ndarray, limit: int = 24
) -> Section:
    """The wrong answers that the classifier was surest of."""
    places = most_confident_mistakes(dataset.labels, probabilities, limit)
    wrong = evaluation.num_images - int(evaluation.correct.sum())
    text = f"{len(places)} of {wrong} wrong answers, the surest first: look here for wrong labels too."
    return Section(
        title="Most confident mistakes",
        text=text if wrong else "No image was answered wrongly.",
        tiles=[answer_tile(dataset, probabilities, int(place)) for place in places],
    )


def lost_section(dataset: ImageDataset, probabilities: np.ndarray, comparison: Comparison, limit: int = 24) -> Section:
    """Images that this classifier gets wrong and the other one got right."""
    places = sorted(comparison.lost, key=lambda place: -float(probabilities[place].max()))[:limit]
    return Section(
        title="Lost to the other version",
        text=f"{len(places)} of {len(comparison.lost)} images that only the other version answered rightly.",
        tiles=[answer_tile(dataset, probabilities, place) for place in places],
    )


def attention_section(dataset: ImageDataset, probabilities: np.ndarray, maps: Mapping[int, np.ndarray]) -> Section:
    """What right and wrong answers were made from."""
    tiles = []
    for place, patches in maps.items():
        tile = answer_tile(dataset, probabilities, place)
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


def neighbor_section(dataset: ImageDataset, probabilities: np.ndarray, nearest: NearestImages) -> Section:
    """Mistakes with the training images that look most alike to the network."""
    train, tiles = nearest.train, []
    for place, indices, cosines in zip(nearest.queries, nearest.indices, nearest.cosines, strict=True):
        tiles.append(answer_tile(dataset, probabilities, int(place)))
        for index, cosine in zip(indices, cosines, strict=True):
            same = train.labels[index] == dataset.labels[place]
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
        title="Nearest training images",
        text="Each mistake, followed by the training images nearest to it; green ones have its true class.",
        tiles=tiles,
        columns=1 + nearest.indices.shape[1],
    )


def duplicate_section(duplicates: Sequence[Duplicate], limit: int = 50) -> Section:
    """Images that are in more than one split, by their ids."""
    if not duplicates:
        return Section(title="Duplicates", text="No image of one split is also in another.", tone="good")
    exact = sum(d.same_pixels for d in duplicates)
    text = f"{len(duplicates):,} pairs between splits, {exact:,} of them with the same pixels."
    if len(duplicates) > limit:
        text += f" The first {limit} are shown."
    return Section(
        title="Duplicates",
        text=text,
        tables=[
            Table(
                header=["Split", "Image", "Other split", "Image", "Cosine", "Same pixels", "Same class"],
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


def answer_tile(dataset: ImageDataset, probabilities: np.ndarray, place: int) -> Tile:
    """One image with its answer and, when that is wrong, the true class."""
    answer, label = int(probabilities[place].argmax()), int(dataset.labels[place])
    truth = f"is {dataset.class_names[label]} ({probabilities[place, label]:.0%})"
    return Tile(
        image=dataset.images[place],
        title=f"{dataset.class_names[answer]} · {probabilities[place, answer]:.0%}",
        note="" if answer == label else truth,
        id=dataset.ids[place],
        tone="good" if answer == label else "bad",
    )
