"""From logits to tokens: temperature, filters, noise and log-probs.

Each row has its own settings and key.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

TOP_LOGPROBS = 20  # the most alternatives a request may ask for


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """The sampling settings of B rows, as arrays: numpy's on the host, jax's under jit."""

    temperature_B: Any  # 0 = greedy
    top_p_B: Any  # 1 = off
    min_p_B: Any  # 0 = off
    top_k_B: Any  # 0 = off
    top_logprobs_B: Any  # 0 = none
    seed_Bx2: Any  # uint32: the data of jax.random.key(seed), high word first


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """One token per row. N = TOP_LOGPROBS, or the vocabulary size if that is smaller."""

    token_B: Any
    logprob_B: Any
    top_id_BxN: Any
    top_logprob_BxN: Any


def sample(logits_BxV: jax.Array, rows: Rows, count_B: jax.Array, live_B: jax.Array, vocabulary: int) -> Drawn:
    """Draws every row's `count`-th token by Gumbel-max; never draws ids >= vocabulary.

    The key is fold_in(key(seed), count), so a row's noise depends only on its seed and its
    position. Log-probs are of the raw float32 logits over the full vocabulary. Filters, noise and
    top log-probs run only in steps in which a live row needs them. They are branches of `cond` in
    the one program, not separate programs, so a row's logits come from the same machine code
    whatever its neighbours ask for.
    """
    V = logits_BxV.shape[-1]
    log_z_B = jax.nn.logsumexp(logits_BxV, axis=-1)
    greedy_B = rows.temperature_B == 0

    # Branches take the logits as they are and return one value per row: any other input or output
    # would be written to memory.
    def allowed() -> jax.Array:
        return jnp.where(jnp.arange(V) < vocabulary, logits_BxV, -jnp.inf)

    def draw() -> jax.Array:
        temperature_B = jnp.where(greedy_B, 1.0, rows.temperature_B)

        def scaled() -> jax.Array:
            return allowed() / temperature_B[:, None]

        floor_B = _floor(scaled, rows, live_B & ~greedy_B, V)
        kept_BxV = jnp.where(scaled() >= floor_B[:, None], scaled(), -jnp.inf)
        keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(rows.seed_Bx2, impl="threefry2x32"), count_B)
        noise_BxV = jax.vmap(lambda key: jax.random.gumbel(key, (V,), jnp.float32))(keys_B)
        return jnp.argmax(jnp.where(greedy_B[:, None], allowed(), kept_BxV + noise_BxV), axis=-1)

    token_B = jax.lax.cond(jnp.any(live_B & ~greedy_B), draw, lambda: jnp.argmax(allowed(), axis=-1)).astype(jnp.int32)
    logprob_B = jnp.take_along_axis(logits_BxV, token_B[:, None], axis=-1)[:, 0] - log_z_B

    def top() -> tuple[jax.Array, jax.Array]:
        values_BxN, ids_BxN = jax.lax.top_k(logits_BxV, min(TOP_LOGPROBS, V))
        return ids_BxN.astype(jnp.int32), values_BxN - log_z_B[:, None]

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(top))
    top_id_BxN, top_logprob_BxN = jax.lax.cond(jnp.any(live_B & (rows.top_logprobs_B > 0)), top, lambda: nothing)
    return Drawn(token_B, logprob_B, top_id_BxN, top_logprob_BxN)


def _floor(scaled: Callable[[], jax.Array], rows: Rows, drawing_B: jax.Array, V: int) -> jax.Array:
    """The lowest logit that each row keeps after top-k, top-p of the rest, and min-p.

    Ties at a threshold are kept. Bisection over the 32 bits of a float finds the thresholds of
    top-k and top-p: it is exact, and takes 32 passes over the logits instead of a sort of the
    vocabulary.
    """
    k_B, p_B = jnp.where(rows.top_k_B > 0, jnp.minimum(rows.top_k_B, V), V), rows.top_p_B

    def none() -> jax.Array:
        return jnp.full(k_B.shape, -jnp.inf, jnp.float32)

    def top_k() -> jax.Array:
        return jnp.where(k_B < V, _largest(scaled(), jnp.ones((len(k_B), V), jnp.float32), k_B), -jnp.inf)

    def filters() -> jax.Array:
        floor_B = jax.lax.cond(jnp.any(drawing_B & (k_B < V)), top_k, none)

        def top_p() -> jax.Array:
            # The smallest set that reaches top_p.
            kept_BxV = jnp.where(scaled() >= floor_B[:, None], scaled(), -jnp.inf)
            return jnp.where(p_B < 1, _largest(kept_BxV, jax.nn.softmax(kept_BxV, axis=-1), p_B), -jnp.inf)

        floor_B = jnp.maximum(floor_B, jax.lax.cond(jnp.any(drawing_B & (p_B < 1)), top_p, none))
        return jnp.maximum(floor_B, jnp.max(scaled(), axis=-1) + jnp.log(rows.min_p_B))

    return jax.lax.cond(jnp.any(drawing_B & ((k_B < V) | (p_B < 1) | (rows.min_p_B > 0))), filters, none)


def _largest(x_BxV: jax.Array, weight_BxV: jax.Array, goal_B: jax.Array) -> jax.Array:
    """The largest t of x's values with sum(weight where x >= t) >= goal; -inf if there is none."""
    bits_BxV = jax.lax.bitcast_convert_type(x_BxV, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # Unsigned integers in the floats' order.
    key_BxV = jnp.where(bits_BxV & sign, ~bits_BxV, bits_BxV | sign)

    def bit(i: jax.Array, found_B: jax.Array) -> jax.Array:
        tried_B = found_B | (sign >> i.astype(jnp.uint32))
        sum_B = jnp.sum(jnp.where(key_BxV >= tried_B[:, None], weight_BxV, 0.0), axis=-1)
        return jnp.where(sum_B >= goal_B, tried_B, found_B)

    found_B = jax.lax.fori_loop(0, 32, bit, jnp.zeros(x_BxV.shape[:1], jnp.uint32))
    value_B = jax.lax.bitcast_convert_type(jnp.where(found_B & sign, found_B ^ sign, ~found_B), jnp.float32)
    return jnp.where(found_B == 0, -jnp.inf, value_B)
