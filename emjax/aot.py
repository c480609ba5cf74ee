"""python -m emjax.aot --config configs/kto_biased10.py[:VARIANT] --topology v5e:4x4 \
[--stage sample] [--config.a.b=value]

Compiles a config's training step, or its decode step, for TPUs that need not be present, and prints
one JSON line:

topology, chips    as given, and the number of its chips
attention          the compiled kernel: splash, or what --config.model.attention names; for a decode
                   step xla
compile_s          seconds of tracing, lowering and compilation
hbm_gb_per_chip    memory of the running step on each chip, in units of 2^30 bytes: state, frozen
                   base, batch, results, temporaries; if the compiler refuses the step as too large,
                   the minimum that it reports
fits               whether that is within the chip's capacity
flops              arithmetic of a step of full rows, over all chips (metrics.flops; for decode
                   without attention)
slots              decode only: config.engine.slots, or, if that is 0, what the engine's rule takes
                   of a chip's memory

train: every row is as long as the largest of config.train.buckets, and ends with an answer of
config.interact.max_new tokens.
sample: config.engine.cache_length positions per slot, and the adapter that config.train describes.
Needs libtpu (the extra `aot`); reads no weights and no network.
"""

import dataclasses
import os
import re
import sys
import time
from typing import Any

# JAX reads these when it loads libtpu: there is no TPU to ask for its metadata, and none that
# another process could hold.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import numpy as np
from absl import flags
from jax.experimental import topologies

from emjax import commands, presets
from emjax.config import InteractionConfig
from emjax.config import parse as parsing
from emjax.cost import auto
from emjax.data import batches
from emjax.data.batches import Example
from emjax.errors import UserError
from emjax.experiment.common import mesh_of
from emjax.experiment.fit import Recipe
from emjax.kto import step as kto_step
from emjax.models import decoder, lora, sharding
from emjax.models.known import shape_of
from emjax.runtime import hardware
from emjax.runtime.files import dumps
from emjax.sampling import cache as kv
from emjax.sampling import programs
from emjax.train import metrics, sft
from emjax.train import state as train_state


