"""Measures against plain formulas, and how they behave on identity, noise, scales, constants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score
from sklearn.neighbors import NearestNeighbors

from cast.measures import cosine, debiased_cka, knn_overlap, measured, r_squared, shuffled

MEASURES = (r_squared, cosine, knn_overlap, debiased_cka)


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_perfect_prediction_scores_one_and_its_control_about_none(measure):
    truth = rows(300, 20)
    result = measured(measure, truth, truth)
    assert result.value == pytest.approx(1.0)
    assert result.control < 0.12
    assert measured(measure, truth, truth) == result


@pytest.mark.parametrize("measure", MEASURES)
def test_numpy_and_torch_give_the_same(measure):
    x, y = rows(50, 6), rows(50, 6, seed=1)
    assert measure(x.numpy(), y.numpy()) == measure(x, y)


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 40), st.integers(1, 8), st.integers(0, 99))
def test_r_squared_is_the_oracles_uniform_average(n, d, seed):
    truth = rows(n, d, seed)
    prediction = truth + 0.5 * rows(n, d, seed + 1)
    assert r_squared(prediction, truth) == pytest.approx(
        r2_score(truth, prediction, multioutput="uniform_average")
    )


def test_massive_dimensions_weigh_like_any_other():
    truth = rows(500, 10)
    truth[:, 0] = truth[:, 0] * 5000 + 1500
    prediction = torch.zeros_like(truth)
    prediction[:, 0] = truth[:, 0]
    assert r_squared(prediction, truth) == pytest.approx(0.1, abs=0.02)
    assert knn_overlap(prediction, truth) < 0.5


def test_constant_dimensions_and_tiny_inputs_do_not_divide_by_zero():
    constant = torch.ones(30, 4)
    for measure in MEASURES:
        assert np.isfinite(measure(constant, constant))
        assert np.isfinite(measure(rows(1, 4), rows(1, 4)))
    half = torch.cat([rows(30, 2), torch.ones(30, 2)], 1)
    assert r_squared(half, half) == 1.0


def test_knn_overlap_agrees_with_an_oracle():
    x, y = rows(60, 8), rows(60, 8, seed=3)
    found = []
    for view in (x, y):
        scaled = ((view - view.mean(0)) / view.std(0, unbiased=False)).numpy()
        neighbours = NearestNeighbors(n_neighbors=11, metric="cosine").fit(scaled).kneighbors(scaled)[1]
        found.append([set(row) - {own} for own, row in enumerate(neighbours.tolist())])
    expected = np.mean([len(a & b) / 10 for a, b in zip(*found, strict=True)])
    assert knn_overlap(x, y, neighbours=10) == pytest.approx(expected)


def test_the_debiased_cka_of_independent_rows_is_about_zero_where_the_plain_one_is_not():
    x, y = rows(100, 200), rows(100, 200, seed=5)
    centred = [view - view.mean(0) for view in (x, y)]
    grams = [view @ view.T for view in centred]
    plain = (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
    assert plain > 0.5
    assert abs(debiased_cka(x, y)) < 0.05


def test_shuffling_keeps_the_rows_and_follows_the_seed():
    x = rows(40, 3)
    assert torch.equal(shuffled(x, seed=1), shuffled(x, seed=1))
    assert not torch.equal(shuffled(x, seed=1), shuffled(x, seed=2))
    assert torch.equal(shuffled(x).sort(0).values, x.sort(0).values)
