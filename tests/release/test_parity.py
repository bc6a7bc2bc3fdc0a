"""Parity fails closed: on differences, on changed predictions, on NaN, and without images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitcifar.data.edge_cases import edge_case_files
from vitcifar.errors import ReleaseError
from vitcifar.release.parity import check_parity, measure_parity, require_match


def test_parity_is_measured_on_every_image_and_edge_case(published: Any, exported: Path) -> None:
    parity = check_parity(published.networks[2], exported, published.splits.test)
    assert parity.num_images == len(published.splits.test) + parity.num_edge_cases
    assert parity.num_edge_cases == 18
    assert parity.max_logit_difference < 1e-4
    assert parity.num_changed == 0
    assert parity.worst_id in (*published.splits.test.ids, *edge_case_files())


def test_parity_with_another_network_fails(published: Any, exported: Path) -> None:
    with pytest.raises(ReleaseError, match=r"ONNX and PyTorch outputs differ.*Nothing was registered"):
        check_parity(published.networks[1], exported, published.splits.test)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["network", "file", "both"])
def test_parity_fails_on_logits_that_are_not_finite(wrong: float, side: str) -> None:
    expected, actual = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    if side in ("network", "both"):
        expected[1, 1] = wrong
    if side in ("file", "both"):
        actual[1, 1] = wrong
    parity = measure_parity(expected, actual, ("a", "b", "c"))
    assert (parity.num_changed, parity.worst_id, parity.max_logit_difference) == (1, "b", np.inf)
    with pytest.raises(ReleaseError, match="worst on 'b'"):
        require_match(parity)


def test_parity_names_a_changed_prediction_before_the_largest_difference() -> None:
    expected = np.array([[0.0, 1.0], [0.5, 0.49999]])
    actual = np.array([[0.0, 1.00005], [0.49999, 0.5]])
    parity = measure_parity(expected, actual, ("certain", "tied"))
    assert (parity.num_changed, parity.worst_id) == (1, "tied")


def test_parity_over_no_images_fails(published: Any, exported: Path) -> None:
    with pytest.raises(ReleaseError, match="no image"):
        check_parity(published.networks[2], exported, published.splits.test.subset([]))


def test_ties_of_merged_tokens_are_counted_and_few() -> None:
    """One image in 100 may differ by more, if its prediction is the same; two may not."""
    expected = np.tile(np.array([[1.0, 0.0]]), (100, 1))
    actual = expected.copy()
    actual[3] += 0.02
    ids = [str(index) for index in range(100)]
    parity = require_match(measure_parity(expected, actual, ids, max_tied=0.01))
    assert (parity.num_tied, parity.max_logit_difference) == (1, 0.0)
    assert parity.max_tied_difference == pytest.approx(0.02)
    with pytest.raises(ReleaseError, match=r"logits by up to 0\.02"):
        require_match(measure_parity(expected, actual, ids))
    actual[4] += 0.02
    with pytest.raises(ReleaseError, match=r"logits by up to 0\.02"):
        require_match(measure_parity(expected, actual, ids, max_tied=0.01))
    actual[3:5] = (0.0, 1.0), expected[4]
    with pytest.raises(ReleaseError, match="1 of 100 predictions changed"):
        require_match(measure_parity(expected, actual, ids, max_tied=0.01))
