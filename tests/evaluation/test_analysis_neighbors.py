"""Nearest training images."""

import numpy as np
import pytest
from support.noise import noise, some_images

from vitcifar.evaluation import analysis as n


def test_nearest_training_images_are_the_most_similar_first():
    train = some_images(noise(5), prefix="train")
    embeddings = np.array([[1.0, 2.0, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 3.0, 0.0, 0.0]])
    result = n.nearest_training(np.array([2, 0]), embeddings, train, np.eye(5), k=2)
    assert result.queries.tolist() == [2, 0] and result.train is train
    assert result.indices[0, 0] == 2 and result.indices[1].tolist() == [1, 0]
    assert result.cosines[1] == pytest.approx([2 / np.sqrt(5.25), 1 / np.sqrt(5.25)])


def test_there_are_no_more_neighbours_than_training_images():
    train = some_images(noise(3))
    assert n.nearest_training(np.array([0, 1]), np.ones((2, 3)), train, np.eye(3), k=9).indices.shape == (2, 3)


def test_an_embedding_of_zeros_is_similar_to_nothing():
    zeros = some_images(noise(2))
    result = n.nearest_training(np.array([0]), np.zeros((1, 3)), zeros, np.eye(3)[:2], k=2)
    assert result.cosines.tolist() == [[0.0, 0.0]]
