"""The KTO loss on given log-probs: published numbers, closed forms, limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emjax.kto import kto_loss

# TRL 1.16's own loss in float64: policy, reference, labels, policy and reference of the KL rows; z, loss, dloss/dpolicy.
VECTORS = {
    "plain": (
        [-10, -12, -20, -8], [-11, -11.5, -18, -9.5], [1, 0, 1, 0], [-30, -25, -22, -28], [-31, -27, -21.5, -28.5],
        0.75, 0.5124005378708791,
        [-0.006249023539216254, 0.006225649375340437, -0.006133309496438298, 0.0062412191706848535],
    ),
    "policy is reference": ([-5, -6], [-5, -6], [1, 0], [-7, -8], [-7, -8], 0, 0.5, [-0.0125, 0.0125]),
    "clamped": (
        [-10, -12], [-11, -11.5], [1, 0], [-30, -25], [-28, -24],
        0, 0.4812617080184248, [-0.012468802009644599, 0.012492190754055823],
    ),
    "clamped after the mean": (
        [-10, -12], [-11, -11.5], [1, 0], [-30, -25], [-28, -28],
        0.5, 0.4812617080184248, [-0.012492190754055823, 0.012468802009644599],
    ),
    "one example": ([-10], [-13], [1], [-10], [-13], 3, 0.5, [-0.025]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def vector(name):
    *values, z, loss, gradient = VECTORS[name]
    policy, reference, labels, policy_kl, reference_kl = (jnp.asarray(v, jnp.float64) for v in values)
    return (policy, reference, policy_kl, reference_kl, labels > 0), z, loss, gradient


def evaluate(arguments, **options):
    """(loss, aux, gradients by the four log-prob vectors)"""
    run = jax.value_and_grad(functools.partial(kto_loss, **options), argnums=(0, 1, 2, 3), has_aux=True)
    (loss, aux), gradients = run(*arguments)
    return loss, aux, gradients


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name):
    arguments, z, wanted, gradient = vector(name)
    loss, aux, (by_policy, by_reference, by_policy_kl, by_reference_kl) = evaluate(arguments)
    assert abs(loss - wanted) < 1e-12
    assert abs(aux["kl"] - z) < 1e-12
    np.testing.assert_allclose(by_policy, gradient, atol=1e-12, rtol=0)
    np.testing.assert_array_equal(by_reference, -by_policy)
    # Nothing flows through the reference point, not even a rounding error.
    assert not by_policy_kl.any()
    assert not by_reference_kl.any()


def test_per_example_values():
    _, aux, _ = evaluate(vector("plain")[0])
    np.testing.assert_allclose(aux["losses"], [0.493750325500, 0.468790626626, 0.568319983478, 0.518741215879], atol=1e-12)
    np.testing.assert_allclose(aux["rewards"], [0.1, -0.05, -0.2, 0.15], atol=1e-15)


def test_weights_are_not_normalised():
    policy = jnp.zeros(4)
    labels = jnp.array([True, True, True, False])
    loss, _ = kto_loss(policy, policy, policy, policy, labels, undesirable_weight=1.2)
    assert abs(loss - 0.525) < 1e-15
    loss, _ = kto_loss(policy, policy, policy, policy, labels, desirable_weight=0.0)
    assert abs(loss - 0.125) < 1e-15


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradient_against_the_closed_form(dtype):
    """Where 1 - sigmoid or y (1 - y) would long be 0."""
    beta = 0.25
    ratio = jnp.asarray(np.linspace(-80, 80, 321) / beta, dtype)
    zero = jnp.zeros_like(ratio)
    for desirable in (True, False):
        labels = jnp.full(ratio.shape, desirable)
        loss, aux, (gradient, *_) = evaluate((ratio, zero, zero, zero, labels), beta=beta)
        x = (1 if desirable else -1) * beta * np.asarray(ratio, np.float64)
        p = np.exp(-np.logaddexp(0, -np.abs(x)))  # sigmoid(|x|)
        q = np.exp(-np.logaddexp(0, np.abs(x)))  # sigmoid(-|x|)
        wanted = -(1 if desirable else -1) * beta / ratio.size * p * q
        tolerance = 1e-12 if dtype == "float64" else 2e-5
        np.testing.assert_allclose(np.asarray(gradient, np.float64), wanted, rtol=tolerance)
        np.testing.assert_allclose(aux["losses"], np.where(x > 0, q, p), rtol=tolerance)
        assert gradient.dtype == dtype
        assert abs(loss - aux["losses"].mean()) < 1e-6


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("ratio", [1e3, 1e5])
def test_finite_far_out(dtype, ratio):
    ratios = jnp.asarray([ratio, -ratio, ratio, -ratio], dtype)
    zero = jnp.zeros_like(ratios)
    loss, aux, (gradient, *_) = evaluate((ratios, zero, zero, zero, jnp.array([True, True, False, False])), beta=1.0)
    np.testing.assert_array_equal(np.asarray(aux["losses"], np.float64), [0, 1, 1, 0])
    assert loss == 0.5
    assert not gradient.any()


def test_apo_zero_unpaired_has_no_reference_point():
    arguments, *_ = vector("plain")
    policy, reference, policy_kl, reference_kl, labels = arguments
    loss, aux, _ = evaluate(arguments, loss_type="apo_zero_unpaired")
    other, *_ = evaluate((policy, reference, policy_kl + 50, reference_kl, labels), loss_type="apo_zero_unpaired")
    margin = np.where(labels, policy - reference, reference - policy)
    assert aux["kl"] == 0
    assert abs(loss - np.mean(1 / (1 + np.exp(0.1 * margin)))) < 1e-15
    assert loss == other


log_probs = st.floats(-60, 0)


@given(st.lists(st.tuples(log_probs, log_probs, log_probs, log_probs, st.booleans()), min_size=5, max_size=5), st.data())
@settings(max_examples=25, deadline=None)
def test_invariants(rows, data):
    *values, labels = (jnp.asarray(column) for column in zip(*rows, strict=True))
    policy, reference, policy_kl, reference_kl = values
    loss, aux = kto_loss(*values, labels, beta=0.3)
    # Exchanged labels at the same z: what was l is w - l.
    _, flipped = kto_loss(*values, ~labels, beta=0.3)
    np.testing.assert_allclose(aux["losses"] + flipped["losses"], 1.0, atol=1e-14)
    # A constant added to both log-probs of a row cancels.
    a, b = data.draw(st.floats(-40, 40)), data.draw(st.floats(-40, 40))
    shifted, _ = kto_loss(policy + a, reference + a, policy_kl + b, reference_kl + b, labels, beta=0.3)
    assert abs(shifted - loss) < 1e-12
    # Order does not matter.
    order = jnp.asarray(data.draw(st.permutations(range(len(rows)))))
    permuted, _ = kto_loss(*(v[order] for v in values), labels[order], beta=0.3)
    assert abs(permuted - loss) < 1e-12
    # Bounds, and the way down.
    gradient = jax.grad(lambda p: kto_loss(p, reference, policy_kl, reference_kl, labels, beta=0.3)[0])(policy)
    assert np.all(np.where(labels, gradient <= 0, gradient >= 0))
    assert np.abs(gradient).max() <= 0.3 / (4 * len(rows)) + 1e-15
    assert abs(aux["kl"] - max(0.0, np.mean(policy_kl - reference_kl))) < 1e-12


@pytest.mark.parametrize("labels", [[1, 0], [1.0, 0.0], ["True", "False"]])
def test_labels_must_be_boolean(labels):
    x = jnp.zeros(2)
    with pytest.raises(TypeError):
        kto_loss(x, x, x, x, labels)


def test_other_misuse():
    x, labels = jnp.zeros(2), jnp.array([True, False])
    with pytest.raises(ValueError, match="hinge"):
        kto_loss(x, x, x, x, labels, loss_type="hinge")
    for bad in (jnp.zeros((2, 1)), jnp.zeros(1), jnp.zeros(())):  # would be broadcast
        for place in range(4):
            vectors = [x] * 4
            vectors[place] = bad
            with pytest.raises(ValueError, match="shape"):
                kto_loss(*vectors, labels)


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_float64_numpy_in_and_out_without_x64(loss_type):
    arguments, _, wanted, _ = vector("plain")
    arguments = [np.asarray(a) for a in arguments]
    inside = float(kto_loss(*arguments, loss_type=loss_type)[0])
    with jax.enable_x64(False):
        loss, aux = kto_loss(*arguments, loss_type=loss_type)
        assert loss.dtype == aux["kl"].dtype == aux["losses"].dtype == np.float64
        assert abs(loss - inside) < 1e-15
        assert loss_type != "kto" or abs(loss - wanted) < 1e-12
        single, _ = kto_loss(*(a.astype(np.float32) if a.dtype == np.float64 else a for a in arguments))
        assert single.dtype == np.float32


@given(st.integers(1, 8), st.floats(0.01, 0.5), st.sampled_from(["kto", "apo_zero_unpaired"]), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_gradients_against_finite_differences(size, beta, loss_type, seed):
    rng = np.random.default_rng(seed)
    policy, reference, policy_kl, reference_kl = rng.uniform(-30, -1, (4, size))
    labels = rng.random(size) < 0.5
    options = {"beta": beta, "desirable_weight": 1.3, "undesirable_weight": 0.7, "loss_type": loss_type}
    _, _, (gradient, *_) = evaluate((policy, reference, policy_kl, reference_kl, jnp.asarray(labels)), **options)
    h = 1e-5
    for i, step in enumerate(np.eye(size) * h):
        up, down = (kto_loss(policy + s, reference, policy_kl, reference_kl, labels, **options)[0] for s in (step, -step))
        assert abs((up - down) / (2 * h) - gradient[i]) < 1e-9
