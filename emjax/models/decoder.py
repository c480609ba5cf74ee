"""One decoder for Llama 3.x, Qwen2.5 and Qwen3.

The weights are declared once, as NNX modules whose parameters carry their logical axes. After
`nnx.split` a model is a plain tree of arrays, and everything here is a pure function of it. Layers
are stacked [L, ...]: `forward` scans them; the sampler applies the same `block` to unstacked
layers.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emjax.errors import UserError
from emjax.models import attention, rope
from emjax.models.config import ModelConfig
from emjax.models.lora import Adapter, linears

Params = dict[str, Any]
# attend(q_BxTxHxh, k_BxTxKxh, v_BxTxKxh) -> (out_BxTxHxh, what the caller keeps of this layer)
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class Layers(nnx.Module):
    """All L transformer blocks; each weight is stacked on a leading layer axis.

    Matrices are [in, out].
    """

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        L, D, F = config.L, config.D, config.F
        query, kv = config.H * config.h, config.K * config.h

        def matrix(fan_in: int, fan_out: int, axes: tuple[str, str]) -> nnx.Param:
            value = jax.random.normal(rngs.params(), (L, fan_in, fan_out), jnp.float32) * config.init_std
            return nnx.Param(value.astype(dtype), axes=("layers", *axes))

        def vector(size: int, fill: float, axis: str | None) -> nnx.Param:
            return nnx.Param(jnp.full((L, size), fill, dtype), axes=("layers", axis))

        self.attn_norm = vector(D, 1.0, None)
        self.q = matrix(D, query, ("embed", "heads"))
        self.k = matrix(D, kv, ("embed", "kv_heads"))
        self.v = matrix(D, kv, ("embed", "kv_heads"))
        self.o = matrix(query, D, ("heads", "embed"))
        if config.qkv_bias:
            self.q_bias = vector(query, 0.0, "heads")
            self.k_bias = vector(kv, 0.0, "kv_heads")
            self.v_bias = vector(kv, 0.0, "kv_heads")
        if config.qk_norm:
            self.q_norm = vector(config.h, 1.0, None)
            self.k_norm = vector(config.h, 1.0, None)
        self.mlp_norm = vector(D, 1.0, None)
        self.gate = matrix(D, F, ("embed", "ffn"))
        self.up = matrix(D, F, ("embed", "ffn"))
        self.down = matrix(F, D, ("ffn", "embed"))


class Decoder(nnx.Module):
    """The model's weights: embedding [V, D], stacked layers, final norm [D] and head [D, V].

    A tied model has no head.
    """

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        def table(shape: tuple[int, int], axes: tuple[str, str]) -> nnx.Param:
            value = jax.random.normal(rngs.params(), shape, jnp.float32) * config.init_std
            return nnx.Param(value.astype(dtype), axes=axes)

        self.embed = table((config.V, config.D), ("vocab", "embed"))
        self.layers = Layers(config, dtype, rngs)
        self.final_norm = nnx.Param(jnp.ones((config.D,), dtype), axes=(None,))
        if not config.tied:
            self.head = table((config.D, config.V), ("embed", "vocab"))


def init(config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """Random weights as a plain tree."""
    _, state = nnx.split(Decoder(config, dtype=dtype, rngs=nnx.Rngs(params=key)))
    return nnx.to_pure_dict(state)


@functools.cache
def abstract(config: ModelConfig, dtype: str) -> tuple[Params, Params]:
    """(shapes as ShapeDtypeStructs, logical axes): two trees with the parameters' structure.

    Allocates nothing.
    """
    make = functools.partial(Decoder, config, dtype=jnp.dtype(dtype))
    _, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    flat = nnx.to_flat_state(state)
    pure = nnx.to_pure_dict(state)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), pure)
    axes: Params = {"layers": {}}
    for path, variable in flat:
        names = [str(name) for name in path]
        node = axes["layers"] if names[0] == "layers" else axes
        node[names[-1]] = variable.get_metadata()["axes"]
    return shapes, axes


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, in float32; the result has x's dtype."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return x32.astype(x.dtype) * weight


def block(
    config: ModelConfig,
    p: Params,
    x_BxTxD: jax.Array,
    rope_tables: tuple[jax.Array, jax.Array],
    attend: Attend,
    adapter: Adapter | None,
) -> tuple[jax.Array, Any]:
    """One layer. Returns (x_BxTxD, what `attend` kept).

    `p` and `adapter` hold this layer's weights.
    """
    B, T, _ = x_BxTxD.shape
    y = rms_norm(x_BxTxD, p["attn_norm"], config.norm_eps)
    q, k, v = linears(config, y, p, ("q", "k", "v"), adapter)
    q_BxTxHxh = q.reshape(B, T, config.H, config.h)
    k_BxTxKxh = k.reshape(B, T, config.K, config.h)
    v_BxTxKxh = v.reshape(B, T, config.K, config.h)
    if config.qk_norm:
        q_BxTxHxh = rms_norm(q_BxTxHxh, p["q_norm"], config.norm_eps)
        k_BxTxKxh = rms_norm(k_BxTxKxh, p["k_norm"], config.norm_eps)
    q_BxTxHxh = checkpoint_name(rope.rotate(q_BxTxHxh, *rope_tables), "q")
    k_BxTxKxh = checkpoint_name(rope.rotate(k_BxTxKxh, *rope_tables), "k")
    v_BxTxKxh = checkpoint_name(v_BxTxKxh, "v")
    out_BxTxHxh, kept = attend(q_BxTxHxh, k_BxTxKxh, v_BxTxKxh)
    out = checkpoint_name(out_BxTxHxh.reshape(B, T, config.H * config.h), "attended")
    x_BxTxD = checkpoint_name(x_BxTxD + linears(config, out, p, ("o",), adapter)[0], "residual")
    y = rms_norm(x_BxTxD, p["mlp_norm"], config.norm_eps)
    gate, up = linears(config, y, p, ("gate", "up"), adapter)
    gate_BxTxF, up_BxTxF = checkpoint_name(gate, "gate"), checkpoint_name(up, "up")
    x_BxTxD = x_BxTxD + linears(config, jax.nn.silu(gate_BxTxF) * up_BxTxF, p, ("down",), adapter)[0]
    return x_BxTxD, kept


def by_rows(x_Bx: jax.Array, mesh: Mesh | None, *rest: str | None) -> jax.Array:
    """Keeps an activation on its rows' devices; `rest` shards its other axes (default: whole).

    Without this, the compiler may compute a product of activations and weights that are both
    sharded over fsdp as partial sums on all devices for all rows. That costs several times the
    traffic of gathering the weights.
    """
    if mesh is None or x_Bx.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x_Bx
    return jax.lax.with_sharding_constraint(x_Bx, NamedSharding(mesh, P(("data", "fsdp"), *rest)))


def embed(params: Params, tokens_BxT: jax.Array, mesh: Mesh | None = None) -> jax.Array:
    """x_BxTxD of token ids, sharded by rows.

    The table is sharded over fsdp along its width, so the lookup takes two steps: each device looks
    up its part of the width for the rows of its fsdp group, and the group then exchanges width for
    rows. Asked for rows directly, the compiler gathers all rows of the batch on every device when
    data and fsdp are both larger than 1.
    """
    x_BxTxD = params["embed"][tokens_BxT]
    if mesh is not None and x_BxTxD.shape[0] % mesh.shape["data"] == 0:
        x_BxTxD = jax.lax.with_sharding_constraint(x_BxTxD, NamedSharding(mesh, P("data", None, "fsdp")))
    return by_rows(x_BxTxD, mesh)


_SAVED = ("q", "k", "v", "attended", "residual", "gate", "up", "low")


def _rematerialised(body: Callable, policy: str) -> Callable:
    if policy == "none":
        return body
    if policy == "full":
        return jax.checkpoint(body, policy=jax.checkpoint_policies.nothing_saveable)
    if policy == "projections":
        return jax.checkpoint(body, policy=jax.checkpoint_policies.save_only_these_names(*_SAVED))
    raise UserError(f"remat policy {policy!r} is unknown; choose 'none', 'projections' or 'full'.")


def forward(
    config: ModelConfig,
    params: Params,
    tokens_BxT: jax.Array,
    *,
    adapter: Adapter | None = None,
    implementation: str = "xla",
    remat: str = "none",
    keep_kv: bool = False,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Any]:
    """Right-padded int tokens [B, T] -> (hidden_BxTxD after the final norm, kept).

    kept is None, or with keep_kv the keys and values of all layers, a pair of [L, B, T, K, h].
    """
    T = tokens_BxT.shape[1]
    tables = rope.tables(config, jnp.arange(T)[None, :])

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
        return attention.causal(q, k, v, implementation, mesh), (k, v) if keep_kv else None

    def body(x_BxTxD: jax.Array, layer: tuple[Params, Adapter | None]) -> tuple[jax.Array, Any]:
        x_BxTxD, kept = block(config, layer[0], x_BxTxD, tables, attend, layer[1])
        return by_rows(x_BxTxD, mesh), kept

    x_BxTxD = embed(params, tokens_BxT, mesh)
    x_BxTxD, kept = jax.lax.scan(_rematerialised(body, remat), x_BxTxD, (params["layers"], adapter))
    return rms_norm(x_BxTxD, params["final_norm"], config.norm_eps), kept


def extend(
    config: ModelConfig,
    params: Params,
    tokens_BxC: jax.Array,
    lengths_B: jax.Array,
    kv: tuple[jax.Array, jax.Array],
    *,
    adapter: Adapter | None = None,
    implementation: str = "xla",
    mesh: Mesh | None = None,
) -> jax.Array:
    """hidden_BxCxD of tokens that follow the first `lengths` positions of rows.

    kv: the rows' keys and values, as `forward` returns them. Positions beyond a row's length are
    ignored. For passes without gradients.
    """
    tables = rope.tables(config, lengths_B[:, None] + jnp.arange(tokens_BxC.shape[1]))

    def body(x_BxCxD: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        p, adapter, (k_BxTxKxh, v_BxTxKxh) = layer

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
            return attention.after(q, k, v, k_BxTxKxh, v_BxTxKxh, lengths_B, implementation), None

        x_BxCxD, kept = block(config, p, x_BxCxD, tables, attend, adapter)
        return by_rows(x_BxCxD, mesh), kept

    x_BxCxD = embed(params, tokens_BxC, mesh)
    x_BxCxD, _ = jax.lax.scan(body, x_BxCxD, (params["layers"], adapter, kv))
    return rms_norm(x_BxCxD, params["final_norm"], config.norm_eps)


def head(params: Params, mesh: Mesh | None = None) -> jax.Array:
    """The output matrix [D, V].

    With a mesh it is gathered over fsdp, so that the compiler does not gather logits instead.
    """
    head_DxV = params["head"] if "head" in params else params["embed"].T
    return head_DxV if mesh is None else jax.lax.with_sharding_constraint(head_DxV, NamedSharding(mesh, P(None, "tensor")))
