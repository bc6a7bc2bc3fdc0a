"""Prediction in PyTorch."""

import numpy as np
import pytest
import torch
from support.networks import random_images, tiny

from vitcifar.model.predict import predict_logits, to_batch


def test_images_of_mixed_sizes_have_the_logits_they_have_alone():
    network = tiny()
    mixed = [random_images(8, 8), random_images(50, 30), random_images(8, 8, seed=1)]
    together = predict_logits(network, mixed, 2)
    alone = np.concatenate([predict_logits(network, image[None]) for image in mixed])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_batch_is_a_tensor_if_all_sizes_are_equal_and_a_list_if_not():
    images = [random_images(8, 8), random_images(8, 8, seed=1), random_images(5, 8)]
    batch = to_batch([images[1], images[0]])
    assert isinstance(batch, torch.Tensor) and batch.shape == (2, 8, 8, 3) and batch.dtype == torch.uint8
    assert np.array_equal(batch[0], images[1])
    assert [tuple(image.shape) for image in to_batch(images)] == [(8, 8, 3), (8, 8, 3), (5, 8, 3)]
    assert np.array_equal(to_batch(np.stack(images[:2])[1:]), images[1][None])


@pytest.mark.parametrize("training", [True, False])
def test_prediction_leaves_the_network_in_its_mode(training):
    network = tiny().train(training)
    predict_logits(network, random_images(2, 8, 8))
    assert network.training == training
