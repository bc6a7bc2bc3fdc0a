"""Attention weights and embeddings: what the blocks and the head compute, without an effect on the network."""

import numpy as np
import pytest
import torch
from support.planted import planted_splits, random_network

from vitcifar.model.predict import attention_weights, predict_embeddings, predict_logits


@pytest.fixture(scope="module")
def splits():
    return planted_splits()


@pytest.fixture(scope="module")
def network():
    return random_network()


def reference(network, image):
    """The attention weights of every block, computed with need_weights, and the logits."""
    with torch.no_grad():
        tokens, weights = network.forward_features(network.preprocess(torch.from_numpy(image)[None]), 0), []
        for block in network.blocks:
            normalized = block.ln_1(tokens)
            mixed, attention = block.self_attention(
                normalized, normalized, normalized, need_weights=True, average_attn_weights=False
            )
            weights.append(attention[0].numpy())
            tokens = tokens + mixed
            tokens = tokens + block.mlp(block.ln_2(tokens))
        return np.stack(weights), network.forward_head(tokens, len(network.blocks))[0].numpy()


def test_attention_weights_equal_those_that_the_blocks_return(network, splits):
    images = splits.test.images[:3]
    weights_of_images = list(attention_weights(network, images, batch_size=2))
    heads, side = network.blocks[0].self_attention.num_heads, network.image_size // network.backbone.patch_size
    tokens = side * side + 1
    assert len(weights_of_images) == 3 and weights_of_images[0].shape == (len(network.blocks), heads, tokens, tokens)
    for image, weights in zip(images, weights_of_images, strict=True):
        expected, logits = reference(network, image)
        np.testing.assert_allclose(weights, expected, atol=1e-6)
        np.testing.assert_allclose(logits, predict_logits(network, image[None])[0], atol=1e-4)
        assert weights.sum(axis=-1) == pytest.approx(1, abs=1e-5)


def test_attention_weights_change_no_logits_and_leave_no_hooks(network, splits):
    before = predict_logits(network, splits.test.images[:4])
    network.train()
    list(attention_weights(network, splits.test.images[:2]))
    assert network.training
    network.eval()
    assert (predict_logits(network, splits.test.images[:4]) == before).all()
    for block in network.blocks:
        attention = block.self_attention
        assert not attention._forward_hooks and not attention._forward_pre_hooks


def test_attention_weights_accept_images_of_mixed_sizes(network, splits):
    images = [splits.test.images[0], np.full((40, 20, 3), 99, np.uint8)]
    assert len(list(attention_weights(network, images))) == 2


def test_embeddings_are_the_inputs_of_the_head(network, splits):
    images = splits.test.images[:5]
    embeddings = torch.from_numpy(predict_embeddings(network, images, batch_size=2))
    width = network.head.in_features
    assert embeddings.shape == (5, width)
    with torch.no_grad():
        np.testing.assert_allclose(network.head(embeddings).numpy(), predict_logits(network, images), atol=1e-4)
    assert predict_embeddings(network, images[:0]).shape == (0, width)
