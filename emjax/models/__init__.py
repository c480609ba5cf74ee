"""Models: Hugging Face checkpoints as JAX trees, and one decoder for all of them."""

import jax
import jax.numpy as jnp

from emjax.models import decoder
from emjax.models.hf import LanguageModel, load, merge, save, save_adapter

__all__ = ["LanguageModel", "load", "logits", "merge", "save", "save_adapter"]


def logits(lm: LanguageModel, tokens: jax.Array) -> jax.Array:
    """Right-padded int32 [B, T] -> float32 [B, T, V]. For inspection and tests: it materialises the vocabulary."""
    hidden_BxTxD, _ = decoder.forward(lm.config, lm.params, jnp.asarray(tokens), adapter=lm.adapter)
    return jnp.einsum("btd,dv->btv", hidden_BxTxD, decoder.head(lm.params), preferred_element_type=jnp.float32)
