"""A decoder with its tokenizer, end tokens, adapter and mesh."""

import dataclasses
from collections.abc import Mapping
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
    source: str = ""  # the directory, GGUF file or hub id of the base
    revision: str = ""  # the hub's commit
    # generation_config.json
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mesh: Mesh | None = None

    def replace(self, **changes: Any) -> "LanguageModel":
        return dataclasses.replace(self, **changes)
