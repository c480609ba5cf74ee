"""Rotary position embeddings in Hugging Face's half-split layout."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from emjax.models.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """[h/2] float32 angular frequencies, with the llama3 scaling if the config has one."""
    # Round where transformers rounds: float32 exponents, the correctly rounded float32 power, its
    # reciprocal. The last bit is 5e-4 radians at position 9,000, and numpy's float32 power gets it
    # wrong in a fifth of the entries.
    exponents = np.arange(0, config.h, 2, dtype=np.float32) / np.float32(config.h)
    powers = np.power(np.float64(config.rope_theta), exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1.0) / powers
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    low = scaling.original_max_position / scaling.low_freq_factor
    high = scaling.original_max_position / scaling.high_freq_factor
    blend = (scaling.original_max_position / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    scaled = np.where(wavelengths > low, frequencies / scaling.factor, frequencies)
    return np.where((wavelengths <= low) & (wavelengths >= high), blended, scaled).astype(np.float32)


def tables(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, float32 [..., h/2], for int positions [...]."""
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BxTxNxh: jax.Array, cos_BxTxf: jax.Array, sin_BxTxf: jax.Array) -> jax.Array:
    """Rotates each head's (first half, second half) pairs in float32; the result has x's dtype."""
    x = x_BxTxNxh.astype(jnp.float32)
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos_BxTxf[..., None, :], sin_BxTxf[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BxTxNxh.dtype)
