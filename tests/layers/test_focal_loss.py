"""Focal losses are compared with float64 oracles, fvcore and cross entropies."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss as fvcore_sigmoid_focal_loss
from fvcore.nn import sigmoid_focal_loss_star as fvcore_sigmoid_focal_loss_star
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mrcnn_plugin.layers import (
    sigmoid_focal_loss,
    sigmoid_focal_star_loss,
    softmax_focal_loss,
)
from mrcnn_plugin.layers.focal_loss import is_class
from tests import oracles

LOGITS = npst.arrays(np.float64, (4, 3), elements=st.floats(-30, 30))
TARGETS = npst.arrays(np.int64, (4, 3), elements=st.integers(0, 1))
ALPHA = st.sampled_from([-1.0, 0.0, 0.25, 1.0])
ALPHAS = npst.arrays(np.float64, 3, elements=st.floats(0, 1))  # one weight for each class
GAMMA = st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0])
GAMMA_STAR, BETA = st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.sampled_from([0.0, 1.0, -0.5])


def gradient(loss, logits):
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return grad


def central_difference(function, x, step=1e-6):
    """Approximates the gradient of sum(function(x)), element by element."""
    grad = np.empty_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        grad[index] = (function(up).sum() - function(down).sum()) / (2 * step)
    return grad


def tensor(alpha):
    return torch.from_numpy(alpha) if isinstance(alpha, np.ndarray) else alpha


@given(LOGITS, TARGETS, ALPHA | ALPHAS, GAMMA)
def test_sigmoid_equals_the_equation_in_value_and_gradient(x, targets, alpha, gamma):
    logits = torch.from_numpy(x).requires_grad_()
    loss = sigmoid_focal_loss(logits, torch.from_numpy(targets), tensor(alpha), gamma)
    expected = oracles.sigmoid_focal_loss(x, targets, alpha, gamma)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-10, atol=1e-14)
    numeric = central_difference(lambda v: oracles.sigmoid_focal_loss(v, targets, alpha, gamma), x)
    np.testing.assert_allclose(gradient(loss, logits).numpy(), numeric, rtol=1e-4, atol=1e-6)


@given(LOGITS, TARGETS, ALPHA | ALPHAS, GAMMA_STAR, BETA)
def test_star_equals_the_equation_in_value_and_gradient(x, targets, alpha, gamma, beta):
    logits = torch.from_numpy(x).requires_grad_()
    loss = sigmoid_focal_star_loss(logits, torch.from_numpy(targets), tensor(alpha), gamma, beta)
    expected = oracles.sigmoid_focal_star_loss(x, targets, alpha, gamma, beta)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-10, atol=1e-14)
    numeric = central_difference(
        lambda v: oracles.sigmoid_focal_star_loss(v, targets, alpha, gamma, beta), x
    )
    np.testing.assert_allclose(gradient(loss, logits).numpy(), numeric, rtol=1e-4, atol=1e-6)


@given(LOGITS, npst.arrays(np.int64, 4, elements=st.integers(0, 2)), ALPHA | ALPHAS, GAMMA)
def test_softmax_equals_the_equation_in_value_and_gradient(x, classes, alpha, gamma):
    if isinstance(alpha, np.ndarray):
        alpha = alpha[:2]  # the third class is background
    logits = torch.from_numpy(x).requires_grad_()
    loss = softmax_focal_loss(logits, torch.from_numpy(classes), tensor(alpha), gamma)
    expected = oracles.softmax_focal_loss(x, classes, alpha, gamma)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-9, atol=1e-14)
    numeric = central_difference(lambda v: oracles.softmax_focal_loss(v, classes, alpha, gamma), x)
    np.testing.assert_allclose(gradient(loss, logits).numpy(), numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.3, 1.0])
def test_equal_weights_for_all_classes_equal_a_single_weight(alpha):
    logits, classes = torch.randn(64, 6) * 3, torch.randint(0, 6, (64,))
    foreground, targets = logits[:, :5], F.one_hot(classes, 6)[:, :5]
    weights = torch.full((5,), alpha)
    for loss in (
        lambda a: sigmoid_focal_loss(foreground, targets, a, 2.0),
        lambda a: sigmoid_focal_star_loss(foreground, targets, a, 2.0, 1.0),
        lambda a: softmax_focal_loss(logits, classes, a, 2.0),
    ):
        torch.testing.assert_close(loss(weights), loss(alpha), rtol=1e-6, atol=0)


@given(
    npst.arrays(np.float32, (4, 3), elements=st.floats(-20, 20, width=32)),
    TARGETS,
    ALPHA,
    st.sampled_from([0.0, 1.0, 2.0]),
)
def test_sigmoid_equals_fvcore(x, targets, alpha, gamma):
    logits, targets = torch.from_numpy(x), torch.from_numpy(targets)
    expected = fvcore_sigmoid_focal_loss(logits, targets.float(), alpha=alpha, gamma=gamma)
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, targets, alpha, gamma), expected, rtol=1e-4, atol=1e-6
    )


@given(
    npst.arrays(np.float32, (4, 3), elements=st.floats(-20, 20, width=32)),
    TARGETS,
    ALPHA,
    GAMMA_STAR,
)
def test_star_with_beta_0_equals_fvcore(x, targets, alpha, gamma):
    logits, targets = torch.from_numpy(x), torch.from_numpy(targets)
    expected = fvcore_sigmoid_focal_loss_star(logits, targets.float(), alpha=alpha, gamma=gamma)
    torch.testing.assert_close(
        sigmoid_focal_star_loss(logits, targets, alpha, gamma, beta=0.0),
        expected,
        rtol=1e-4,
        atol=1e-6,
    )


def test_the_gradient_is_finite_where_the_gradient_of_fvcore_is_nan():
    logits = torch.tensor([1e4], requires_grad=True)
    assert gradient(fvcore_sigmoid_focal_loss(logits, torch.ones(1), gamma=0.5), logits).isnan()
    assert gradient(sigmoid_focal_loss(logits, torch.ones(1), -1, 0.5), logits) == 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, t: sigmoid_focal_loss(x, t, alpha=-1, gamma=0),
        lambda x, t: sigmoid_focal_star_loss(x, t, alpha=-1, gamma=1, beta=0),
    ],
)
def test_sigmoid_with_gamma_0_and_unshifted_star_are_exactly_binary_cross_entropy(loss):
    logits = (torch.randn(64, 5) * 10).requires_grad_()
    targets = torch.randint(0, 2, (64, 5)).float()
    loss = loss(logits, targets)
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    assert torch.equal(loss, expected)
    assert torch.equal(gradient(loss, logits), gradient(expected, logits))


def test_softmax_with_gamma_0_is_exactly_cross_entropy():
    logits = (torch.randn(64, 5) * 10).requires_grad_()
    classes = torch.randint(0, 5, (64,))
    loss = softmax_focal_loss(logits, classes, alpha=-1, gamma=0)
    expected = F.cross_entropy(logits, classes, reduction="none")
    assert torch.equal(loss, expected)
    assert torch.equal(gradient(loss, logits), gradient(expected, logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [-1.0, 0.25, torch.tensor([0.0, 0.3, 1.0])])
def test_value_and_gradient_are_finite_at_logits_of_10000(dtype, gamma, alpha):
    signs = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [1.0, 1.0, -1.0]])
    for classes in torch.cartesian_prod(*[torch.arange(3)] * 3):
        logits = (signs * 1e4).to(dtype).requires_grad_()
        targets = F.one_hot(classes, 3)
        losses = [
            sigmoid_focal_loss(logits, targets, alpha, gamma),
            softmax_focal_loss(logits, classes, alpha if dim(alpha) == 0 else alpha[:2], gamma),
        ]
        if gamma > 0:
            losses.append(sigmoid_focal_star_loss(logits, targets, alpha, gamma, 1.0))
        for loss in losses:
            assert loss.dtype == torch.promote_types(dtype, torch.float32)
            assert loss.isfinite().all()
            assert gradient(loss, logits).isfinite().all()


def dim(alpha):
    return torch.as_tensor(alpha).dim()


def test_is_class_marks_the_column_of_each_class():
    assert torch.equal(is_class(torch.tensor([2, 0, 1]), 3), F.one_hot(torch.tensor([2, 0, 1])) > 0)
    assert is_class(torch.tensor([3]), 3).tolist() == [[False] * 3], "the background has no column"
