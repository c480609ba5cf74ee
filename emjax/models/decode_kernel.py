"""The attention of one decode step as a GPU kernel.

The kernel writes each row's new key and value and reads the row's cache only up to its own length.
The compiler's version (`attention.over_cache`) reads every position of the cache, whatever the rows
need, and writes the new position in separate calls. Here each (row, kv head) is one program, so a
row's cost and result depend only on its own length: the program reads blocks of fixed size from
position 0 on and combines them in that order.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

BLOCK = 64  # positions per read
MIN_ROWS = 16  # rows of a matrix unit's tile; a group of query heads is padded to it


def _program(
    length_ref: Any, active_ref: Any, heads_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, k_out_ref: Any, v_out_ref: Any,
    *, block: int, groups: int,
) -> None:  # fmt: skip
    """heads [H + 2 K, h] and out [H, h] of one row, and the caches [S, h] of its kv head.

    k_out shares k's memory, and v_out shares v's.
    """
    H, h = out_ref.shape
    K, kv = H // groups, pl.program_id(0)
    rows = max(MIN_ROWS, pl.next_power_of_2(groups))
    own_heads, inside_Gx1 = pl.ds(kv * groups, rows), (jnp.arange(rows) < groups)[:, None]
    length, active = length_ref[...], active_ref[...]
    q_Gxh = triton.load(heads_ref.at[own_heads, :], mask=inside_Gx1, other=0.0)
    new_k_h, new_v_h = heads_ref[H + kv, :], heads_ref[H + K + kv, :]
    write = jnp.full((h,), active)
    triton.store(k_out_ref.at[length, :], new_k_h, mask=write)
    triton.store(v_out_ref.at[length, :], new_v_h, mask=write)

    # The softmax uses powers of 2, which the hardware provides. The new position comes from the
    # inputs, so no read waits for a write.
    scale = h**-0.5 / math.log(2)
    score_G = jnp.sum(q_Gxh.astype(jnp.float32) * new_k_h.astype(jnp.float32)[None, :], axis=1) * scale
    start = (jnp.broadcast_to(new_v_h.astype(jnp.float32)[None, :], (rows, h)), score_G, jnp.ones_like(score_G))

    def body(i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        out_Gxh, best_G, sum_G = carry
        read, inside_S = pl.ds(i * block, block), i * block + jnp.arange(block) < length
        k_Sxh = triton.load(k_ref.at[read, :], mask=inside_S[:, None], other=0.0)
        v_Sxh = triton.load(v_ref.at[read, :], mask=inside_S[:, None], other=0.0)
        score_GxS = jnp.where(inside_S[None, :], triton.dot(q_Gxh, k_Sxh.T) * scale, -jnp.inf)
        new_best_G = jnp.maximum(best_G, jnp.max(score_GxS, axis=1))
        weight_GxS = jnp.exp2(score_GxS - new_best_G[:, None])
        shrink_G = jnp.exp2(best_G - new_best_G)
        out_Gxh = out_Gxh * shrink_G[:, None] + triton.dot(weight_GxS.astype(v_Sxh.dtype), v_Sxh)
        return out_Gxh, new_best_G, sum_G * shrink_G + jnp.sum(weight_GxS, axis=1)

    # An inactive row reads nothing.
    out_Gxh, _, sum_G = jax.lax.fori_loop(0, pl.cdiv(jnp.where(active, length, 0), block), body, start)
    triton.store(out_ref.at[own_heads, :], (out_Gxh / sum_G[:, None]).astype(out_ref.dtype), mask=inside_Gx1)


def attend(
    q_BxHxh: jax.Array,
    new_k_BxKxh: jax.Array,
    new_v_BxKxh: jax.Array,
    k_BxKxSxh: jax.Array,
    v_BxKxSxh: jax.Array,
    length_B: jax.Array,
    active_B: jax.Array,
    *,
    block: int = BLOCK,
    warps: int = 4,
    stages: int = 3,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(out_BxHxh, k_BxKxSxh, v_BxKxSxh): attention to `length` positions and to the new one.

    Writes the new position at index `length` of the caches, in place. Inactive rows write nothing,
    and their output has no meaning.
    """
    B, H, h = q_BxHxh.shape
    K, S = k_BxKxSxh.shape[1:3]
    # The compiler produces one array in one call, which includes the rotation of queries and keys.
    heads_BxNxh = jnp.concatenate([q_BxHxh, new_k_BxKxh, new_v_BxKxh], axis=1)
    one = pl.BlockSpec((None,), lambda k, b: (b,))
    cache = pl.BlockSpec((None, None, S, h), lambda k, b: (b, k, 0, 0))

    def row(heads: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, heads, h), lambda k, b: (b, 0, 0))

    return pl.pallas_call(
        functools.partial(_program, block=block, groups=H // K),
        grid=(K, B),  # a row's heads are adjacent, so concurrent programs read adjacent memory
        in_specs=[one, one, row(H + 2 * K), cache, cache],
        out_specs=[row(H), cache, cache],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BxHxh, k_BxKxSxh, v_BxKxSxh)],
        input_output_aliases={3: 1, 4: 2},
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name="decode_attention",
    )(length_B, active_B, heads_BxNxh, k_BxKxSxh, v_BxKxSxh)
