"""The batched solvers against scikit-learn, one fit at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from torchmem.analysis._crossval import cross_validate
from torchmem.analysis._design import make_design
from torchmem.analysis._logistic import fit_logistic
from torchmem.analysis._ridge import fit_ridge

SETS = [(), (0,), (1, 2)]
ALPHAS = [0.3, 1e-3]


def data(classes: int, sites: int = 2, steps: int = 160, width: int = 7, labellings: int = 3):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(sites, steps, width)) * rng.uniform(0.01, 100, (sites, 1, width)) + rng.normal(size=width) * 50
    x[1, :, 5:] = 0  # padding of a narrower site
    fold = np.arange(steps) % 4
    if classes:
        y = rng.integers(0, classes, (labellings, steps, 1))
        y[0, :, 0] = (x[0, :, 0] > x[0, :, 0].mean()) * (classes - 1)  # separable: a hard one
    else:
        y = rng.normal(size=(labellings, steps, 2)) + x[0, :, :2] / 30
    return x, fold, y


def in_units(design, weights):
    """Weights on design.x as a prediction function's logits on all rows: (S, G, R, N, O)."""
    return torch.einsum("snd,sgrdo->sgrno", design.x, weights[..., :-1, :]) + weights[..., -1:, :]


@pytest.mark.parametrize("classes", [0, 2, 4])
def test_every_fit_equals_scikit_learn(classes: int):
    x, fold, y = data(classes)
    design = make_design(torch.tensor(x), torch.tensor(fold))
    alpha = torch.tensor(ALPHAS, dtype=torch.float64)[torch.arange(2 * 3 * 3).reshape(2, 3, 3) % 2]
    if classes:
        weights = fit_logistic(design, SETS, torch.tensor(y), alpha, classes=classes, tolerance=1e-18)
    else:
        weights = fit_ridge(design, SETS, torch.tensor(y), alpha)
    ours = in_units(design, weights).numpy()
    for s in range(2):
        for g, without in enumerate(SETS):
            keep = ~np.isin(fold, without)
            scaler = StandardScaler().fit(x[s, keep])
            a, b = scaler.transform(x[s, keep]), scaler.transform(x[s])
            for r in range(3):
                penalty = float(alpha[s, g, r]) * keep.sum()
                if classes:
                    model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10000, solver="newton-cg")
                    theirs = model.fit(a, y[r, keep, 0]).decision_function(b)
                    theirs = theirs[:, None] if theirs.ndim == 1 else theirs
                    if theirs.shape[1] == 1 and classes > 2:
                        continue  # labelling 0 has two of four classes: scikit-learn fits a binary model there
                    difference = ours[s, g, r] - ours[s, g, r].mean(-1, keepdims=True) * (classes > 2)
                    theirs = theirs - theirs.mean(-1, keepdims=True) * (classes > 2)
                    np.testing.assert_allclose(difference, theirs, atol=1e-5, rtol=1e-5)
                else:
                    theirs = Ridge(alpha=penalty).fit(a, y[r, keep]).predict(b)
                    np.testing.assert_allclose(ours[s, g, r], theirs, atol=1e-9)


@pytest.mark.parametrize("classes", [0, 2, 4])
def test_an_answer_does_not_depend_on_its_company(classes: int):
    """One site and labelling alone, and among others; alphas started from one another, and from zero."""
    x, fold, y = data(classes)
    alphas = torch.tensor([0.01, 1.0], dtype=torch.float64)
    how = {"classes": classes, "tolerance": 1e-14}
    folds = torch.tensor(fold)
    together = cross_validate(torch.tensor(x), folds, torch.tensor(y), alphas, **how)
    alone = cross_validate(torch.tensor(x[1:, :, :5]), folds, torch.tensor(y[:1]), alphas, **how)
    torch.testing.assert_close(together.quality[1:, :1], alone.quality, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(together.weight[1:, :5], alone.weight, atol=1e-5, rtol=1e-4)
    assert (together.weight[1, 5:] == 0).all()


@pytest.mark.parametrize("classes", [0, 2])
def test_nothing_leaks_from_the_held_out_fold(classes: int):
    """Whatever happens to the units of one fold, or to its labels, the model that is tested on it stays the same."""
    x, fold, y = data(classes)
    spoilt, relabelled = x.copy(), y.copy()
    spoilt[:, fold == 2] = spoilt[:, fold == 2] * 7 + 3
    relabelled[:, fold == 2] = 1 - relabelled[:, fold == 2]
    fit = fit_logistic if classes else fit_ridge
    alpha = torch.full((2, 1, 3), 0.1, dtype=torch.float64)
    logits = []
    for these, labels in ((x, y), (spoilt, relabelled)):
        design = make_design(torch.tensor(these), torch.tensor(fold))
        w = fit(design, [(2,)], torch.tensor(labels), alpha, **({"tolerance": 1e-18} if classes else {}))
        logits.append(in_units(design, w)[..., fold != 2, :])
    torch.testing.assert_close(logits[0], logits[1], atol=1e-6, rtol=1e-6)


def test_alpha_is_chosen_without_the_held_out_fold():
    x, fold, y = data(0, width=60, steps=120)
    alphas = torch.logspace(-4, 1, 6, dtype=torch.float64)
    relabelled = y.copy()
    relabelled[:, fold == 2] = np.random.default_rng(1).normal(size=relabelled[:, fold == 2].shape) * 1000
    both, folds = (y, relabelled), torch.tensor(fold)
    answers = [cross_validate(torch.tensor(x), folds, torch.tensor(labels), alphas) for labels in both]
    assert torch.equal(answers[0].alpha[:, 2], answers[1].alpha[:, 2])
    assert not torch.equal(answers[0].alpha, answers[1].alpha), "the other folds do see these labels"


def test_refit_weights_are_in_the_units_of_the_activations():
    x, fold, _ = data(0)
    y = (x[0] @ np.arange(1.0, 8.0))[None, :, None] + 4
    found = cross_validate(torch.tensor(x[:1]), torch.tensor(fold), torch.tensor(y), torch.tensor([1e-9]))
    np.testing.assert_allclose(found.weight[0, :, 0], np.arange(1.0, 8.0), rtol=1e-5)
    np.testing.assert_allclose(found.bias[0, 0], 4, atol=1e-2)


def test_two_sites_of_a_thousand_steps_are_quick():
    rng = np.random.default_rng(0)
    x, y = torch.tensor(rng.normal(size=(1, 1000, 64))), torch.tensor(rng.integers(0, 2, (11, 1000, 1)))
    found = cross_validate(x, torch.arange(1000) % 5, y, torch.logspace(-4, 1, 6), classes=2)
    assert found.quality.shape == (1, 11, 1000)
