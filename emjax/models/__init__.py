"""Models: Hugging Face checkpoints as JAX trees, and one decoder for all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from emjax.models import decoder
from emjax.models.config import ModelConfig
from emjax.models.hf import load, merge, save
from emjax.models.language_model import LanguageModel
from emjax.models.lora import Adapter
from emjax.models.peft import load_adapter, save_adapter

__all__ = ["LanguageModel", "load", "load_adapter", "logits", "merge", "save", "save_adapter"]


def logits(lm: LanguageModel, tokens: jax.Array) -> jax.Array:
    """Right-padded int32 [B, T] -> float32 [B, T, V].

    For inspection and tests: it holds the logits of all positions in memory.
    """
    return _logits(lm.config, lm.params, lm.adapter, np.asarray(tokens))


@functools.partial(jax.jit, static_argnames="config")
def _logits(config: ModelConfig, params: decoder.Params, adapter: Adapter | None, tokens_BxT: jax.Array) -> jax.Array:
    hidden_BxTxD, _ = decoder.forward(config, params, tokens_BxT, adapter=adapter)
    return jnp.einsum("btd,dv->btv", hidden_BxTxD, decoder.head(params), preferred_element_type=jnp.float32)
