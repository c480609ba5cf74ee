"""The one function from hidden states to log-probabilities, for training, scoring and serving."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emjax.models import decoder
from emjax.models.config import ModelConfig
from emjax.models.lora import Adapter

CHUNK = 1024  # tokens whose logits exist at once: [1024, 128256] float32 is 0.5 GB


def token_logprobs(
    head_DxV: jax.Array, hidden_BxPxD: jax.Array, targets_BxP: jax.Array, *, chunk: int = CHUNK, train_head: bool = True
) -> jax.Array:
    """log softmax(hidden @ head)[target], float32 [B, P].

    Scans over chunks of P, so no [.., V] array is larger than about `chunk` tokens. The batch axis
    stays whole, and so does its sharding. With train_head the backward pass recomputes each chunk's
    logits. Without it the head is a constant, and the forward pass keeps each token's gradient
    instead.
    """
    B, P, D = hidden_BxPxD.shape
    width = min(P, max(1, chunk // B))
    n = -(-P // width)
    pad = n * width - P
    hidden = jnp.pad(hidden_BxPxD, ((0, 0), (0, pad), (0, 0))).reshape(B, n, width, D).swapaxes(0, 1)
    targets = jnp.pad(targets_BxP, ((0, 0), (0, pad))).reshape(B, n, width).swapaxes(0, 1)
    of_chunk = jax.checkpoint(_chunk_logprobs) if train_head else _chunk_logprobs_of_constant_head

    def body(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        return None, of_chunk(head_DxV, *part)

    _, logprobs = jax.lax.scan(body, None, (hidden, targets))
    return logprobs.swapaxes(0, 1).reshape(B, n * width)[:, :P]


def _chunk_logits(head_DxV: jax.Array, hidden_BxCxD: jax.Array) -> jax.Array:
    return jnp.einsum("bcd,dv->bcv", hidden_BxCxD, head_DxV, preferred_element_type=jnp.float32)


def _chunk_logprobs(head_DxV: jax.Array, hidden_BxCxD: jax.Array, targets_BxC: jax.Array) -> jax.Array:
    logits_BxCxV = _chunk_logits(head_DxV, hidden_BxCxD)
    chosen_BxC = jnp.take_along_axis(logits_BxCxV, targets_BxC[..., None], axis=-1)[..., 0]
    return chosen_BxC - jax.nn.logsumexp(logits_BxCxV, axis=-1)


# The forward pass knows d log p(target) / d hidden = sum_v ([v = target] - p(v)) head[:, v]. So the
# backward pass need not recompute the logits (a third of the head's arithmetic), and the product
# runs in the hidden state's dtype instead of float32.
_chunk_logprobs_of_constant_head = jax.custom_vjp(_chunk_logprobs)


def _keep_gradient(head_DxV: jax.Array, hidden_BxCxD: jax.Array, targets_BxC: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits_BxCxV = _chunk_logits(head_DxV, hidden_BxCxD)
    chosen_BxC = jnp.take_along_axis(logits_BxCxV, targets_BxC[..., None], axis=-1)[..., 0]
    norm_BxC = jax.nn.logsumexp(logits_BxCxV, axis=-1)
    is_target_BxCxV = jnp.arange(head_DxV.shape[1]) == targets_BxC[..., None]
    slope_BxCxV = (is_target_BxCxV - jnp.exp(logits_BxCxV - norm_BxC[..., None])).astype(hidden_BxCxD.dtype)
    return chosen_BxC - norm_BxC, jnp.einsum("bcv,dv->bcd", slope_BxCxV, head_DxV)


def _use_gradient(gradient_BxCxD: jax.Array, g_BxC: jax.Array) -> tuple[None, jax.Array, None]:
    return None, (g_BxC[..., None] * gradient_BxCxD.astype(jnp.float32)).astype(gradient_BxCxD.dtype), None


_chunk_logprobs_of_constant_head.defvjp(_keep_gradient, _use_gradient)


def row_logprobs(
    config: ModelConfig, params: Any, adapter: Adapter | None, rows: dict[str, jax.Array], **forward: Any
) -> jax.Array:
    """Log-probs, float32 [B, P], of the tokens at rows["positions"].

    Each is given the tokens before it.
    """
    hidden_BxTxD, _ = decoder.forward(config, params, rows["tokens"], adapter=adapter, **forward)
    return _at_positions(params, adapter, rows, hidden_BxTxD, forward.get("mesh"))


def _at_positions(
    params: Any, adapter: Adapter | None, rows: dict[str, jax.Array], hidden_BxTxD: jax.Array, mesh: Mesh | None
) -> jax.Array:
    before_BxP = rows["positions"] - 1
    hidden_BxPxD = jnp.take_along_axis(hidden_BxTxD, before_BxP[..., None], axis=1)
    targets_BxP = jnp.take_along_axis(rows["tokens"], rows["positions"], axis=1)
    # A trained head's gradient must stay sharded.
    head_DxV = decoder.head(params, mesh if adapter else None)
    return token_logprobs(head_DxV, hidden_BxPxD, targets_BxP, train_head=adapter is None)


def _summed(logprobs_BxP: jax.Array, weights_BxP: jax.Array) -> jax.Array:
    """Sums over the scored tokens (weight > 0), as KTO needs it: never length-normalised.

    Adds the second half to the first until one value is left. The compiler's own sum has a
    different order in a pass with gradients than in one without, so the log-ratio of a model to
    itself would not be exactly 0.
    """
    x_BxP = jnp.where(weights_BxP > 0, logprobs_BxP, 0.0)
    width = 1 << (x_BxP.shape[1] - 1).bit_length()
    x_BxP = jnp.pad(x_BxP, ((0, 0), (0, width - x_BxP.shape[1])))
    while width > 1:
        width //= 2
        x_BxP = x_BxP[:, :width] + x_BxP[:, width:]
    return x_BxP[:, 0]


def sequence_logprobs(
    config: ModelConfig, params: Any, adapter: Adapter | None, rows: dict[str, jax.Array], **forward: Any
) -> jax.Array:
    """float32 [B]: the sum over each row's scored tokens."""
    return _summed(row_logprobs(config, params, adapter, rows, **forward), rows["weights"])


