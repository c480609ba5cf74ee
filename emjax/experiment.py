"""The experiment: collect -> select -> train -> evaluate -> report, each stage a function of (config, hashes of its inputs).

A finished stage is skipped, a half-done one goes on where it stopped. All arms run in one process, so that they share the
compiled programs, the collected conversations and the vanilla evaluation.
"""

import functools
import importlib.metadata
import json
import platform
import random
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from emjax import models, plan, report
from emjax.api import ChatClient, Rates
from emjax.data import batches, chat
from emjax.data.batches import Example
from emjax.data.examples import held_out, read_examples, read_trajectories, tokenized
from emjax.errors import UserError
from emjax.eval import bench, suite
from emjax.interact import ratings, rollout, selection
from emjax.kto import loss as kto_loss
from emjax.kto import pairing, reference
from emjax.kto import step as kto_step
from emjax.micro import base as micro
from emjax.micro.users import users as micro_users
from emjax.models import LanguageModel, attention, decoder, hf, lora, sharding
from emjax.models.config import ModelConfig
from emjax.plan import Arm
from emjax.sampling import Engine
from emjax.store import Stage, Store, digest, read_lines, remove, seed_of, write_atomically, write_lines
from emjax.train import loop, metrics, optimizer, sft
from emjax.train import state as train_state
from emjax.train.metrics import read_lines as read_metrics
from emjax.train.optimizer import OptimizerConfig
from emjax.train.state import Tuning

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "numpy")


def run(config: Any, workdir: Path, store: Store) -> None:
    """Runs what `config` describes. Raises UserError for anything the user can mend."""
    started = time.perf_counter()
    if config.experiment == "interaction":
        _Interaction(config, workdir, store).run()
    elif config.experiment == "pretrain":
        _pretrain(config, workdir, store)
    elif config.experiment == "evaluation":
        _evaluation(config, workdir, store)
    else:
        raise UserError(f"config.experiment is {config.experiment!r}; choose 'interaction', 'pretrain' or 'evaluation'.")
    print(f"Done in {time.perf_counter() - started:.0f} s.", flush=True)


# How fast and for how much a judge is asked: it decides no result, and a run that waits for verdicts may change it.
_PACE = tuple(f"eval.judge.{name}" for name in ("budget.", "rates.", "failures", "collect", "replay"))


def _claim(config: Any, workdir: Path) -> None:
    """Writes the config into the workdir, or refuses a workdir that holds another one.

    Called when the config is known to be good: a mistyped value must not claim the place of the run that mends it.
    """
    mine = _shown(config)
    file = workdir / "config.json"
    if file.is_file():
        theirs = json.loads(file.read_text())
        for name in sorted({*_flat(mine), *_flat(theirs)}):
            if name.startswith(_PACE):
                continue
            a, b = _flat(theirs).get(name), _flat(mine).get(name)
            if a != b:
                raise UserError(
                    f"{workdir} belongs to another experiment: there config.{name} is {a!r}, here it is {b!r}. "
                    "Give this one its "
                    "own --workdir (and the same --store, if it should share finished stages)."
                )
        return
    if workdir.exists() and any(p.name != "store" for p in workdir.iterdir()):
        raise UserError(f"{workdir} is not empty and holds no config.json of emjax. Choose a new or empty --workdir.")
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(mine, indent=1, sort_keys=True))


def _shown(config: Any) -> dict[str, Any]:
    """The config as what an experiment is: without `watch`, which only looks at it."""
    return {name: value for name, value in json.loads(config.to_json()).items() if name != "watch"}