def main(argv: list[str]) -> int:
    """argv: without the program. 0, or 2 with one paragraph where the user can mend what is
    wrong."""
    values = flags.FlagValues()
    flags.DEFINE_string("topology", None, "TPU generation and slice, such as v5e:4x4.", flag_values=values)
    flags.DEFINE_enum("stage", "train", ["train", "sample"], "What to compile.", flag_values=values)
    try:
        options = commands.parse(["emjax aot", *argv], values, str(__doc__).splitlines()[0])
        if not options.topology:
            raise UserError("--topology is missing; name a TPU slice, such as v5e:4x4, v5p:2x2x4 or v6e:4x4.")
        config = presets.read(options.config).config
        if not isinstance(config, InteractionConfig):
            raise UserError(
                f"config.experiment is {config.experiment!r}; only 'interaction' configs have a step to compile here."
            )
        # the presets' default runs on any machine
        if "model.attention" not in parsing.overridden(options):
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="splash"))
        model = auto.computed(config.model, shape_of(config.model.path), hardware.Place("tpu", None), config.train.buckets)
        config = dataclasses.replace(config, model=model)
        print(dumps(compile_step(config, options.topology, options.stage)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compile_step(config: InteractionConfig, topology: str, stage: str = "train") -> dict[str, Any]:
    """The record that main prints. Raises UserError for an impossible topology, mesh or batch."""
    devices = _devices(topology)
    mesh = mesh_of(config.mesh, devices)
    more = {}
    if stage == "sample":
        more["slots"] = _slots(config, mesh)
        step, arguments, settings, flops = abstract_decode(config, mesh, more["slots"])
    else:
        step, arguments, settings, flops = abstract_step(config, mesh)
    start = time.perf_counter()
    try:
        compiled = step.lower(*arguments, **settings).compile()
    except jax.errors.JaxRuntimeError as error:
        # The compiler refuses a program that is too large and reports what it would use, or only
        # its temporaries.
        used = re.search(r"(?:Used |HLO temporaries \()([\d.]+)([MGT])", str(error))
        if used is None:
            raise
        gb = float(used[1]) * {"M": 2**-10, "G": 1, "T": 2**10}[used[2]]
    else:
        if stage == "train" and config.model.attention == "splash" and "splash_mha_fwd" not in compiled.as_text():
            raise RuntimeError("the compiled step has no splash kernel")
        sizes = compiled.memory_analysis()
        gb = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        gb = (gb + sizes.temp_size_in_bytes) / 2**30
    return {
        "topology": topology,
        "chips": len(devices),
        "attention": config.model.attention if stage == "train" else "xla",
        "compile_s": round(time.perf_counter() - start, 1),
        "hbm_gb_per_chip": round(gb, 2),
        "fits": gb * 2**30 <= _memory(devices[0]),
        "flops": flops,
        **more,
    }


def _devices(topology: str) -> list[Any]:
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise UserError("Compiling for TPUs needs libtpu, which is not installed: pip install 'emjax[aot]'.") from error
    try:
        devices: list[Any] = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise UserError(
            f"--topology {topology!r} is not a TPU slice that libtpu knows ({str(error).splitlines()[0]}). Give a generation "
            "and a shape, such as v5e:4x4, v5p:2x2x4 or v6e:4x4."
        ) from error
    if hardware.by_kind(devices[0].device_kind) is None:
        raise UserError(
            f"--topology is {topology!r}, a slice of {devices[0].device_kind}, whose memory emjax does not know; choose v4, "
            "v5e, v5p or v6e."
        )
    return devices


def _memory(device: Any) -> int:
    """Bytes of memory of a chip that `_devices` accepted."""
    known = hardware.by_kind(device.device_kind)
    assert known
    return int(known.memory_gb * 2**30)


def abstract_step(config: InteractionConfig, mesh: jax.sharding.Mesh) -> tuple[Any, tuple[Any, ...], dict[str, Any], float]:
    """The training step on a mesh of any devices.

    Returns (the jitted step, its arguments as shapes with shardings, its static arguments, its
    FLOPs).
    """
    shape, train = shape_of(config.model.path), config.train
    sharding.check(shape, mesh.shape)
    recipe = Recipe(train, mesh, config.seed, config.kto, attention=config.model.attention)
    lora_config = recipe.lora
    settings = recipe.settings(shape, config.model.dtype)
    tuning = settings["tuning"]
    params, axes = decoder.abstract(shape, config.model.dtype)
    params = _spread(params, sharding.shardings(mesh, sharding.parameter_specs(axes)))
    if lora_config is None:
        trainable, frozen = params, None
    else:
        trainable, frozen = jax.eval_shape(lambda: lora.init(lora_config, shape, jax.random.key(0)).weights), params
    state = jax.eval_shape(lambda tree: train_state.create(tree, settings["optimizer"], tuning), trainable)
    state = _spread(state, train_state.placement(state, tuning))
    size, length = train.batch_size, max(train.buckets)
    answer = min(config.interact.max_new, length - 1)
    weights = (0.0,) * (length - answer) + (1.0,) * answer
    rows = [Example(str(i), (0,) * length, weights, length - answer, str(i), i % 2 == 0) for i in range(size)]
    if train.method == "kto":
        kto = config.kto
        batch = kto_step.batch(rows, np.arange(size), np.arange(size) if kto.paired else None, size, train.buckets)
        batch |= {name: np.zeros(size, np.float32) for name in ("reference", "reference_kl")[: 1 + kto.paired]}
        step, settings = kto_step.step, settings | {"kto": kto}
    else:
        batch = batches.sft(rows, [np.arange(size)], size, train.buckets)(0)
        step = sft.step
    batch = _spread(batch, jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch))
    paired = "kl" in batch
    # With several microbatches, the rows run once more.
    again = size * length if paired and settings["microbatches"] > 1 else 0
    flops = metrics.flops(
        metrics.matmul_weights(params),
        full=lora_config is None,
        tokens=size * length,
        scored=size * answer,
        kl_tokens=paired * size * answer + again,
        kl_scored=paired * size * answer,
    )
    return step, (state, frozen, batch, np.float32(train.learning_rate)), settings, flops


def _slots(config: InteractionConfig, mesh: jax.sharding.Mesh) -> int:
    """config.engine.slots, or, if that is 0, what the engine would take beside the weights."""
    if config.engine.slots:
        return config.engine.slots
    device = mesh.devices.flat[0]
    shape, dtype = shape_of(config.model.path), config.model.dtype
    weights = sum(row.device for row in sharding.table(shape, dtype, mesh.shape))
    return kv.slots_in(_memory(device) - weights, shape, _positions(config), dtype, mesh)


def _positions(config: InteractionConfig) -> int:
    return -(-config.engine.cache_length // config.engine.chunk) * config.engine.chunk


def abstract_decode(
    config: InteractionConfig, mesh: jax.sharding.Mesh, slots: int
) -> tuple[Any, tuple[Any, ...], dict[str, Any], float]:
    """The sampler's decode step, as in abstract_step: the base with the adapter of config.train."""
    shape, dtype = shape_of(config.model.path), config.model.dtype
    sharding.check(shape, mesh.shape)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def replicated(tree: Any) -> Any:
        return _spread(tree, jax.tree.map(lambda _: everywhere, tree))

    params, axes = decoder.abstract(shape, dtype)
    placed = sharding.shardings(mesh, sharding.parameter_specs(axes))
    top = {name: _spread(params[name], placed[name]) for name in params if name != "layers"}
    layer = jax.eval_shape(lambda tree: kv.join(shape, tree, mesh, kv.TOGETHER)[0], params["layers"])
    layer = _spread(layer, kv.placement(shape, mesh, kv.TOGETHER))
    adapter, lora_config = None, None if config.train.tuning == "full" else config.train.lora
    if lora_config is not None:
        whole = jax.eval_shape(lambda: lora.init(lora_config, shape, jax.random.key(0)))
        one = jax.eval_shape(lambda tree: kv.join_adapter(shape, tree, dtype, mesh, kv.TOGETHER)[0], whole)
        adapter = (replicated(one),) * shape.L
    x = jax.ShapeDtypeStruct((slots, shape.K, _positions(config), shape.h), dtype, sharding=kv.cache_sharding(mesh))
    kv.check_spread(shape, slots, mesh)
    state = replicated(kv.host_state(slots))
    alive_B, steps, eos_E = (replicated(x) for x in (np.ones(slots, bool), np.int32(1), np.zeros(3, np.int32)))
    flops = 2 * sum(metrics.matmul_weights(params)) * slots
    arguments = (tuple([layer] * shape.L), top, adapter, ((x, x),) * shape.L, state, alive_B, steps, eos_E)
    return programs.decode, (shape, "xla", shape.V, mesh, *arguments), {}, flops


def _spread(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
