"""Kahneman-Tversky Optimization (KTO; Ethayarajh et al. 2024, arXiv:2402.01306): the loss as a
function of four vectors of log-probs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emjax.config.names import LOSS_TYPES


@jax.custom_jvp
def _sigmoid_minus(x: jax.Array) -> jax.Array:
    """sigmoid(-x). Its derivative is computed as -sigmoid(x) sigmoid(-x). The usual y (1 - y) is
    exactly 0 in float32 for |x| >= 17, which would stop learning from a confident mistake."""
    return jax.nn.sigmoid(-x)


@_sigmoid_minus.defjvp
def _sigmoid_minus_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return jax.nn.sigmoid(-x), -jax.nn.sigmoid(x) * jax.nn.sigmoid(-x) * dx


def example_losses(
    ratios_B: jax.Array,
    z: jax.Array,
    desirable_B: jax.Array,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> jax.Array:
    """w_i sigmoid(-beta s_i (r_i - z)), [B]; r in nats, s = +1 for desirable and -1 for undesirable
    examples. z is treated as a constant."""
    margin_B = beta * (ratios_B - jax.lax.stop_gradient(z))
    weights_B = jnp.where(desirable_B, desirable_weight, undesirable_weight)
    return weights_B * _sigmoid_minus(jnp.where(desirable_B, margin_B, -margin_B))


def reference_point(ratio_sum: jax.Array, count: jax.Array) -> jax.Array:
    """z = max(0, mean log-ratio of mismatched pairs). The clamp is applied after the mean over the
    whole batch."""
    return jnp.maximum(ratio_sum / count, 0.0)


def kto_loss(
    policy: jax.Array,
    reference: jax.Array,
    policy_kl: jax.Array,
    reference_kl: jax.Array,
    desirable: jax.Array,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    loss_type: str = "kto",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean loss over [B] examples, and aux: kl (z, nats), losses [B], rewards [B] = beta r.

    `policy`, `reference`: sequence log-probs of (x_i, y_i); `policy_kl`, `reference_kl`: of (x_i,
    y_j), where j is another example. `desirable` is boolean. loss_type "apo_zero_unpaired"
    (D'Oosterlinck et al. 2024, arXiv:2408.06266) is the same loss with z = 0. float64 numpy arrays
    give float64 numpy results, regardless of jax_enable_x64.
    """
    given = (policy, reference, policy_kl, reference_kl)
    if any(isinstance(x, np.ndarray) and x.dtype == np.float64 for x in given) and not jax.config.read("jax_enable_x64"):
        options: dict[str, Any] = {
            "beta": beta,
            "desirable_weight": desirable_weight,
            "undesirable_weight": undesirable_weight,
            "loss_type": loss_type,
        }
        with jax.enable_x64(True):
            return jax.device_get(kto_loss(*given, desirable, **options))
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type {loss_type!r} is unknown; choose {', '.join(LOSS_TYPES)}")
    policy, reference, policy_kl, reference_kl, desirable = map(jnp.asarray, (*given, desirable))
    if desirable.dtype != jnp.bool_:
        raise TypeError(f"desirable must be boolean, not {desirable.dtype}")
    shapes = {jnp.shape(x) for x in (policy, reference, policy_kl, reference_kl, desirable)}
    if len(shapes) != 1 or len(shapes.pop()) != 1:  # [B] against [B, 1] would be broadcast
        raise ValueError("the four log-probs and desirable must all have the shape [B]")
    ratios_B = policy - reference
    z = reference_point(jnp.sum(policy_kl - reference_kl), jnp.asarray(desirable.size, ratios_B.dtype))
    z = jax.lax.stop_gradient(z if loss_type == "kto" else jnp.zeros_like(z))
    losses_B = example_losses(
        ratios_B,
        z,
        desirable,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )
    return losses_B.mean(), {"kl": z, "losses": losses_B, "rewards": beta * jax.lax.stop_gradient(ratios_B)}
