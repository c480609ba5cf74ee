"""The shapes of the models that the configs name, as in their public config.json.

Commands that run without weights use them.
"""

from typing import NamedTuple

from emjax.errors import UserError
from emjax.models.config import ModelConfig, RopeScaling
from emjax.models.files import read_object
from emjax.models.source import cached_config, is_hub_id, is_local_source, open_source


class Known(NamedTuple):
    path: str  # config.model.path
    config: ModelConfig
    dtype: str


KNOWN: dict[str, Known] = {
    "micro": Known(
        "micro",
        ModelConfig(
            family="llama", V=302, D=128, L=4, H=4, K=4, h=32, F=344, norm_eps=1e-5, rope_theta=1e4,
            rope_scaling=None, max_position=512, tied=True, qkv_bias=False, qk_norm=False,
        ),
        "float32",
    ),
    "llama3.1-8b": Known(
        "meta-llama/Llama-3.1-8B-Instruct",
        ModelConfig(
            family="llama", V=128256, D=4096, L=32, H=32, K=8, h=128, F=14336, norm_eps=1e-5, rope_theta=5e5,
            rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), max_position=131072, tied=False, qkv_bias=False,
            qk_norm=False,
        ),
        "bfloat16",
    ),
    "qwen2.5-7b": Known(
        "Qwen/Qwen2.5-7B-Instruct",
        ModelConfig(
            family="qwen2", V=152064, D=3584, L=28, H=28, K=4, h=128, F=18944, norm_eps=1e-6, rope_theta=1e6,
            rope_scaling=None, max_position=32768, tied=False, qkv_bias=True, qk_norm=False,
        ),
        "bfloat16",
    ),
    "qwen3-32b": Known(
        "Qwen/Qwen3-32B",
        ModelConfig(
            family="qwen3", V=151936, D=5120, L=64, H=64, K=8, h=128, F=25600, norm_eps=1e-6, rope_theta=1e6,
            rope_scaling=None, max_position=40960, tied=False, qkv_bias=False, qk_norm=True,
        ),
        "bfloat16",
    ),
}  # fmt: skip


def shape_of(path: str) -> ModelConfig:
    """The shape of the model at config.model.path, from its config.json or from KNOWN.

    Downloads nothing: of a hub id, it reads what this machine's cache has.
    """
    if is_local_source(path):
        source = open_source(path)
        return ModelConfig.from_hf(source.config(), source.config_file)
    for known in KNOWN.values():
        if known.path == path.partition("@")[0]:
            return known.config
    if is_hub_id(path) and (file := cached_config(path)):
        return ModelConfig.from_hf(read_object(file), str(file))
    raise UserError(
        f"config.model.path is {path!r}, neither a directory with a config.json nor one of "
        f"{', '.join(known.path for known in KNOWN.values())}, nor a hub id in this machine's cache. Nothing is downloaded "
        "here: give the directory of a local checkpoint."
    )
