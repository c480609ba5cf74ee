"""The one function that turns hidden states into log-probabilities, for training, scoring and serving."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from emjax.models import decoder
from emjax.models.config import ModelConfig
from emjax.models.lora import Adapter

CHUNK = 1024  # tokens whose logits exist at a time: [1024, 128256] float32 is 0.5 GB


def token_logprobs(head_DxV: jax.Array, hidden_BxPxD: jax.Array, targets_BxP: jax.Array, chunk: int = CHUNK) -> jax.Array:
    """log softmax(hidden @ head)[target], float32 [B, P].

    Scans over chunks of P so that no [.., V] array is larger than about `chunk` tokens; the batch axis stays whole, and with
    it its sharding. The backward pass recomputes each chunk's logits.
    """
    B, P, D = hidden_BxPxD.shape
    width = min(P, max(1, chunk // B))
    n = -(-P // width)
    pad = n * width - P
    hidden = jnp.pad(hidden_BxPxD, ((0, 0), (0, pad), (0, 0))).reshape(B, n, width, D).swapaxes(0, 1)
    targets = jnp.pad(targets_BxP, ((0, 0), (0, pad))).reshape(B, n, width).swapaxes(0, 1)

    @jax.checkpoint
    def body(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        hidden_BxCxD, targets_BxC = part
        logits_BxCxV = jnp.einsum("bcd,dv->bcv", hidden_BxCxD, head_DxV, preferred_element_type=jnp.float32)
        chosen_BxC = jnp.take_along_axis(logits_BxCxV, targets_BxC[..., None], axis=-1)[..., 0]
        return None, chosen_BxC - jax.nn.logsumexp(logits_BxCxV, axis=-1)

    _, logprobs = jax.lax.scan(body, None, (hidden, targets))
    return logprobs.swapaxes(0, 1).reshape(B, n * width)[:, :P]


@functools.partial(jax.named_call, name="row_logprobs")
def row_logprobs(
    config: ModelConfig,
    params: Any,
    adapter: Adapter | None,
    rows: dict[str, jax.Array],
    *,
    implementation: str = "xla",
    remat: str = "none",
) -> jax.Array:
    """Log-probs float32 [B, P] of the tokens at rows["positions"], each given what stands before it."""
    hidden_BxTxD, _ = decoder.forward(
        config, params, rows["tokens"], adapter=adapter, implementation=implementation, remat=remat
    )
    before_BxP = rows["positions"] - 1
    hidden_BxPxD = jnp.take_along_axis(hidden_BxTxD, before_BxP[..., None], axis=1)
    targets_BxP = jnp.take_along_axis(rows["tokens"], rows["positions"], axis=1)
    return token_logprobs(decoder.head(params), hidden_BxPxD, targets_BxP)


def sequence_logprobs(
    config: ModelConfig, params: Any, adapter: Adapter | None, rows: dict[str, jax.Array], **kw: Any
) -> jax.Array:
    """float32 [B]: the sum over each row's scored tokens (weight > 0), as KTO needs it: never length-normalised."""
    logprobs_BxP = row_logprobs(config, params, adapter, rows, **kw)
    return jnp.where(rows["weights"] > 0, logprobs_BxP, 0.0).sum(axis=-1)
