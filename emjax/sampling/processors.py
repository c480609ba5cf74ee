"""From logits to tokens: temperature, filters, noise, log-probs; each row by its own settings and key."""

import dataclasses
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
    top_logprobs_B: Any  # 0 = none wanted
    seed_Bx2: Any  # uint32: the data of jax.random.key(seed), high word first


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """One token a row. N = TOP_LOGPROBS, or the vocabulary where that is smaller."""

    token_B: Any
    logprob_B: Any
    top_id_BxN: Any
    top_logprob_BxN: Any


def sample(logits_BxV: jax.Array, rows: Rows, count_B: jax.Array, live_B: jax.Array, vocabulary: int) -> Drawn:
    """Draws every row's `count`-th token by Gumbel-max; ids >= vocabulary are never drawn.

    The key is fold_in(key(seed), count), so a row's noise depends on nothing but its seed and its position.
    Log-probs are of the raw float32 logits over the full vocabulary. Sorting, noise and top log-probs run
    only in steps in which a live row needs them. They stand behind `cond` in the one program, not in programs
    of their own: so the logits of a row come from the same machine code whatever its neighbours ask for.
    """
    B, V = logits_BxV.shape
    log_z_B = jax.nn.logsumexp(logits_BxV, axis=-1)
    allowed_BxV = jnp.where(jnp.arange(V) < vocabulary, logits_BxV, -jnp.inf)
    greedy_B = rows.temperature_B == 0
    scaled_BxV = allowed_BxV / jnp.where(greedy_B, 1.0, rows.temperature_B)[:, None]

    filtered_B = live_B & ~greedy_B & ((rows.top_k_B > 0) | (rows.top_p_B < 1) | (rows.min_p_B > 0))
    scaled_BxV = jax.lax.cond(jnp.any(filtered_B), lambda x: _filter(x, rows), lambda x: x, scaled_BxV)

    def noise() -> jax.Array:
        keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(rows.seed_Bx2, impl="threefry2x32"), count_B)
        return jax.vmap(lambda key: jax.random.gumbel(key, (V,), jnp.float32))(keys_B)

    noise_BxV = jax.lax.cond(jnp.any(live_B & ~greedy_B), noise, lambda: jnp.zeros((B, V), jnp.float32))
    token_B = jnp.argmax(jnp.where(greedy_B[:, None], allowed_BxV, scaled_BxV + noise_BxV), axis=-1).astype(jnp.int32)
    logprob_B = jnp.take_along_axis(logits_BxV, token_B[:, None], axis=-1)[:, 0] - log_z_B

    def top() -> tuple[jax.Array, jax.Array]:
        values_BxN, ids_BxN = jax.lax.top_k(logits_BxV, min(TOP_LOGPROBS, V))
        return ids_BxN.astype(jnp.int32), values_BxN - log_z_B[:, None]

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(top))
    top_id_BxN, top_logprob_BxN = jax.lax.cond(jnp.any(live_B & (rows.top_logprobs_B > 0)), top, lambda: nothing)
    return Drawn(token_B, logprob_B, top_id_BxN, top_logprob_BxN)


def _filter(scaled_BxV: jax.Array, rows: Rows) -> jax.Array:
    """Top-k, top-p of what is left, min-p; tokens that fall out become -inf. Ties at a threshold stay in."""
    V = scaled_BxV.shape[-1]
    sorted_BxV = -jnp.sort(-scaled_BxV, axis=-1)
    k_B = jnp.where(rows.top_k_B > 0, jnp.minimum(rows.top_k_B, V), V)
    inside_BxV = jnp.arange(V) < k_B[:, None]
    kept_BxV = jnp.where(inside_BxV, sorted_BxV, -jnp.inf)
    p_BxV = jax.nn.softmax(kept_BxV, axis=-1)
    # The smallest set that reaches top_p: a token stays while those before it have not reached it.
    before_BxV = jnp.cumsum(p_BxV, axis=-1) - p_BxV
    inside_BxV &= (before_BxV < rows.top_p_B[:, None]) | (rows.top_p_B >= 1)[:, None]
    last_B = jnp.min(jnp.where(inside_BxV, sorted_BxV, jnp.inf), axis=-1)
    floor_B = sorted_BxV[:, 0] + jnp.log(rows.min_p_B)
    return jnp.where(scaled_BxV >= jnp.maximum(last_B, floor_B)[:, None], scaled_BxV, -jnp.inf)