def pair_logprobs(
    config: ModelConfig,
    params: Any,
    adapter: Adapter | None,
    rows: dict[str, jax.Array],
    others: dict[str, jax.Array],
    **forward: Any,
) -> tuple[jax.Array, jax.Array]:
    """Sequence log-probs of the rows, and of other completions of their prompts: two float32 [B].

    `others`: "tokens" and "weights" [B, C] of the completions, and "starts" [B], the lengths of the
    prompts in `rows`. The prompts run once: their keys and values serve both. The second result has
    no gradient.
    """
    hidden_BxTxD, kv = decoder.forward(config, params, rows["tokens"], adapter=adapter, keep_kv=True, **forward)
    matched_B = _summed(_at_positions(params, adapter, rows, hidden_BxTxD, forward.get("mesh")), rows["weights"])
    params, adapter, hidden_BxTxD, kv = jax.lax.stop_gradient((params, adapter, hidden_BxTxD, kv))
    tokens_BxC, starts_B = others["tokens"], others["starts"]
    hidden_BxCxD = decoder.extend(
        config,
        params,
        tokens_BxC,
        starts_B,
        kv,
        adapter=adapter,
        implementation=forward["implementation"],
        mesh=forward.get("mesh"),
    )
    # The first token follows the prompt's last token; each later token follows the one before it.
    last_Bx1xD = jnp.take_along_axis(hidden_BxTxD, starts_B[:, None, None] - 1, axis=1)
    before_BxCxD = jnp.concatenate([last_Bx1xD, hidden_BxCxD[:, :-1]], axis=1)
    logprobs_BxC = token_logprobs(decoder.head(params, forward.get("mesh")), before_BxCxD, tokens_BxC)
    return matched_B, _summed(logprobs_BxC, others["weights"])
