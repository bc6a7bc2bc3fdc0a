"""Batches of images of one size."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vitcifar.data.dataset import group_by_size, pixel_hash

SIZES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=40)


@given(SIZES, st.integers(1, 5), st.none() | st.integers(1, 30))
def test_every_image_is_in_one_batch_of_its_size_within_the_limits(sizes, max_batch, max_pixels):
    batches = group_by_size([np.zeros((*size, 3), np.uint8) for size in sizes], max_batch, max_pixels=max_pixels)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
    for batch in batches:
        height, width = sizes[batch[0]]
        assert batch == sorted(batch) and {sizes[index] for index in batch} == {(height, width)}
        assert len(batch) <= max_batch
        assert max_pixels is None or len(batch) == 1 or len(batch) * height * width <= max_pixels


def test_images_of_one_size_share_a_batch_across_images_of_other_sizes():
    images = [np.zeros((size, 4, 3), np.uint8) for size in (2, 5, 2, 5, 2)]
    assert group_by_size(images, 32) == [[0, 2, 4], [1, 3]]
    assert group_by_size(images, 32, max_pixels=16) == [[0, 2], [4], [1], [3]]


def test_pixel_hash_differs_for_other_pixels_and_other_shapes():
    flat = np.zeros((2, 8, 3), np.uint8)
    assert pixel_hash(flat) == pixel_hash(flat.copy()) != pixel_hash(flat.reshape(4, 4, 3))
    assert pixel_hash(flat.transpose(1, 0, 2)) != pixel_hash(flat)
    changed = flat.copy()
    changed[1, 7, 2] = 1
    assert pixel_hash(changed) != pixel_hash(flat)