def _one_of(field: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"config.{field} is {value!r}; choose {', '.join(choices)}.")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def mesh_of(config: Any, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """config.mesh over `devices`, or over those that are present."""
    devices = devices or jax.devices()
    sizes = {axis: int(config.mesh[axis]) for axis in sharding.AXES}
    fixed = 1
    for size in sizes.values():
        fixed *= size or 1
    # 0 stands for the devices that are left.
    return sharding.make_mesh(**{axis: size or len(devices) // fixed for axis, size in sizes.items()}, devices=devices)


def lora_of(train: Any) -> lora.LoraConfig | None:
    """config.train.lora, or None for full tuning."""
    if train.tuning == "full":
        return None
    return lora.LoraConfig(**{**train.lora, "targets": tuple(train.lora.targets), "layers": tuple(train.lora.layers)})


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found, "backend": jax.default_backend()}


# --- training, shared by both experiments ----------------------------------------------------------------------------


def step_settings(
    train: Any,
    shape: ModelConfig,
    *,
    dtype: str,
    lora_config: lora.LoraConfig | None,
    attention: str,
    mesh: jax.sharding.Mesh,
    seed: int,
) -> dict[str, Any]:
    """The static arguments of a training step. Raises UserError where a batch does not spread evenly over the mesh."""
    size, microbatches = int(train.batch_size), int(train.microbatches)
    rows = mesh.shape["data"] * mesh.shape["fsdp"] * microbatches
    if size < 1 or size % rows:
        raise UserError(
            f"config.train.batch_size is {size}; it must be a multiple of {rows}, the product of the mesh's data "
            "and fsdp sizes and config.train.microbatches. Change it, or give devices to config.mesh.tensor."
        )
    return {
        "tuning": Tuning(shape, lora_config, attention, train.remat, mesh, seed, dtype),
        "optimizer": optimizer.from_config(_optimizer_config(train)),
        "microbatches": microbatches,
    }


def _optimizer_config(train: Any) -> OptimizerConfig:
    return OptimizerConfig(**{name: train[name] for name in OptimizerConfig.__dataclass_fields__})


def fit(
    lm: LanguageModel,
    examples: Sequence[Example],
    train: Any,
    *,
    method: str,
    lora_config: lora.LoraConfig | None,
    attention: str,
    mesh: jax.sharding.Mesh,
    seed: int,
    directory: Path,
    identity: str,
    title: str,
    watch: Any,
    kto: kto_step.KtoConfig | None = None,
    against: LanguageModel | None = None,
    group: bool = False,
) -> LanguageModel:
    """Trains `lm` (its adapter, or all of it) on `examples`, resuming from `directory` where it was interrupted.

    An adapter goes on from lm's own, or starts as nothing. KTO's reference is `against`, or else `lm` as it is now: the base,
    the adapter of the round before (iterated self-training), or the full weights. What was made of the examples (held out,
    paired, cut) is counted in training.json.
    """
    dtype = str(lm.params["embed"].dtype)
    settings = step_settings(train, lm.config, dtype=dtype, lora_config=lora_config, attention=attention, mesh=mesh, seed=seed)
    tuning, opt, microbatches = (settings[name] for name in ("tuning", "optimizer", "microbatches"))
    buckets, size = tuple(train.buckets), int(train.batch_size)
    mine = lm.adapter and lm.adapter.config
    if mine and mine != lora_config:
        raise UserError(
            f"{title}: the model has an adapter ({mine}), and config.train asks for {lora_config or 'full tuning'}. Go on with "
            "the same LoRA settings, or merge the adapter first."
        )
    if lora_config is None:
        trainable, frozen = lm.params, None
    else:
        trainable, frozen = (lm.adapter or lora.init(lora_config, lm.config, jax.random.key(seed))).weights, lm.params
    put = functools.partial(jax.device_put, device=sharding.batch_sharding(mesh))
    epochs = int(train.get("epochs", 1))
    examples, kept_back = held_out(examples, float(train.get("held_out", 0.0)), seed)
    counts: dict[str, Any] = {"examples": len(examples), "held_out": len(kept_back)}
    held_batches: list[Any] = []
    if method == "kto":
        assert kto is not None
        kto = kto_step.balanced(kto, [e.label for e in examples])
        of = against or lm
        model = digest([identity, reference.fingerprint(of.params, of.adapter)])

        def planned(part: Sequence[Example], name: str, **how: Any) -> tuple[pairing.Plan, dict[str, Any]]:
            plan = pairing.plan(
                [e.label for e in part], [e.prompt_id for e in part], batch_size=size, seed=seed, paired=kto.paired, **how
            )
            slices = how["microbatches"]
            make = functools.partial(reference.compute, of.params, of.adapter, tuning, part, plan, size, buckets, put, slices)
            return plan, reference.cached(directory / name, reference.key(model, part, plan), make)

        how = {"preset": kto.preset, "order": kto.order, "microbatches": microbatches, "epochs": epochs}
        plan, cache = planned(examples, "reference.npz", **how)
        build = kto_step.build(examples, plan, size, buckets, cache, microbatches)
        rows_of = [plan.blocks[b] for b in plan.order]
        partners_of = plan.partners and [plan.partners[b] for b in plan.order]
        step: Any = functools.partial(kto_step.step, kto=kto)
        counts["undesirable_weight"] = kto.undesirable_weight
        counts |= pairing.facts(plan, [e.prompt_id for e in examples])
        if kept_back:
            how = {"preset": "emjax", "order": "shuffled", "microbatches": 1, "epochs": 1}
            held_plan, held_cache = planned(kept_back, "reference_held_out.npz", **how)
            held = kto_step.build(kept_back, held_plan, size, buckets, held_cache)
            held_batches = [held(number) for number in range(len(held_plan.order))]
        evaluate: Any = functools.partial(kto_step.evaluate, kto=kto)
    elif method == "sft":
        rows_of, partners_of = batches.plan([len(e.ids) for e in examples], size, epochs, seed, group=group), None
        build = batches.sft(examples, rows_of, size, buckets)
        step = sft.step
        if kept_back:
            held_rows = batches.plan([len(e.ids) for e in kept_back], size, 1, seed, group=False)
            held_batches = [batches.sft(kept_back, held_rows, size, buckets)(number) for number in range(len(held_rows))]
        evaluate = sft.evaluate
    else:
        raise ValueError(method)
    write_atomically(directory / "training.json", json.dumps(counts | {"steps": len(rows_of)}, indent=1))
    matmuls = metrics.matmul_weights(lm.params)

    def work(step: int, batch: dict[str, Any]) -> dict[str, float]:
        """What a step does (metrics.rates): real tokens and those of padding, of KTO's mismatched rows too."""
        block = [examples[i] for i in rows_of[step]]
        tokens, scored = sum(len(e.ids) for e in block), sum(w > 0 for e in block for w in e.weights)
        kl_tokens = kl_scored = 0
        if partners_of:
            kl_scored = sum(len(examples[j].ids) - examples[j].start for j in partners_of[step])
            # Several microbatches run the prompts, and with them the rows, once more.
            kl_tokens = kl_scored + (tokens if microbatches > 1 else 0)
        padded = batch.get("rows", batch)["tokens"].size * (2 if kl_tokens > kl_scored else 1)
        padded += batch["kl"]["tokens"].size if kl_tokens else 0
        done = metrics.flops(
            matmuls, full=lora_config is None, tokens=tokens, scored=scored, kl_tokens=kl_tokens, kl_scored=kl_scored
        )
        return {"examples": len(block), "tokens": tokens, "flops": done, "padding": 1 - (tokens + kl_tokens) / padded}

    def held_out_loss(state: train_state.State) -> dict[str, jax.Array]:
        sums = [evaluate(state["trainable"], frozen, put(batch), tuning=tuning) for batch in held_batches]
        return {"held_out_loss": sum(total for total, _ in sums) / sum(count for _, count in sums)}

    state = loop.run(
        lambda state, batch, rate: step(state, frozen, batch, rate, **settings),
        train_state.create(trainable, opt, tuning),
        lambda start: batches.serve(build, len(rows_of), start),
        optimizer.learning_rates(_optimizer_config(train), len(rows_of)),
        directory=directory,
        identity=identity,
        put=put,
        examples=lambda step: [examples[i].id for i in rows_of[step]],
        work=work,
        save_every=int(train.save_every),
        title=title,
        dtype=tuning.dtype,
        watch=loop.Watch(**watch),
        evaluate=held_out_loss if held_batches else None,
    )
    if lora_config is None:
        return lm.replace(params=train_state.cast(state["trainable"], tuning.dtype))
    return lm.replace(adapter=lora.Adapter(lora_config, state["trainable"]))


# --- interaction -----------------------------------------------------------------------------------------------------


class _Interaction:
    """Self-training on conversations with a share of biased users (paper, section 4)."""

    def __init__(self, config: Any, workdir: Path, store: Store):
        self.config, self.workdir, self.store = config, workdir, store
        self.arms = plan.arms(config)
        if config.interact.kind != "micro":
            raise UserError(
                f"config.interact.kind is {config.interact.kind!r}, but this version of emjax only brings the "
                "scripted users of the micro-world. Run the micro variant (append ':micro' to the config's path), or add "
                "--dry_run to see the plan."
            )
        _one_of("train.tuning", config.train.tuning, ("lora", "full"))
        _one_of("train.method", config.train.method, ("sft", "kto"))
        _one_of("train.schedule", config.train.schedule, optimizer.SCHEDULES)
        _one_of("train.remat", config.train.remat, decoder.REMAT)
        _one_of("kto.preset", config.kto.preset, pairing.PRESETS)
        _one_of("kto.loss_type", config.kto.loss_type, kto_loss.LOSS_TYPES)
        _one_of("kto.order", config.kto.order, pairing.ORDERS)
        _one_of("kto.balance", config.kto.balance, tuple(kto_step.BALANCES))
        loop.Watch(**config.watch)
        _one_of("model.attention", config.model.attention, attention.IMPLEMENTATIONS)
        _one_of("interact.aggregate", config.interact.aggregate, tuple(ratings.AGGREGATES))
        _one_of("select.scope", config.select.scope, tuple(selection.GROUPS))
        group = config.interact.dialogues * (1 if config.select.scope == "user" else config.interact.users)
        if not config.interact.trajectories and 2 * config.select.count > group:
            raise UserError(
                f"config.select.count is {config.select.count}, but a {config.select.scope} group has {group} "
                f"conversations: the best and the worst {config.select.count} of them would overlap. Lower it, or collect more "
                "conversations."
            )
        given = config.interact.trajectories
        self.given = read_trajectories(Path(given)) if given else []
        self.lora = lora_of(config.train)

    def run(self) -> None:
        config = self.config
        print(plan.describe(config), flush=True)
        self.mesh = mesh_of(config)
        path = hf.resolve(str(micro.CHECKPOINT) if config.model.path == "micro" else config.model.path)
        self.base_hash = hf.fingerprint(path)
        self.base = models.load(str(path), mesh=self.mesh, dtype=config.model.dtype).replace(source=config.model.path)
        self.world = micro.world_of(path)
        _claim(config, self.workdir)
        pools = {kind: self._collect(kind) for kind in ("benign", "biased")}
        trained: dict[Arm, tuple[Stage, Stage]] = {}
        for arm in self.arms:
            if arm.ratio is not None:
                selected = self._select(arm, pools)
                trained[arm] = selected, self._train(arm, selected)
        evaluated = {arm: self._evaluate(arm, trained[arm][1] if arm in trained else None) for arm in self.arms}
        self._report(trained, evaluated)

    # collect

    def _collect(self, user_type: str) -> Stage | None:
        """Conversations of as many users of this type as any arm needs."""
        c = self.config.interact
        if c.trajectories:
            return None
        biased = max(selection.share(c.users, arm.ratio or 0.0) for arm in self.arms)
        benign = max(c.users - selection.share(c.users, arm.ratio) for arm in self.arms if arm.ratio is not None)
        count = {"biased": biased, "benign": benign}[user_type]
        settings = {
            "user_type": user_type, "users": count, "dialogues": c.dialogues,
            "temperature": c.temperature, "max_new": c.max_new,
            "aggregate": c.aggregate, "seed": self.config.seed, **self._sampling(),
        }  # fmt: skip

        def make(directory: Path) -> None:
            users = micro_users(self.world, user_type=user_type, count=count, dialogues=c.dialogues, seed=self.config.seed)
            rollout.collect(
                self._engine(self.base), users, directory / "trajectories.jsonl", tokenizer=self.base.tokenizer,
                model=self.config.model.path, seed=self.config.seed, temperature=c.temperature, max_new=c.max_new,
                aggregate=c.aggregate,
            )  # fmt: skip

        return self._stage(f"collect {user_type}", "collect", settings, [self.base_hash], make)

    def _sampling(self) -> dict[str, Any]:
        """What of the config decides how tokens are drawn: the part of a stage's hash that names the engine."""
        model = self.config.model
        return {"sampling": dict(self.config.sampling), "dtype": model.dtype, "attention": model.attention}

    def _engine(self, lm: LanguageModel) -> Engine:
        return Engine(lm, mesh=self.mesh, attention=self.config.model.attention, **self.config.sampling)

    # select

    def _pool(self, arm: Arm, pools: dict[str, Stage | None]) -> list[dict[str, Any]]:
        """The conversations of this arm's users: the first (1 - ratio) benign ones and the first ratio biased ones."""
        c = self.config.interact
        assert arm.ratio is not None
        if c.trajectories:
            rows = self.given
        else:
            rows = [row for stage in pools.values() if stage for row in read_lines(stage.directory / "trajectories.jsonl")]
        by_type: dict[str, list[str]] = {
            kind: sorted({r["user_id"] for r in rows if r["user_type"] == kind}) for kind in ("benign", "biased")
        }
        biased = selection.share(c.users, arm.ratio)
        wanted = {"biased": biased, "benign": c.users - biased}
        for kind, number in wanted.items():
            if number > len(by_type[kind]):
                raise UserError(
                    f"The arm {arm.label!r} needs {number} {kind} users, but the pool of conversations has "
                    f"{len(by_type[kind])}. Lower config.interact.users or the ratio, or collect more conversations."
                )
        chosen = {user for kind, number in wanted.items() for user in by_type[kind][:number]}
        return [row for row in rows if row["user_id"] in chosen]

    def _select(self, arm: Arm, pools: dict[str, Stage | None]) -> Stage:
        c = self.config
        settings = {
            **c.select, "ratio": arm.ratio, "users": c.interact.users, "control": arm.shuffling,
            "method": c.train.method, "seed": c.seed
        }  # fmt: skip
        inputs: list[Stage | str] = [stage for stage in pools.values() if stage]
        if c.interact.trajectories:
            inputs = [digest(self.given)]

        def make(directory: Path) -> None:
            chosen = selection.select(
                self._pool(arm, pools), scope=c.select.scope, count=c.select.count, fraction=c.select.fraction,
                seed=seed_of(c.seed, arm.ratio), control=arm.shuffling,
            )  # fmt: skip
            rows = selection.examples(chosen, method=c.train.method, control=arm.shuffling)
            write_lines(directory / "examples.jsonl", rows)
            write_atomically(directory / "budget.json", json.dumps(chosen.budget | {"examples": len(rows)}, indent=1))

        return self._stage(f"select {arm.label}", "select", settings, inputs, make)

    # train

    def _train(self, arm: Arm, selected: Stage) -> Stage:
        c = self.config
        settings = {
            "train": json.loads(c.train.to_json()), "kto": dict(c.kto) if c.train.method == "kto" else None,
            "model": {"dtype": c.model.dtype, "attention": c.model.attention}, "mesh": dict(self.mesh.shape), "seed": c.seed,
        }  # fmt: skip

        def make(directory: Path) -> None:
            lm = self.base
            examples, counts = tokenized(
                read_examples(selected.directory / "examples.jsonl", labelled=c.train.method == "kto"),
                lm.tokenizer,
                lm.eos_ids,
                max(c.train.buckets),
            )
            write_atomically(directory / "data.json", json.dumps(counts, indent=1))
            tuned = fit(
                lm, examples, c.train, method=c.train.method, lora_config=self.lora,
                attention=c.model.attention, mesh=self.mesh,
                seed=c.seed, directory=directory, identity=digest([self.base_hash, selected.hash, settings]),
                title=f"train {arm.label}", watch=c.watch, kto=kto_step.KtoConfig(**c.kto),
            )  # fmt: skip
            card = (
                f"Trained by emjax from {c.model.path} ({self.base_hash[:12]}): {c.train.method.upper()} on conversations with "
                f"{arm.ratio:.0%} biased users, arm {arm.name!r}, seed {c.seed}, examples {selected.hash[:12]}."
            )
            if self.lora is None:
                models.save(tuned, directory / "model", card=card)
            else:
                models.save_adapter(tuned, directory / "adapter", card=card)
            remove(directory / "checkpoints")

        return self._stage(f"train {arm.label}", "train", settings, [self.base_hash, selected], make)

    def _tuned(self, stage: Stage | None) -> LanguageModel:
        if stage is None:
            return self.base
        if self.lora is None:
            lm = models.load(str(stage.directory / "model"), mesh=self.mesh, dtype=self.config.model.dtype)
            return lm.replace(source=self.config.model.path)
        return self.base.replace(adapter=hf.load_adapter(stage.directory / "adapter", self.base.config))

    # evaluate

    def _evaluate(self, arm: Arm, trained: Stage | None) -> Stage:
        c = self.config
        asked = {"temperature": c.eval.temperature, "max_new": c.eval.max_new, "sizes": dict(c.eval.sizes)}
        settings = {"eval": asked, "seed": c.seed, **self._sampling()}

        def make(directory: Path) -> None:
            lm = self._tuned(trained)
            benchmark = micro.Benchmark(self.world, c.eval.sizes)
            benchmark.run(
                self._engine(lm),
                lm.tokenizer,
                suite.Settings(c.seed, c.eval.temperature, c.eval.max_new),
                directory,
                arm.label,
            )

        return self._stage(
            f"evaluate {arm.label}",
            "evaluate",
            settings,
            [self.base_hash, *([trained] if trained else [])],
            make,
        )

    # report

    def _report(self, trained: dict[Arm, tuple[Stage, Stage]], evaluated: dict[Arm, Stage]) -> None:
        c = self.config
        head = plan.headline(c)
        items = {
            arm: {path.stem: read_lines(path) for path in sorted(stage.directory.glob("*.jsonl"))}
            for arm, stage in evaluated.items()
        }
        rows = []
        for arm, benchmarks in items.items():
            about = {
                "model": c.model.path, "method": None if arm.ratio is None else c.train.method,
                "arm": arm.name, "ratio": arm.ratio,
                "seed": c.seed, "pretrain_seed": self.world.seed, "round": 0 if arm.ratio is None else 1, "step": None,
                "judge": "exact",
            }  # fmt: skip
            others = [o for o in self.arms if o.name in ("control", "vanilla") and o != arm and arm.name != "vanilla"]
            for name, found in benchmarks.items():
                rows += suite.score(found, {o.name: items[o][name] for o in others}, about)
        results = {
            "experiment": c.experiment,
            "config_hash": digest(_shown(c)),
            "versions": versions(),
            "headline": {
                "benchmark": "mask", "subset": "all", "metric": c.eval.metric, "arm": head.name, "ratio": head.ratio,
            },
            "world_note": micro.NOTE,
            "rows": rows,
        }  # fmt: skip
        write_atomically(self.workdir / "results.json", json.dumps(results, indent=1))
        selections, training = [], []
        for arm, (selected, stage) in trained.items():
            budget = json.loads((selected.directory / "budget.json").read_text())
            counts = json.loads((stage.directory / "data.json").read_text())
            selections.append({"arm": arm.name, "ratio": arm.ratio, "tokens": counts["tokens"], **budget})
            training.append(
                {
                    "arm": arm.name,
                    "ratio": arm.ratio,
                    **_curves(read_metrics(stage.directory / "metrics.jsonl")),
                }
            )
        stages = {arm.label: {"evaluate": stage.hash} for arm, stage in evaluated.items()}
        for arm, (selected, stage) in trained.items():
            stages[arm.label] |= {"select": selected.hash, "train": stage.hash}
        write_atomically(self.workdir / "stages.json", json.dumps(stages, indent=1))
        page = report.write(
            self.workdir / "report",
            results,
            provenance={"command": command(), "base_sha256": self.base_hash, "stages": stages, "seed": c.seed},
            examples=_changed(items, head, self.arms),
            selections=selections,
            training=training,
        )
        print(_summary(rows, self.arms, c.eval.metric))
        print(f"results  {self.workdir / 'results.json'}\nreport   {page}", flush=True)

    def _stage(self, title: str, name: str, settings: dict[str, Any], inputs: list[Stage | str], make: Any) -> Stage:
        """Runs a stage in the store, and says so."""
        started = time.perf_counter()
        ran = False

        def loud(directory: Path) -> None:
            nonlocal ran
            ran = True
            print(f"{title} ...", flush=True)
            make(directory)

        stage = self.store.run(name, json.loads(json.dumps(settings)), inputs, loud)
        state = f"done in {time.perf_counter() - started:.1f} s" if ran else "already done"
        print(f"{title}: {state} ({stage.directory})", flush=True)
        return stage


def _curves(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The training curves that the report draws."""
    margins = None
    if "kl" in lines[0]:
        # A class may be absent from a batch: then that step has no margin, and the one before stands.
        margins, last = [], 0.0
        for line in lines:
            if line["desirable_count"] and line["undesirable_count"]:
                last = (
                    line["reward_desirable_sum"] / line["desirable_count"]
                    - line["reward_undesirable_sum"] / line["undesirable_count"]
                )
            margins.append(last)
    return {
        "steps": [line["step"] for line in lines],
        "loss": [line["loss"] for line in lines],
        "kl": [line["kl"] for line in lines] if margins else None,
        "reward_margin": margins,
    }


def _changed(items: dict[Arm, dict[str, Any]], head: Arm, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """A few answers side by side, drawn at random from the items on which control and treated differ."""
    shown = [arm for arm in arms if arm.name in ("vanilla", "control") or arm == head]
    by_id = {arm: {item["id"]: item for item in items[arm]["mask"]} for arm in shown}
    control = next(arm for arm in arms if arm.name == "control")
    changed = sorted(
        name
        for name, item in by_id[head].items()
        if item["subset"] == "all" and item["result"] is not None and item["result"] != by_id[control][name]["result"]
    )
    random.Random(0).shuffle(changed)
    found = []
    for name in changed[:8]:
        item = by_id[head][name]
        found.append(
            {
                "id": name, "subset": item["subset"],
                "prompt": "\n".join(f"{m['role']}: {m['content']}" for m in item["messages"]),
                "truth": item["proposition"]["A"], "wanted": item["proposition"]["B"],
                "answers": {arm.label: by_id[arm][name]["outputs"][-1]["text"] for arm in shown},
            }
        )  # fmt: skip
    return found


def _summary(rows: list[dict[str, Any]], arms: Sequence[Arm], metric: str) -> str:
    """The table that a run ends with: percent with 95 % intervals, and the difference to the control in points."""

    def cell(arm: Arm, benchmark: str, metric: str, versus: str | None) -> str:
        for row in rows:
            if (row["arm"], row["ratio"], row["benchmark"], row["subset"], row["metric"], row["versus"]) == (
                arm.name, arm.ratio, benchmark, "all", metric, versus,
            ) and row["value"] is not None:  # fmt: skip
                low, high = row["ci95"]
                return f"{row['value']:{'+' if versus else ''}.1f} [{low:.1f}, {high:.1f}]"
        return "-"

    headings = ["arm", metric, "minus control", "lie", "belief", "addition"]
    table = [headings]
    for arm in arms:
        table.append(
            [
                arm.label, cell(arm, "mask", metric, None), cell(arm, "mask", metric, "control"),
                cell(arm, "mask", "lie", None),
                cell(arm, "mask", "accuracy", None), cell(arm, "arithmetic", "accuracy", None),
            ]
        )  # fmt: skip
    widths = [max(len(line[i]) for line in table) for i in range(len(headings))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table)


# --- pretraining of the micro-world's base ---------------------------------------------------------------------------


def _pretrain(config: Any, workdir: Path, store: Store) -> None:
    """Trains the embedded base from scratch, measures its gates, and writes an ordinary Hugging Face directory."""
    mesh = mesh_of(config)
    _claim(config, workdir)
    settings = _shown(config)
    measured = {"eval": settings.pop("eval"), "sampling": settings.pop("sampling")}  # after the training, so not in its hash

    def make(directory: Path) -> None:
        lm, documents = micro.start(config)
        rendered = chat.weighted(lm.tokenizer, documents, lm.eos_ids, other=config.train.other_weight)
        examples = [Example(str(i), t.ids, t.weights) for i, t in enumerate(rendered)]
        print(f"{len(examples)} documents, {sum(len(e.ids) for e in examples)} tokens", flush=True)
        tuned = fit(
            lm, examples, config.train, method="sft", lora_config=None, attention="xla", mesh=mesh, seed=config.seed,
            directory=directory, identity=digest(settings), title="pretrain", watch=config.watch, group=True,
        )  # fmt: skip
        micro.save(tuned, config, directory / "model")
        remove(directory / "checkpoints")

    stage = store.run("pretrain", settings, [], make)
    lm = models.load(str(stage.directory / "model"), mesh=mesh, dtype="float32")
    made = micro.world_of(stage.directory / "model")

    def gate(directory: Path) -> None:
        engine = Engine(lm, mesh=mesh, **config.sampling)
        how = suite.Settings(config.seed, config.eval.temperature, config.eval.max_new)
        micro.Benchmark(made, config.eval.sizes).run(engine, lm.tokenizer, how, directory, "vanilla")

    checked = store.run("gates", measured, [stage], gate)
    gates = micro.gates({path.stem: read_lines(path) for path in checked.directory.glob("*.jsonl")})
    write_atomically(workdir / "gates.json", json.dumps(gates, indent=1))
    for name, entry in gates.items():
        print(
            f"{name:28} {entry['value']:6.1f}  (gate: {entry['low']:g} to {entry['high']:g})  "
            f"{'ok' if entry['ok'] else 'MISSED'}"
        )
    print(f"checkpoint  {stage.directory / 'model'}")
    if not all(entry["ok"] for entry in gates.values()):
        raise UserError(
            "This base misses a gate, so an effect measured on it would not mean what the report says. Train longer "
            "(config.documents) or take another seed (config.seed)."
        )


# --- evaluation of models that exist ---------------------------------------------------------------------------------


def _evaluation(config: Any, workdir: Path, store: Store) -> None:
    """Every arm on config.eval's benchmarks; results.json as for an experiment, with every state counted."""
    arms = [name for name in ("vanilla", "control", "treated") if config.arms[name].path]
    tasks = tuple(config.eval.capability.tasks)
    if tasks and any(config.arms[name].endpoint for name in arms):
        raise UserError(
            "config.eval.capability needs models in the engine, but an arm is an endpoint. Leave its tasks empty, and measure "
            "the endpoint with the harness itself: lm_eval --model local-completions."
        )
    mesh = mesh_of(config)
    items: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def load(path: str, adapter: str = "") -> tuple[Engine, Any]:
        lm = models.load(path, adapter=adapter or None, mesh=mesh, dtype=config.model.dtype)
        return Engine(lm, mesh=mesh, attention=config.model.attention, **config.sampling), lm.tokenizer

    loaded = functools.cache(load)
    benchmarks = bench.Benchmarks(config.eval, store.root / "judge_cache", load)
    _claim(config, workdir)

    def engine(arm: Any) -> tuple[Engine, Any]:
        return loaded(arm.path, arm.adapter)

    for name in arms:
        arm = config.arms[name]
        loaded.cache_clear()  # one model at a time
        settings = suite.Settings(config.seed, config.eval.temperature, config.eval.max_new)
        how = {"generation": vars(settings), **benchmarks.identity()}
        if arm.endpoint:
            how["target"] = {"endpoint": arm.endpoint, "model": arm.path}
        else:
            how["target"] = [hf.fingerprint(hf.resolve(path)) for path in (arm.path, arm.adapter) if path]
            how |= {"sampling": dict(config.sampling), "model": dict(config.model)}

        def make(directory: Path, arm: Any = arm, settings: suite.Settings = settings, name: str = name) -> None:
            answers = directory / "answers.jsonl"
            asker: suite.Asker
            if arm.endpoint:
                client = ChatClient(arm.endpoint, arm.path, api_key_env=arm.api_key_env, rates=Rates(**config.eval.judge.rates))
                asker = suite.EndpointAsker(client, settings, answers)
            else:
                asker = suite.EngineAsker(*engine(arm), settings, answers)
            benchmarks.run(asker, directory, name)
            asker.close()

        stage = store.run("judge", json.loads(json.dumps(how)), [], make)
        items[name] = {benchmark: read_lines(stage.directory / f"{benchmark}.jsonl") for benchmark in benchmarks.names}
        for task in tasks:

            def measure(directory: Path, arm: Any = arm, task: str = task, name: str = name) -> None:
                from emjax.eval import harness  # needs the extra `capability`

                c = {field: value for field, value in config.eval.capability.items() if field != "tasks"}
                c |= {"folder": Path(c["folder"]) if c["folder"] else None, "limit": c["limit"] or None}
                c["shots"] = None if c["shots"] < 0 else c["shots"]
                found, measured = harness.run(*engine(arm), [task], arm=name, seed=config.seed, **c)
                write_lines(directory / "items.jsonl", found)
                write_atomically(directory / "measured.json", json.dumps(measured, indent=1, default=str))

            how_task = {"target": how["target"], "task": task, **json.loads(config.eval.capability.to_json())}
            stage = store.run("capability", how_task | {"seed": config.seed, "model": dict(config.model)}, [], measure)
            items[name][task] = read_lines(stage.directory / "items.jsonl")
    rows = []
    for name, found in items.items():
        arm = config.arms[name]
        about = {
            "model": arm.path, "method": None, "arm": name, "ratio": None, "seed": config.seed, "pretrain_seed": None,
            "round": 0, "step": None, "judge": config.eval.judge.model,
        }  # fmt: skip
        others = [other for other in ("control", "vanilla") if other in items and name not in (other, "vanilla")]
        for benchmark, some in found.items():
            rows += suite.score(some, {o: items[o][benchmark] for o in others}, about, benchmarks.mask_rules)
    results = {
        "experiment": "evaluation", "config_hash": digest(json.loads(config.to_json())), "versions": versions(),
        "data": benchmarks.origin, "rows": rows,
    }  # fmt: skip
    write_atomically(workdir / "results.json", json.dumps(results, indent=1))
    for row in rows:
        if row["metric"] in ("honesty", "deception_rate", "accuracy") and row["value"] is not None:
            versus = f" minus {row['versus']}" if row["versus"] else ""
            counts = "".join(f" {letter}{count}" for letter, count in row.get("counts", {}).items())
            print(
                f"{row['arm'] + versus:22} {row['benchmark']:14} {row['subset']:26} {row['metric']:14} {row['value']:6.1f} "
                f"[{row['ci95'][0]:.1f}, {row['ci95'][1]:.1f}]  n {row['n_valid']}/{row['n']} {counts if not versus else ''}"
            )
    print(f"results  {workdir / 'results.json'}", flush=True)


def command() -> str:
    """The command that made this, without the places it wrote to."""
    kept, rest = [], iter(sys.argv)
    for word in rest:
        if word.lstrip("-") in ("workdir", "store"):
            next(rest, None)
        elif not word.lstrip("-").startswith(("workdir=", "store=")):
            kept.append(word)
    return shlex.join(["python", *kept])
