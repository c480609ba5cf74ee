"""Tiny models whose predictions are far from flat, and a tokenizer of words."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AddedToken

from emjax.config import LoraConfig
from emjax.models import LanguageModel, decoder, lora
from emjax.models.config import ModelConfig
from emjax.sampling import Request, Sampling

WORDS = 60  # of the tokenizer; the models have more rows
EOS = 3
NO_EOS = (WORDS, WORDS + 1)  # end tokens that are never drawn
SHAPE = {"slots": 8, "cache_length": 96, "chunk": 8}  # one shape for most tests: the programs are compiled once
# Grouped heads, biases, an untied head, and ids that the tokenizer does not know.
CONFIG = ModelConfig(
    family="qwen2", V=67, D=32, L=2, H=4, K=2, h=8, F=48, norm_eps=1e-5, rope_theta=1e4, rope_scaling=None,
    max_position=256, tied=False, qkv_bias=True, qk_norm=False, init_std=0.25,
)  # fmt: skip


class Words:
    """w0 w1 w2 ...; text is the words joined by spaces, without the end token, which is special."""

    all_special_tokens = ("<end>",)
    added_tokens_decoder = {EOS: AddedToken("<end>", special=True)}  # noqa: RUF012

    def __len__(self):
        return WORDS

    def decode(self, tokens, *, skip_special_tokens, clean_up_tokenization_spaces):
        assert not clean_up_tokenization_spaces
        return " ".join("<end>" if t == EOS else f"w{t}" for t in tokens if t != EOS or not skip_special_tokens)


def random_adapter(seed, rank=4):
    adapter = lora.init(LoraConfig(rank, 2.0 * rank), CONFIG, jax.random.key(seed))
    keys = iter(jax.random.split(jax.random.key(seed + 1), 7))
    weights = {
        name: pair | {"B": 0.2 * jax.random.normal(next(keys), pair["B"].shape)} for name, pair in adapter.weights.items()
    }
    return lora.Adapter(adapter.config, weights)


@pytest.fixture(scope="session")
def lm():
    return LanguageModel(CONFIG, decoder.init(CONFIG, jax.random.key(0)), Words(), (EOS, 5))


@pytest.fixture(scope="session")
def tuned(lm):
    return lm.replace(adapter=random_adapter(7))


def mixed(count, seed=0, longest=70, **settings):
    """Requests whose prompts fall into several length buckets, some greedy, some with filters."""
    rng = np.random.default_rng(seed)
    requests = []
    for i in range(count):
        kind = [{}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.8, "temperature": 1.5}, {"min_p": 0.1}][i % 5]
        sampling = Sampling(**({"seed": 1000 + i, "max_new": int(rng.integers(1, 25))} | kind | settings))
        prompt = rng.integers(6, WORDS, int(rng.integers(1, longest + 1)))
        requests.append(Request(f"r{i}", tuple(prompt.tolist()), sampling))
    return requests


@functools.partial(jax.jit, static_argnums=0)
def _log_softmax(config, params, adapter, tokens_BxT):
    hidden, _ = decoder.forward(config, params, tokens_BxT, adapter=adapter)
    logits = jnp.einsum("btd,dv->btv", hidden, decoder.head(params), preferred_element_type=jnp.float32)
    return jax.nn.log_softmax(logits, axis=-1)


def tables(lm, pairs):
    """For each (prompt, tokens) pair the log-probs [len(tokens), V] that its tokens were to be drawn from."""
    batch = np.zeros((48, 128), np.int32)  # one shape: compiled once
    for row, (prompt, tokens) in zip(batch, pairs, strict=False):
        row[: len(prompt) + len(tokens)] = [*prompt, *tokens]
    table = np.asarray(_log_softmax(lm.config, lm.params, lm.adapter, batch))
    return [table[i, len(p) - 1 : len(p) - 1 + len(t)] for i, (p, t) in enumerate(pairs)]


def teacher_forced(lm, pairs):
    """Each (prompt, tokens) pair's log-probs of its tokens."""
    picked = zip(tables(lm, pairs), pairs, strict=True)
    return [table[np.arange(len(tokens)), list(tokens)].tolist() for table, (_, tokens) in picked]
