"""The table of config.json's keys against the installed transformers: what it acts on, emjax knows."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import transformers
from transformers import cache_utils, masking_utils, modeling_rope_utils, modeling_utils
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

import emjax
from emjax.models import keys

CLASSES = {
    "llama": (transformers.LlamaConfig, modeling_llama),
    "qwen2": (transformers.Qwen2Config, modeling_qwen2),
    "qwen3": (transformers.Qwen3Config, modeling_qwen3),
}
SHARED = (cache_utils, masking_utils, modeling_rope_utils, modeling_utils)
READ = re.compile(r"\bconfig\.(_?[a-z]\w*)|getattr\((?:self\.)?config(?:\.get_text_config\(\))?, \"(\w+)\"")
# Attributes of the class and of other architectures, which no config.json of these three sets.
NOT_OURS = {
    "base_model_pp_plan", "base_model_tp_plan", "default_theta", "extra_files", "init_std", "initializer_factor", "json",
    "sub_configs",
}  # fmt: skip


def acted_on(family):
    """The fields of the class, and what the model's files read from it."""
    config, model = CLASSES[family]
    found = {field.name for field in dataclasses.fields(config)}
    for module in (model, *SHARED):
        for one, other in READ.findall(inspect.getsource(module)):
            name = one or other
            known = inspect.getattr_static(config, name, None)
            if not callable(known) and not isinstance(known, classmethod | staticmethod):
                found.add(name)
    # What the class takes out of the file by name, beside its fields.
    for method in (config.convert_rope_params_to_dict, transformers.PreTrainedConfig.__post_init__):
        found |= set(re.findall(r'kwargs\.(?:pop|get)\("(\w+)"', inspect.getsource(method)))
    found |= set(re.findall(r'hasattr\(self, "(\w+)"\)', inspect.getsource(config.standardize_rope_params)))
    return found - NOT_OURS


@pytest.mark.parametrize("family", CLASSES)
def test_the_table_has_every_key_that_transformers_acts_on(family):
    assert not acted_on(family) - keys.known(family).keys()


def test_the_test_sees_what_is_read():
    assert {"attention_bias", "mlp_bias", "is_causal", "rope_scaling", "transformers_weights"} <= acted_on("llama")
    assert {"sliding_window", "layer_types"} <= acted_on("qwen2")


@pytest.mark.parametrize("family", CLASSES)
def test_missing_keys_are_as_in_the_class(family):
    for name in keys.DEFAULTS:
        ours, fields = keys.default(name, family), {f.name: f for f in dataclasses.fields(CLASSES[family][0])}
        if name in fields:
            theirs = fields[name].default
            assert (theirs.default if isinstance(theirs, dataclasses.Field) else theirs) == ours, name


@pytest.mark.parametrize("kind", ["llama3"])
def test_rope_fields_are_those_that_transformers_reads(kind):
    source = inspect.getsource(modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind])
    read = set(re.findall(r'rope_parameters_dict(?:\[|\.get\()"(\w+)"', source))
    assert read - set(keys.ROPE_COMMON) == set(keys.ROPE[kind])


def test_the_page_has_the_table():
    page = (Path(emjax.__file__).parents[1] / "docs" / "models.md").read_text()
    assert keys.table() in page, "write the output of `python -m emjax.models.keys` into docs/models.md"
