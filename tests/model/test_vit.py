"""Architectures and the names of their pretrained weights."""

import pytest
from support.networks import CLASSES, tiny

from vitcifar.errors import ConfigError
from vitcifar.model.network import build_network
from vitcifar.presets import resolve


def test_an_image_size_that_is_no_multiple_of_the_patch_size_names_the_nearest_one_that_is():
    with pytest.raises(ConfigError, match="multiple of 8, such as 32"):
        tiny(image_size=33)


def test_unknown_weights_list_the_valid_names_of_the_architecture():
    with pytest.raises(ConfigError, match=r"type --weights IMAGENET1K_V1, IMAGENET1K_SWAG_E2E_V1, .*, none, the path"):
        build_network(resolve("cifar10", weights="IMAGENET21K"), CLASSES)
    with pytest.raises(ConfigError, match="no pretrained weights 'IMAGENET1K_V1' for vit_tiny"):
        tiny(weights="IMAGENET1K_V1")
