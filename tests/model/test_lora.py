"""LoRA."""

import numpy as np
import torch
from support.networks import random_images, tiny

from vitcifar.model.lora import add_lora, merge_lora
from vitcifar.model.predict import predict_logits


def test_lora_starts_without_a_change_and_merges_into_the_plain_network():
    network = tiny()
    images, names = random_images(6, 8, 8), list(network.state_dict())
    before = predict_logits(network, images)
    add_lora(network.blocks, 4, seed=0)
    np.testing.assert_allclose(predict_logits(network, images), before, atol=1e-5)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(".up"):
                weight.normal_(std=0.1)
    changed = predict_logits(network, images)
    assert np.abs(changed - before).max() > 0.01
    merge_lora(network.blocks)
    np.testing.assert_allclose(predict_logits(network, images), changed, atol=1e-4)
    assert sorted(network.state_dict()) == sorted(names)
