"""Attention kernels, chosen by name.

A kernel that does not support a shape raises UserError; another kernel never replaces it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from emjax.config.names import ATTENTION
from emjax.errors import UserError
from emjax.models import decode_kernel


def causal(
    q_BxTxHxh: jax.Array, k_BxTxKxh: jax.Array, v_BxTxKxh: jax.Array, implementation: str, mesh: Mesh | None = None
) -> jax.Array:
    """Causal self-attention over right-padded rows, [B, T, H, h].

    Padding is on the right, so the causal mask alone hides it from every real position and no
    padding mask is needed (cuDNN's masked backward pass has known errors; reference: pytorch
    #196678). `mesh`: the mesh that the arrays are sharded over. Only splash uses it, because the
    compiler cannot partition that kernel by itself.
    """
    if implementation == "xla":
        return jax.nn.dot_product_attention(q_BxTxHxh, k_BxTxKxh, v_BxTxKxh, is_causal=True, implementation="xla")
    if implementation == "cudnn":
        h = q_BxTxHxh.shape[-1]
        if q_BxTxHxh.dtype not in (jnp.bfloat16, jnp.float16) or h % 8 or h > 256:
            raise UserError(
                f"attention 'cudnn' does not support head size {h} in {q_BxTxHxh.dtype}: it needs bfloat16 or float16 and "
                "a head size that is a multiple of 8, at most 256. Choose attention='xla'."
            )
        return jax.nn.dot_product_attention(q_BxTxHxh, k_BxTxKxh, v_BxTxKxh, is_causal=True, implementation="cudnn")
    if implementation == "splash":
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        if platform != "tpu":
            raise UserError(f"attention 'splash' is a TPU kernel, but this is a {platform}. Choose attention='xla' or 'cudnn'.")
        return splash(q_BxTxHxh, k_BxTxKxh, v_BxTxKxh, mesh)
    raise UserError(f"attention {implementation!r} is unknown; choose {', '.join(ATTENTION)}.")


def splash(
    q_BxTxHxh: jax.Array, k_BxTxKxh: jax.Array, v_BxTxKxh: jax.Array, mesh: Mesh | None = None, *, interpret: bool = False
) -> jax.Array:
    """`causal` with JAX's splash kernel; rows are sharded over data and fsdp, heads over tensor.

    `interpret` emulates the kernel.
    """
    _, T, H, h = q_BxTxHxh.shape
    if T % 128 or h % 64:
        raise UserError(
            f"attention 'splash' does not support rows of {T} tokens with head size {h}: the row length must be a multiple "
            "of 128 and the head size a multiple of 64. Make every length in config.train.buckets a multiple of 128, or "
            "choose attention='xla'."
        )
    block = next(b for b in (2048, 1024, 512, 256, 128) if T % b == 0)
    compute = min(block, 512)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=compute,
        block_kv=block,
        block_kv_compute=compute,
        block_q_dkv=compute,
        block_kv_dkv=block,
        block_kv_dkv_compute=compute,
        use_fused_bwd_kernel=True,
    )

    def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((T, T))] * q.shape[2])
        kernel = splash_attention_kernel.make_splash_mha(
            mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )
        # The kernel does not scale the queries.
        q, k, v = (x.swapaxes(1, 2) for x in (q * h**-0.5, k, v))
        return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)

    if mesh is None:
        return local(q_BxTxHxh, k_BxTxKxh, v_BxTxKxh)
    spec = P(("data", "fsdp"), None, "tensor")
    # The kernel does not declare which axes its outputs vary over, so the check is off.
    spread = functools.partial(jax.shard_map, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)
    return spread(local)(q_BxTxHxh, k_BxTxKxh, v_BxTxKxh)


# Splash has no kernels for sampling and scoring; on TPUs these use the compiler's own attention.
_WITH_CACHE: dict[str, Any] = {"xla": "xla", "splash": "xla", "cudnn": "cudnn"}


def after(
    q_BxCxHxh: jax.Array,
    k_BxCxKxh: jax.Array,
    v_BxCxKxh: jax.Array,
    k_BxTxKxh: jax.Array,
    v_BxTxKxh: jax.Array,
    lengths_B: jax.Array,
    implementation: str,
) -> jax.Array:
    """Attention of C positions to themselves, causally, and to earlier positions.

    The earlier ones are the first `lengths` (>= 1) of T. Computes the two parts separately and
    combines them by their softmax normalisers, so it builds no [C, T] mask. For passes without
    gradients.
    """
    attend = functools.partial(jax.nn.dot_product_attention, implementation=_WITH_CACHE[implementation], return_residual=True)
    own, own_norm_BxCxH = attend(q_BxCxHxh, k_BxCxKxh, v_BxCxKxh, is_causal=True)
    before, before_norm_BxCxH = attend(q_BxCxHxh, k_BxTxKxh, v_BxTxKxh, key_value_seq_lengths=lengths_B)
    share_BxCxHx1 = jax.nn.sigmoid(before_norm_BxCxH - own_norm_BxCxH)[..., None]
    return (share_BxCxHx1 * before + (1 - share_BxCxHx1) * own).astype(q_BxCxHxh.dtype)


def chunk_over_cache(
    q_RxCxHxh: jax.Array, k_RxKxSxh: jax.Array, v_RxKxSxh: jax.Array, start_R: jax.Array, implementation: str
) -> jax.Array:
    """Attention of queries at positions start, ..., start + C - 1 over a cache, [R, C, H, h].

    The cache holds these positions and all earlier ones. Later positions have weight 0, so they may
    hold any finite values. Forward pass only.
    """
    C, S = q_RxCxHxh.shape[1], k_RxKxSxh.shape[2]
    position_RxC = start_R[:, None] + jnp.arange(C)
    mask_Rx1xCxS = jnp.arange(S) <= position_RxC[:, None, :, None]
    return jax.nn.dot_product_attention(
        q_RxCxHxh,
        k_RxKxSxh.swapaxes(1, 2),
        v_RxKxSxh.swapaxes(1, 2),
        mask=mask_Rx1xCxS,
        implementation=_WITH_CACHE[implementation],
    )


def decode(
    q_BxHxh: jax.Array,
    new_k_BxKxh: jax.Array,
    new_v_BxKxh: jax.Array,
    cache: tuple[jax.Array, jax.Array],
    length_B: jax.Array,
    active_B: jax.Array,
    implementation: str,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Attention of one query per row to the row's cache, up to `length`, and to the new position.

    Returns (the output [B, H, h], the caches with the new position, each [B, K, S, h]). Inactive
    rows write nothing, and their output has no meaning.

    'cudnn' uses our own kernel (decode_kernel), which reads only the positions that a row has; the
    other names use the compiler's attention.
    """
    B, H, h = q_BxHxh.shape
    k_BxKxSxh, v_BxKxSxh = cache
    if implementation != "cudnn":
        # Index the heads as well: with a window of [heads, h] the TPU compiler puts positions
        # before heads and copies the whole cache.
        at = (
            jnp.arange(B)[:, None],
            jnp.arange(k_BxKxSxh.shape[1]),
            jnp.where(active_B, length_B, k_BxKxSxh.shape[2])[:, None],
        )
        k_BxKxSxh = k_BxKxSxh.at[at].set(new_k_BxKxh, mode="drop", unique_indices=True)
        v_BxKxSxh = v_BxKxSxh.at[at].set(new_v_BxKxh, mode="drop", unique_indices=True)
        return over_cache(q_BxHxh, k_BxKxSxh, v_BxKxSxh, length_B + 1), (k_BxKxSxh, v_BxKxSxh)
    if q_BxHxh.dtype not in (jnp.bfloat16, jnp.float16) or h < 16 or h & (h - 1):
        raise UserError(
            f"attention 'cudnn' cannot decode head size {h} in {q_BxHxh.dtype}: it needs bfloat16 or float16 and a head size "
            "that is a power of two, at least 16. Choose attention='xla'."
        )
    kernel = decode_kernel.attend
    if mesh is not None:
        rows, heads = P(("data", "fsdp")), P(("data", "fsdp"), "tensor")
        inputs, outputs = (heads,) * 5 + (rows,) * 2, (heads,) * 3
        # As for splash, the check is off.
        kernel = jax.shard_map(kernel, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
    out_BxHxh, k_BxKxSxh, v_BxKxSxh = kernel(q_BxHxh, new_k_BxKxh, new_v_BxKxh, k_BxKxSxh, v_BxKxSxh, length_B, active_B)
    return out_BxHxh, (k_BxKxSxh, v_BxKxSxh)


def over_cache(q_BxHxh: jax.Array, k_BxKxSxh: jax.Array, v_BxKxSxh: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Attention of one query per row to the first `lengths` positions of its cache, [B, H, h].

    Scores and softmax are float32. In the cache, heads come before positions, so both products are
    plain batched matmuls over contiguous [S, h]. With positions first, the compiler copies the
    whole cache in every step (5x slower on CPU).
    """
    B, H, h = q_BxHxh.shape
    K, S = k_BxKxSxh.shape[1:3]
    q_BxKxGxh = q_BxHxh.reshape(B, K, H // K, h)
    scores_BxKxGxS = jnp.einsum("bkgh,bksh->bkgs", q_BxKxGxh, k_BxKxSxh, preferred_element_type=jnp.float32) * h**-0.5
    inside_BxS = jnp.arange(S)[None, :] < lengths_B[:, None]
    scores_BxKxGxS = jnp.where(inside_BxS[:, None, None, :], scores_BxKxGxS, -jnp.inf)
    weights_BxKxGxS = jax.nn.softmax(scores_BxKxGxS, axis=-1).astype(v_BxKxSxh.dtype)
    return jnp.einsum("bkgs,bksh->bkgh", weights_BxKxGxS, v_BxKxSxh).reshape(B, H, h)
