"""Images that are there twice, in two splits or anywhere: identical, or near-duplicates such as the frames of a film.

N images, D features, embeddings (N, D). Similarity is the cosine, 0 for a row of zeros. Pairs can be many millions:
they are counted, connected to clusters and dropped, a part at a time.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.preprocessing import normalize

from vitcifar.data.dataset import ImageDataset, pixel_hash

# The cosine of a near-duplicate: of thumbnails or, with the network, the mean of that and of its embeddings' cosine.
# JPEG at quality 70, another brightness and twice the size stay above it. Of the 560,000 pairs across splits of
# CIFAR-10's sample none reaches it, of the digits (8 x 8 pixels) one or two.
DUPLICATE_COSINE = 0.99
MAX_LISTED = 100  # clusters
MAX_PAIRS = 2_000_000  # compared at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicate:
    """The most similar pair of a cluster, whose images lie in different splits; `same_pixels` = identical.

    A cluster is what pairs connect: `num_images` of all splits.
    """

    split: str
    id: str
    other_split: str
    other_id: str
    similarity: float
    same_pixels: bool
    same_label: bool
    num_images: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicates:
    """All pairs and clusters are counted, `MAX_LISTED` clusters listed: identical ones first, then the most similar."""

    num_pairs: int = 0
    num_same_pixels: int = 0  # pairs
    num_clusters: int = 0
    num_images: Mapping[str, int] = dataclasses.field(default_factory=dict)  # split -> images in a cluster
    listed: tuple[Duplicate, ...] = ()


def find_duplicates(
    splits: Mapping[str, ImageDataset], embeddings: Mapping[str, np.ndarray], *, threshold: float = DUPLICATE_COSINE
) -> Duplicates:
    """Images that are in two splits: identical pixels, or embeddings of at least the cosine `threshold`.

    The embeddings of a network put all images of a class close together: concatenate them with thumbnails.
    """
    first = dict(zip(splits, np.cumsum([0, *map(len, splits.values())]).tolist(), strict=False))
    num_images = sum(map(len, splits.values()))
    same = {split: _by_pixels(dataset, first[split]) for split, dataset in splits.items()}
    num_pairs = num_same_pixels = 0
    best = [np.zeros((3, 0))]  # image, image of another split, similarity (inf = identical) of the most similar pairs
    links = [np.zeros((2, 0), np.int64)]  # a few pairs that connect the same images as all pairs do
    for one, other in combinations(splits, 2):
        for digest in same[one].keys() & same[other].keys():
            group, others = same[one][digest], same[other][digest]
            num_same_pixels += len(group) * len(others)
            if not embeddings[one][group[0] - first[one]].any():  # a row of zeros, which is similar to nothing
                num_pairs += len(group) * len(others)
            best.append(np.array([[group[0]], [others[0]], [np.inf]]))
            links.append(np.array([[group[0]] * len(group + others), group + others]))
        for rows, columns, similarity in _near(embeddings[one], embeddings[other], threshold):
            num_pairs += len(rows)
            pairs = np.stack([rows + first[one], columns + first[other]])
            order = np.lexsort((pairs[1], -similarity, pairs[0]))
            nearest = order[np.unique(pairs[0][order], return_index=True)[1]]  # of each row
            best.append(np.stack([*pairs[:, nearest], similarity[nearest]]))
            links.append(_spanning_trees(pairs, num_images))
    linked = np.concatenate(links, axis=1)
    found = _listed(splits, np.concatenate(best, axis=1), _clusters(linked, num_images), np.unique(linked))
    return dataclasses.replace(found, num_pairs=num_pairs, num_same_pixels=num_same_pixels)


def is_near_duplicate(embeddings: np.ndarray, others: np.ndarray, *, threshold: float = DUPLICATE_COSINE) -> np.ndarray:
    """Whether each embedding (N, D) has at least the cosine `threshold` with one of the others (M, D): bool (N,)."""
    near = np.zeros(len(embeddings), dtype=bool)
    if len(embeddings):
        for rows, _, _ in _near(embeddings, others, threshold):
            near[rows] = True
    return near


def nearest_duplicates(
    hashes: Sequence[str],
    groups: np.ndarray,
    embeddings: np.ndarray | None = None,
    *,
    threshold: float = DUPLICATE_COSINE,
) -> tuple[np.ndarray, np.ndarray]:
    """For each of N images the duplicate that matters most, and its similarity: int (N,), -1 = none, and float (N,).

    An identical image (of the same hash) comes before a near-duplicate, one of another of the `groups` (N,) before one
    of the same. The similarity of identical images is 1; near-duplicates are searched in the embeddings, if given.
    """
    other, similarity = np.full(len(hashes), -1), np.zeros(len(hashes))
    if embeddings is not None:
        for rows, columns, cosines in _near(embeddings, embeddings, threshold):
            order = np.lexsort((columns, -cosines, groups[rows] == groups[columns], rows))
            order = order[rows[order] != columns[order]]  # without each image itself
            first = order[np.unique(rows[order], return_index=True)[1]]
            other[rows[first]], similarity[rows[first]] = (
                columns[first],
                np.minimum(cosines[first].astype(float), 1 - 1e-9),
            )
    same: dict[str, list[int]] = {}
    for index, digest in enumerate(hashes):
        same.setdefault(digest, []).append(index)
    for members in same.values():
        for index in members if len(members) > 1 else ():
            rest = [member for member in members if member != index]
            other[index] = next((member for member in rest if groups[member] != groups[index]), rest[0])
            similarity[index] = 1.0
    return other, similarity


def _listed(
    splits: Mapping[str, ImageDataset], pairs: np.ndarray, cluster: np.ndarray, images: np.ndarray
) -> Duplicates:
    """The clusters of some images, each with the most similar of the pairs (3, P)."""
    pairs = pairs[:, np.lexsort((pairs[1], pairs[0], -pairs[2]))]
    pairs = pairs[:, np.sort(np.unique(cluster[pairs[0].astype(int)], return_index=True)[1])]  # one of each cluster
    labels = np.concatenate([dataset.labels for dataset in splits.values()])
    ids = [id for dataset in splits.values() for id in dataset.ids]
    in_split = np.repeat([*splits], [len(dataset) for dataset in splits.values()])
    sizes = np.bincount(cluster[images], minlength=len(cluster))
    return Duplicates(
        num_clusters=pairs.shape[1],
        num_images={split: int((in_split[images] == split).sum()) for split in splits},
        listed=tuple(
            Duplicate(
                split=str(in_split[one]),
                id=ids[one],
                other_split=str(in_split[other]),
                other_id=ids[other],
                similarity=min(1.0, similarity),
                same_pixels=bool(np.isinf(similarity)),
                same_label=bool(labels[one] == labels[other]),
                num_images=int(sizes[cluster[one]]),
            )
            for one, other, similarity in ((int(a), int(b), float(s)) for a, b, s in pairs[:, :MAX_LISTED].T)
        ),
    )


def _near(
    embeddings: np.ndarray, others: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, columns and cosines of the pairs that reach the threshold, some rows at a time."""
    if not len(others):
        return
    # scikit-learn's cosines would normalise the others anew for each part, which took longer than the products.
    unit, step = normalize(others), max(1, MAX_PAIRS // len(others))
    for start in range(0, len(embeddings), step):
        cosines = normalize(embeddings[start : start + step]) @ unit.T
        rows, columns = np.nonzero(cosines >= threshold)
        yield rows + start, columns, cosines[rows, columns]


def _by_pixels(dataset: ImageDataset, first: int) -> dict[str, list[int]]:
    """The numbers of the images, starting at `first`, by the hash of their pixels."""
    groups: dict[str, list[int]] = {}
    for number, image in enumerate(dataset.images, first):
        groups.setdefault(pixel_hash(image), []).append(number)
    return groups


def _clusters(pairs: np.ndarray, num_images: int) -> np.ndarray:
    """The number of the cluster of each image (num_images,) that pairs (2, P) connect."""
    graph = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(num_images, num_images))
    return np.asarray(connected_components(graph, directed=False)[1])


def _spanning_trees(pairs: np.ndarray, num_images: int) -> np.ndarray:
    """At most one pair for each image, which connect the same images: each with the first of its cluster."""
    images = np.unique(pairs)
    _, first, inverse = np.unique(_clusters(pairs, num_images)[images], return_index=True, return_inverse=True)
    return np.stack([images[first[inverse]], images])


def thumbnails(images: np.ndarray | Sequence[np.ndarray], side: int = 16) -> np.ndarray:
    """Embeddings without a network: each image resized to side x side, minus its mean colour (N, 3 side side)."""
    small = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX)) for image in images]
    pixels = np.stack(small).astype(np.float32)  # (N, side, side, 3)
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    return pixels.reshape(len(pixels), -1)


def concat_embeddings(*embeddings: np.ndarray) -> np.ndarray:
    """Concatenate embeddings (N, D1), (N, D2), ... so that the cosine is the mean of theirs."""
    return np.concatenate([normalize(rows) for rows in embeddings], axis=1)
