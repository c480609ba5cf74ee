"""Attention by name. A kernel that cannot serve a shape raises; it is never swapped for another."""

from typing import Any

import jax
import jax.numpy as jnp

from emjax.errors import UserError

IMPLEMENTATIONS = ("xla", "cudnn")


def _known(implementation: str, q: jax.Array) -> str:
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"attention {implementation!r} is unknown; choose 'xla' or 'cudnn'.")
    h = q.shape[-1]
    if implementation == "cudnn" and (q.dtype not in (jnp.bfloat16, jnp.float16) or h % 8 or h > 256):
        raise UserError(
            f"attention 'cudnn' cannot serve head size {h} in {q.dtype}: it needs bfloat16 or float16 and a "
            "head size that is a multiple of 8, at most 256. Choose attention='xla'."
        )
    return implementation


def causal(q_BxTxHxh: jax.Array, k_BxTxKxh: jax.Array, v_BxTxKxh: jax.Array, implementation: str) -> jax.Array:
    """Causal self-attention over right-padded rows, [B, T, H, h].

    Padding stands to the right, so causality alone keeps it from every real position and no mask is needed
    (cuDNN's masked backward pass has known errors; reference: pytorch #196678).
    """
    kernel: Any = _known(implementation, q_BxTxHxh)
    return jax.nn.dot_product_attention(q_BxTxHxh, k_BxTxKxh, v_BxTxKxh, is_causal=True, implementation=kernel)


def chunk_over_cache(
    q_RxCxHxh: jax.Array, k_RxKxSxh: jax.Array, v_RxKxSxh: jax.Array, start_R: jax.Array, implementation: str
) -> jax.Array:
    """Queries at positions start, ..., start + C - 1 over a cache that holds these and all before, [R, C, H, h].

    What stands behind a query has weight 0, so it must be finite and may be anything. Forward pass only.
    """
    kernel: Any = _known(implementation, q_RxCxHxh)
    C, S = q_RxCxHxh.shape[1], k_RxKxSxh.shape[2]
    position_RxC = start_R[:, None] + jnp.arange(C)
    mask_Rx1xCxS = jnp.arange(S) <= position_RxC[:, None, :, None]
    return jax.nn.dot_product_attention(
        q_RxCxHxh, k_RxKxSxh.swapaxes(1, 2), v_RxKxSxh.swapaxes(1, 2), mask=mask_Rx1xCxS, implementation=kernel
    )


def over_cache(q_BxHxh: jax.Array, k_BxKxSxh: jax.Array, v_BxKxSxh: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """One query a row over the first `lengths` positions of its cache, [B, H, h]; scores and softmax in float32.

    Heads stand before positions in the cache, so that both products are plain batched matmuls over contiguous [S, h]; with
    positions first the compiler copies the whole cache in every step (5x slower on CPU).
    """
    B, H, h = q_BxHxh.shape
    K, S = k_BxKxSxh.shape[1:3]
    q_BxKxGxh = q_BxHxh.reshape(B, K, H // K, h)
    scores_BxKxGxS = jnp.einsum("bkgh,bksh->bkgs", q_BxKxGxh, k_BxKxSxh, preferred_element_type=jnp.float32) * h**-0.5
    inside_BxS = jnp.arange(S)[None, :] < lengths_B[:, None]
    scores_BxKxGxS = jnp.where(inside_BxS[:, None, None, :], scores_BxKxGxS, -jnp.inf)
    weights_BxKxGxS = jax.nn.softmax(scores_BxKxGxS, axis=-1).astype(v_BxKxSxh.dtype)
    return jnp.einsum("bkgs,bksh->bkgh", weights_BxKxGxS, v_BxKxSxh).reshape(B, H, h)
