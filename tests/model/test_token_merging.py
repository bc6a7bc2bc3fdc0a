"""Token merging: means of patches, proportional attention, one image at a time, and the same features when split."""

import itertools

import numpy as np
import pytest
import torch
from support.networks import random_images, tiny

from vitcifar.model.network import Classifier, evaluation_mode
from vitcifar.model.predict import attention_weights, predict_logits
from vitcifar.model.token_merging import merge, token_counts

IMAGES = random_images(5, 40, 50)


def test_every_block_but_the_last_merges_and_never_more_than_every_second_token() -> None:
    assert token_counts(197, 16, 12) == [197, 181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21, 21]
    assert token_counts(17, 50, 4) == [17, 9, 5, 3, 3]


def test_the_halving_schedule_merges_as_many_as_the_constant_one_but_half_of_what_is_left_at_a_time() -> None:
    counts = token_counts(197, 12, 12, "halving")
    assert [one - after for one, after in itertools.pairwise(counts)] == [66, 33, 17, 8, 4, 2, 1, 1, 0, 0, 0, 0]
    assert counts[-1] == token_counts(197, 12, 12)[-1]
    assert token_counts(197, 20, 12, "halving")[:4] == [197, 99, 50, 26], "at most every second token"
    assert token_counts(17, 50, 4, "halving") == token_counts(17, 50, 4)
    assert token_counts(17, 5, 1, "halving") == [17, 17]


def test_the_most_similar_pairs_become_the_mean_of_their_patches() -> None:
    """Tokens 2 and 1 have equal keys, 4 and 3 nearly; the class token 0 equals 5, and must stay alone."""
    keys = torch.tensor([[0.0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0.1, 1, 0], [0, 0, 1]])[None]
    tokens = torch.arange(6.0).view(1, 6, 1) * torch.ones(1, 1, 2)
    sizes = torch.tensor([1.0, 3, 1, 1, 1, 1]).view(1, 6, 1)
    merged, merged_sizes = merge(tokens, sizes, keys, 1)
    assert merged_sizes.flatten().tolist() == [1, 1, 4, 1, 1]
    torch.testing.assert_close(merged[0, :, 0], torch.tensor([0, 4, (3 * 1 + 2) / 4, 3, 5]))
    merged, merged_sizes = merge(tokens, sizes, keys, 2)
    assert merged_sizes.flatten().tolist() == [1, 4, 2, 1]
    assert merged_sizes.sum() == sizes.sum()


def test_merging_nothing_is_the_plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, network = predict_logits(tiny(), IMAGES), tiny(token_merging=3)
    changed = predict_logits(network, IMAGES)
    assert np.abs(changed - expected).max() > 0.01
    monkeypatch.setattr(Classifier, "token_counts", [17] * 4)
    np.testing.assert_allclose(predict_logits(network, IMAGES), expected, atol=1e-4)


def test_equal_tokens_can_be_merged_without_a_change() -> None:
    """Proportional attention: where all patches are equal, fewer of them that count for more give the same."""
    network, merging = tiny(), tiny(token_merging=4)
    tokens = torch.randn(1, 1, 96, generator=torch.Generator().manual_seed(0)).repeat(1, 17, 1)
    tokens[:, 0] *= -1
    with torch.no_grad():
        logits = merging.forward_head(torch.nn.functional.pad(tokens, (0, 1), value=1.0), 0)
        torch.testing.assert_close(logits, network.forward_head(tokens, 0), atol=1e-4, rtol=0)


def test_an_image_has_the_same_logits_alone_and_in_a_batch() -> None:
    network = tiny(token_merging=4)
    alone = np.concatenate([predict_logits(network, IMAGES[index : index + 1]) for index in range(len(IMAGES))])
    np.testing.assert_allclose(predict_logits(network, IMAGES), alone, atol=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "halving"])
@pytest.mark.parametrize("depth", range(5))
def test_features_of_a_depth_continue_to_the_same_logits(depth: int, schedule: str) -> None:
    network = tiny(token_merging=4, merging_schedule=schedule)
    with evaluation_mode(network), torch.no_grad():
        features = network.forward_features(network.preprocess(torch.from_numpy(IMAGES)), depth)
        logits = network.forward_head(features, depth)
    assert features.shape[1:] == network.features_shape(depth)
    np.testing.assert_allclose(logits.numpy(), predict_logits(network, IMAGES), atol=1e-5)


def test_attention_is_shown_for_every_patch_and_merging_goes_on_afterwards() -> None:
    network = tiny(token_merging=4)
    weights = next(attention_weights(network, IMAGES[:1]))
    assert weights.shape == (3, 4, 17, 17)
    assert network.token_merging == 4


def test_gradients_reach_every_weight_through_the_merges() -> None:
    network = tiny(token_merging=4).train()
    network.requires_grad_(True)
    network(torch.from_numpy(IMAGES)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())
