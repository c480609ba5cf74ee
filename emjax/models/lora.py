"""Low-rank adapters: a separate tree beside the frozen base (Hu et al. 2021, arXiv:2106.09685)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from emjax.config import LoraConfig
from emjax.config.names import TARGETS
from emjax.errors import UserError
from emjax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A LoRA with its weights: weights[target] = {"A": [L, in, r], "B": [L, r, out]}, float32.

    Layers outside config.layers hold A = B = 0. Their gradients are exactly zero, so training does
    not change them.
    """

    config: LoraConfig
    weights: dict[str, dict[str, Any]]
    keys: jax.Array | None = None  # [L, B] dropout keys of this pass; None = no dropout


# An adapter's configuration is static under jit; its weights and keys are leaves.
jax.tree_util.register_dataclass(Adapter, data_fields=["weights", "keys"], meta_fields=["config"])


def shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of each projection."""
    query, kv = config.H * config.h, config.K * config.h
    return {
        "q": (config.D, query), "k": (config.D, kv), "v": (config.D, kv), "o": (query, config.D),
        "gate": (config.D, config.F), "up": (config.D, config.F), "down": (config.F, config.D),
    }  # fmt: skip


def init(lora: LoraConfig, config: ModelConfig, key: jax.Array) -> Adapter:
    """A new adapter: A is uniform in +-1/sqrt(in), as in PEFT, and B is zero.

    So the adapter has no effect at first.
    """
    check_layers(lora, config)
    inside_Lx1x1 = np.isin(np.arange(config.L), lora.layers or range(config.L))[:, None, None]
    weights = {}
    for name, key_t in zip(lora.targets, jax.random.split(key, len(lora.targets)), strict=True):
        fan_in, fan_out = shapes(config)[name]
        bound = fan_in**-0.5
        weights[name] = {
            "A": jnp.where(
                inside_Lx1x1, jax.random.uniform(key_t, (config.L, fan_in, lora.rank), jnp.float32, -bound, bound), 0.0
            ),
            "B": jnp.zeros((config.L, lora.rank, fan_out), jnp.float32),
        }
    return Adapter(lora, weights)


def check_layers(lora: LoraConfig, config: ModelConfig) -> None:
    """Raises UserError if the adapter names a layer that the model does not have."""
    if max(lora.layers, default=0) >= config.L:
        raise UserError(f"LoRA layers {list(lora.layers)}: the model has only layers 0 to {config.L - 1}.")


def with_dropout(adapter: Adapter, key: jax.Array, rows_B: jax.Array) -> Adapter:
    """The adapter for one training pass over the rows numbered `rows_B` [B].

    A row's number determines its mask, so the mask depends neither on the slices nor on the shards
    of a batch.
    """
    if not adapter.config.dropout:
        return adapter
    L = next(iter(adapter.weights.values()))["A"].shape[0]
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return dataclasses.replace(adapter, keys=fold(jax.random.split(key, L), rows_B))


@jax.custom_vjp
def _affine(x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
    """x @ w + bias, rounded to x's dtype once.

    Rounding the product before adding the bias would round twice.
    """
    return (jnp.matmul(x, w, preferred_element_type=jnp.float32) + bias).astype(x.dtype)


# JAX's own derivative would use the float32 slope in the backward products, which is several times
# slower than x's dtype.
def _affine_fwd(x: jax.Array, w: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return _affine(x, w, bias), (x, w, bias)


def _affine_bwd(kept: tuple[jax.Array, jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, w, bias = kept
    rows, slopes = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return g @ w.T, rows.T @ slopes, slopes.astype(jnp.float32).sum(0).astype(bias.dtype)


_affine.defvjp(_affine_fwd, _affine_bwd)


def linear(x: jax.Array, w: jax.Array, name: str, adapter: Adapter | None, bias: jax.Array | None = None) -> jax.Array:
    """x @ w (+ bias), plus the adapter's scaled x @ A @ B if it has this target.

    The adapter stays unmerged and is cast at use.
    """
    y = x @ w if bias is None else _affine(x, w, bias)
    if adapter is None or name not in adapter.weights:
        return y
    pair = adapter.weights[name]
    if adapter.keys is not None:
        keep = 1.0 - adapter.config.dropout
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(adapter.keys, TARGETS.index(name))
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[1:]))(keys_B)
        x = jnp.where(kept, x / keep, 0)
    # Scale the small product, so that the sum is one product's epilogue. Name it, so that the
    # backward pass finds it saved.
    low = checkpoint_name((x @ pair["A"].astype(x.dtype)) * adapter.config.scale, "low")
    return y + low @ pair["B"].astype(x.dtype)


def joined(names: tuple[str, ...]) -> str:
    """The name of matrices that the sampler keeps side by side (sampling.cache.join).

    They have the same input.
    """
    return "_".join(names)


def linears(
    config: ModelConfig, x: jax.Array, p: dict[str, jax.Array], names: tuple[str, ...], adapter: Adapter | None
) -> list[jax.Array]:
    """`linear` of x with each named matrix of `p`; one product if `p` holds them side by side.

    Matrices side by side have shape [in, P, out / P]: for each of P shards, the columns of every
    matrix that belong to that shard. So a matrix is split over P devices in the same way by itself
    and beside others.
    """
    name = joined(names)
    if len(names) == 1 or name not in p:
        return [linear(x, p[name], name, adapter, p.get(f"{name}_bias")) for name in names]
    fan_in, P, _ = p[name].shape
    bias = p.get(f"{name}_bias")
    y = linear(x, p[name].reshape(fan_in, -1), name, adapter, None if bias is None else bias.reshape(-1))
    ends = np.cumsum([shapes(config)[name][1] // P for name in names])[:-1]
    parts = jnp.split(y.reshape(*x.shape[:-1], P, -1), ends, axis=-1)
    return [part.reshape(*x.shape[:-1], -1) for part in parts]
