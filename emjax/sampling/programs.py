"""The compiled programs: prefill, copies of blocks, decode and scores.

They are module-level and take the model's configuration as a static argument and all weights as
arrays. So every Engine in the process (with other weights, or other adapters of the same shape)
runs the same programs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emjax.models import attention, decoder, rope
from emjax.models.config import ModelConfig
from emjax.models.decoder import Params
from emjax.models.logprobs import token_logprobs
from emjax.models.lora import Adapter
from emjax.sampling import cache as kv
from emjax.sampling.cache import Cache, State
from emjax.sampling.processors import TOP_LOGPROBS, Drawn, sample

# Maximum decode steps per host round trip; rows that end earlier idle until then.
STEPS = 16


@functools.partial(jax.jit, static_argnames=("mesh",))
def embed(mesh: Mesh | None, top: Params, tokens_RxC: jax.Array) -> jax.Array:
    return decoder.embed(top, tokens_RxC, mesh)


# One program per reach serves all layers: compile time does not grow with depth, and the weights
# need not exist both stacked and unstacked.
@functools.partial(jax.jit, static_argnames=("config", "implementation", "reach", "mesh"), donate_argnames=("x_RxCxD", "cache"))
def prefill_layer(
    config: ModelConfig,
    implementation: str,
    reach: int,
    mesh: Mesh | None,
    layer: Params,
    adapter: Adapter | None,
    x_RxCxD: jax.Array,
    cache: Cache,
    slot_R: jax.Array,
    block_R: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Applies one layer to R chunks, each in its slot (kv.write_and_read)."""
    C = x_RxCxD.shape[1]
    start_R = block_R * C

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Cache]:
        written, (k_RxKxExh, v_RxKxExh) = kv.write_and_read(cache, k, v, slot_R, block_R, reach, mesh)
        return attention.chunk_over_cache(q, k_RxKxExh, v_RxKxExh, start_R, implementation), written

    tables = rope.tables(config, start_R[:, None] + jnp.arange(C))
    x_RxCxD, cache = decoder.block(config, layer, x_RxCxD, tables, attend, adapter)
    return decoder.by_rows(x_RxCxD, mesh), cache


@functools.partial(jax.jit, static_argnames=("chunk", "mesh"), donate_argnames=("caches",))
def copy(
    chunk: int, mesh: Mesh | None, caches: tuple[Cache, ...], source_N: jax.Array, to_N: jax.Array, block_N: jax.Array
) -> tuple[Cache, ...]:
    return kv.copy(caches, chunk, source_N, to_N, block_N, mesh)


