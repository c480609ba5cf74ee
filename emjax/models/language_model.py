"""A decoder with its tokenizer, end tokens, adapter and mesh."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from emjax.models.config import ModelConfig
from emjax.models.decoder import Params
from emjax.models.lora import Adapter


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model that is ready to train or to sample from."""

    config: ModelConfig
    params: Params
    tokenizer: Any
    eos_ids: tuple[int, ...]
    adapter: Adapter | None = None
    source: str = ""  # the directory or hub id of the base
    mesh: Mesh | None = None

    def replace(self, **changes: Any) -> "LanguageModel":
        return dataclasses.replace(self, **changes)