@functools.partial(jax.jit, static_argnames=("mesh",), donate_argnames=("state",))
def start(mesh: Mesh | None, state: State, new: State) -> State:
    """Puts the rows that are active in `new` into their slots."""

    def either(old: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.where(new.active_B.reshape(-1, *[1] * (old.ndim - 1)), x, old)

    return kv.replicate(jax.tree.map(either, state, new), mesh)


def logits(config: ModelConfig, top: Params, x_BxD: jax.Array) -> jax.Array:
    hidden_BxD = decoder.rms_norm(x_BxD, top["final_norm"], config.norm_eps)
    return jnp.einsum("bd,dv->bv", hidden_BxD, decoder.head(top), preferred_element_type=jnp.float32)


@functools.partial(
    jax.jit, static_argnames=("config", "implementation", "vocabulary", "mesh"), donate_argnames=("caches", "state")
)
def decode(
    config: ModelConfig,
    implementation: str,
    vocabulary: int,
    mesh: Mesh | None,
    layers: tuple[Params, ...],
    top: Params,
    adapter: tuple[Adapter, ...] | None,
    caches: tuple[Cache, ...],
    state: State,
    alive_B: jax.Array,
    steps: jax.Array,
    eos_E: jax.Array,
) -> tuple[tuple[Cache, ...], State, tuple[Drawn, jax.Array, jax.Array, jax.Array]]:
    """Draws at most `steps` (<= STEPS) tokens for every active row.

    Rows that are not alive are dropped first. Returns (caches, state, (drawn, active_B, count_B,
    steps run)); drawn holds STEPS entries per field.
    """
    B = alive_B.shape[0]
    state = dataclasses.replace(state, active_B=state.active_B & alive_B)
    x_BxD = jax.ShapeDtypeStruct((B, config.D), top["embed"].dtype)
    one_step = jax.eval_shape(
        lambda top, x_BxD, state: sample(logits(config, top, x_BxD), state.rows, state.count_B, state.active_B, vocabulary),
        top,
        x_BxD,
        state,
    )
    drawn = jax.tree.map(lambda x: jnp.zeros((STEPS, *x.shape), x.dtype), one_step)

    def go_on(carry: tuple[jax.Array, tuple[Cache, ...], State, Drawn]) -> jax.Array:
        step, _, state, _ = carry
        return (step < steps) & jnp.any(state.active_B)

    def one(
        carry: tuple[jax.Array, tuple[Cache, ...], State, Drawn],
    ) -> tuple[jax.Array, tuple[Cache, ...], State, Drawn]:
        step, caches, state, drawn = carry
        tables = rope.tables(config, state.length_B[:, None])
        x_BxTxD = top["embed"][state.token_B][:, None]
        kept = []
        for i, (layer, cache) in enumerate(zip(layers, caches, strict=True)):

            def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: Cache = cache) -> tuple[jax.Array, Cache]:
                # Rows that have ended write nothing.
                out_BxHxh, cache = attention.decode(
                    q[:, 0], k[:, 0], v[:, 0], cache, state.length_B, state.active_B, implementation, mesh
                )
                return out_BxHxh[:, None], kv.spread(cache, mesh)

            x_BxTxD, cache = decoder.block(config, layer, x_BxTxD, tables, attend, adapter[i] if adapter else None)
            kept.append(cache)
        new = sample(logits(config, top, x_BxTxD[:, 0]), state.rows, state.count_B, state.active_B, vocabulary)
        count_B = state.count_B + state.active_B
        drawn = jax.tree.map(lambda all_, x: all_.at[step].set(x), drawn, new)
        ended_B = jnp.any(new.token_B[:, None] == eos_E, axis=-1) | (count_B >= state.limit_B)
        state = dataclasses.replace(
            state,
            active_B=state.active_B & ~ended_B,
            length_B=state.length_B + state.active_B,
            count_B=count_B,
            token_B=new.token_B,
        )
        return step + 1, tuple(kept), state, drawn

    step, caches, state, drawn = jax.lax.while_loop(go_on, one, (jnp.int32(0), caches, state, drawn))
    caches, (state, drawn) = kv.spread(caches, mesh), kv.replicate((state, drawn), mesh)
    return caches, state, (drawn, state.active_B, state.count_B, step)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def target_logprobs(
    config: ModelConfig, mesh: Mesh | None, top: Params, x_RxCxD: jax.Array, target_RxC: jax.Array
) -> jax.Array:
    hidden_RxCxD = decoder.rms_norm(x_RxCxD, top["final_norm"], config.norm_eps)
    return kv.replicate(token_logprobs(decoder.head(top, mesh), hidden_RxCxD, target_RxC), mesh)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def alternatives(
    config: ModelConfig, mesh: Mesh | None, top: Params, x_RxCxD: jax.Array, target_RxC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(log-probs, ids, target log-probs): the likeliest next tokens, and the targets.

    The first two are [R, C, TOP_LOGPROBS], the third is [R, C]. Only one column's logits exist at a
    time. The targets' log-probs come from the same logits, so a target that is the likeliest token
    has exactly that token's log-prob: clients compare the two to see whether a token is greedy.
    """

    def column(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        x_RxD, target_R = part
        logprob_RxV = jax.nn.log_softmax(logits(config, top, x_RxD), axis=-1)
        values_RxN, ids_RxN = jax.lax.top_k(logprob_RxV, min(TOP_LOGPROBS, config.V))
        return values_RxN, ids_RxN, jnp.take_along_axis(logprob_RxV, target_R[:, None], axis=-1)[:, 0]

    columns = jax.lax.map(column, (x_RxCxD.swapaxes(0, 1), target_RxC.T))
    return kv.replicate(jax.tree.map(lambda x: x.swapaxes(0, 1), columns), mesh)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def next_probs(
    config: ModelConfig, mesh: Mesh | None, top: Params, x_RxCxD: jax.Array, at_R: jax.Array, ids_RxN: jax.Array
) -> jax.Array:
    """The probabilities of `ids` after position `at` of each chunk, [R, N]."""
    x_RxD = jnp.take_along_axis(x_RxCxD, at_R[:, None, None], axis=1)[:, 0]
    probs_RxV = jax.nn.softmax(logits(config, top, x_RxD), axis=-1)
    return kv.replicate(jnp.take_along_axis(probs_RxV, ids_RxN, axis=1), mesh)
