"""The sampling engine: continuous batching over a fixed number of slots.

The device functions are module-level and take the model's configuration as a static argument and all weights
as arrays, so every Engine in the process (other weights, other adapters of the same shape) runs the same
programs.

A prompt is prefilled in chunks on the absolute grid 0, chunk, 2 chunk, ... One program takes a fixed number of
chunks of any rows; what a chunk reads follows from its own position. All but a prompt's last token is prefilled;
decode feeds that one and draws the first token like every other. So a row's result depends on its prompt, its
settings and the engine's slots, cache length and chunk, bit for bit: its random key is its own, no neighbour
changes a program it runs in, and a block that another prompt has made is the block it would make itself.

The host works one round ahead: a round is dispatched before the results of the one before are read.
"""

import asyncio
import collections
import dataclasses
import functools
import itertools
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from emjax.errors import UserError
from emjax.models import LanguageModel, attention, decoder, rope
from emjax.models.config import ModelConfig
from emjax.models.decoder import Params
from emjax.models.logprobs import token_logprobs
from emjax.models.lora import Adapter
from emjax.sampling import cache as kv
from emjax.sampling.cache import Cache, State
from emjax.sampling.prefix import Blocks, names
from emjax.sampling.processors import TOP_LOGPROBS, Drawn, sample

STEPS = 16  # decode steps between two looks of the host at most; rows that end earlier idle until then
BUSY_STEPS = 4  # the same while rows come and go
SHARE = 16  # where more than one row in so many ended unforeseen, a round is read before the next is dispatched
TURN = 4  # while other adapters wait, one adapter's turn ends after this many times `slots` requests


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one request is sampled. Raises UserError for values outside their range."""

    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0  # of what top_k leaves; 1 = off
    min_p: float = 0.0  # relative to the likeliest token; 0 = off
    seed: int = 0
    top_logprobs: int = 0  # alternatives reported a token, at most 20
    max_new: int = 256  # tokens, the end token included
    stop: tuple[str, ...] = ()  # the text ends before the first of these

    def __post_init__(self) -> None:
        def whole(value: int, lowest: int, highest: int) -> bool:
            return isinstance(value, int) and lowest <= value <= highest

        ranges = {
            "temperature": (0 <= self.temperature < float("inf"), "a number >= 0 (0 = greedy)"),
            "top_k": (whole(self.top_k, 0, 2**31 - 1), "an integer >= 0 (0 = off)"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1] (1 = off)"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1] (0 = off)"),
            "seed": (whole(self.seed, 0, 2**64 - 1), "an integer in [0, 2^64)"),
            "top_logprobs": (whole(self.top_logprobs, 0, TOP_LOGPROBS), f"an integer in [0, {TOP_LOGPROBS}]"),
            "max_new": (whole(self.max_new, 1, 2**31 - 1), "an integer >= 1"),
            "stop": (isinstance(self.stop, tuple) and all(self.stop), "a tuple of non-empty strings"),
        }
        for name, (good, wanted) in ranges.items():
            if not good:
                raise UserError(f"sampling.{name} = {getattr(self, name)!r}: it must be {wanted}.")


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt. `adapter` names one given to Engine.set_adapter; None = the engine's model as it is."""

    id: str
    tokens: tuple[int, ...]
    sampling: Sampling = Sampling()
    adapter: str | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """`tokens` and `logprobs` include the end token, `text` does not.

    Log-probs are natural ones of the model itself, before temperature and filters. top_logprobs: for each
    token the likeliest (id, log-prob) pairs, best first; empty unless asked for. Where a stop string ended
    the row, `tokens` end with the token that completed it, `text` before it.
    """

    id: str
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]
    stop_reason: str  # eos | stop | length | cancelled


@dataclasses.dataclass
class Stats:
    """Counted since the engine was made."""

    slots: int
    requests: int = 0  # finished
    tokens: int = 0  # drawn
    steps: int = 0  # decode steps
    prefill_tokens: int = 0  # to be prefilled, for prompts and scores
    reused_tokens: int = 0  # of these, taken from blocks that were there
    prefill_positions: int = 0  # computed for the others, padding included
    row_steps: int = 0  # decode steps times the rows that used them

    @property
    def occupied(self) -> float:
        """The share of decoded slot-steps that a row used."""
        return self.row_steps / max(1, self.steps * self.slots)


# --- device functions --------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("mesh",))
def _embed(mesh: Mesh | None, top: Params, tokens_RxC: jax.Array) -> jax.Array:
    return decoder.embed(top, tokens_RxC, mesh)


# One program a reach serves all layers: compile time does not grow with depth, and nothing needs the weights
# stacked as well as apart.
@functools.partial(jax.jit, static_argnames=("config", "implementation", "reach", "mesh"), donate_argnames=("x_RxCxD", "cache"))
def _prefill_layer(
    config: ModelConfig,
    implementation: str,
    reach: int,
    mesh: Mesh | None,
    layer: Params,
    adapter: Adapter | None,
    x_RxCxD: jax.Array,
    cache: Cache,
    slot_R: jax.Array,
    block_R: jax.Array,
) -> tuple[jax.Array, Cache]:
    """One layer over R chunks, each of its slot (kv.write_and_read)."""
    C = x_RxCxD.shape[1]
    start_R = block_R * C

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Cache]:
        written, (k_RxKxExh, v_RxKxExh) = kv.write_and_read(cache, k, v, slot_R, block_R, reach, mesh)
        return attention.chunk_over_cache(q, k_RxKxExh, v_RxKxExh, start_R, implementation), written

    tables = rope.tables(config, start_R[:, None] + jnp.arange(C))
    x_RxCxD, cache = decoder.block(config, layer, x_RxCxD, tables, attend, adapter)
    return decoder.by_rows(x_RxCxD, mesh), cache


@functools.partial(jax.jit, static_argnames=("chunk", "mesh"), donate_argnames=("caches",))
def _copy(
    chunk: int, mesh: Mesh | None, caches: tuple[Cache, ...], source_N: jax.Array, to_N: jax.Array, block_N: jax.Array
) -> tuple[Cache, ...]:
    return kv.copy(caches, chunk, source_N, to_N, block_N, mesh)


@functools.partial(jax.jit, static_argnames=("mesh",), donate_argnames=("state",))
def _start(mesh: Mesh | None, state: State, new: State) -> State:
    """Puts the rows that are active in `new` into their slots."""

    def either(old: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.where(new.active_B.reshape(-1, *[1] * (old.ndim - 1)), x, old)

    return kv.replicate(jax.tree.map(either, state, new), mesh)


def _logits(config: ModelConfig, top: Params, x_BxD: jax.Array) -> jax.Array:
    hidden_BxD = decoder.rms_norm(x_BxD, top["final_norm"], config.norm_eps)
    return jnp.einsum("bd,dv->bv", hidden_BxD, decoder.head(top), preferred_element_type=jnp.float32)


def _ended(token_B: jax.Array, count_B: jax.Array, limit_B: jax.Array, eos_E: jax.Array) -> jax.Array:
    return jnp.any(token_B[:, None] == eos_E, axis=-1) | (count_B >= limit_B)


@functools.partial(
    jax.jit, static_argnames=("config", "implementation", "vocabulary", "mesh"), donate_argnames=("caches", "state")
)
def _decode(
    config: ModelConfig,
    implementation: str,
    vocabulary: int,
    mesh: Mesh | None,
    layers: tuple[Params, ...],
    top: Params,
    adapter: tuple[Adapter, ...] | None,
    caches: tuple[Cache, ...],
    state: State,
    alive_B: jax.Array,
    steps: jax.Array,
    eos_E: jax.Array,
) -> tuple[tuple[Cache, ...], State, tuple[Drawn, jax.Array, jax.Array, jax.Array]]:
    """At most `steps` (<= STEPS) tokens for every active row. Rows that are not alive are dropped first.

    Returns (caches, state, (drawn, active_B, count_B, steps run)); drawn holds STEPS entries a field.
    """
    B = alive_B.shape[0]
    state = dataclasses.replace(state, active_B=state.active_B & alive_B)
    x_BxD = jax.ShapeDtypeStruct((B, config.D), top["embed"].dtype)
    one_step = jax.eval_shape(
        lambda top, x_BxD, state: sample(_logits(config, top, x_BxD), state.rows, state.count_B, state.active_B, vocabulary),
        top, x_BxD, state,
    )  # fmt: skip
    drawn = jax.tree.map(lambda x: jnp.zeros((STEPS, *x.shape), x.dtype), one_step)

    def go_on(carry: tuple[jax.Array, tuple[Cache, ...], State, Drawn]) -> jax.Array:
        step, _, state, _ = carry
        return (step < steps) & jnp.any(state.active_B)

    def one(
        carry: tuple[jax.Array, tuple[Cache, ...], State, Drawn],
    ) -> tuple[jax.Array, tuple[Cache, ...], State, Drawn]:
        step, caches, state, drawn = carry
        tables = rope.tables(config, state.length_B[:, None])
        x_BxTxD = top["embed"][state.token_B][:, None]
        kept = []
        for i, (layer, cache) in enumerate(zip(layers, caches, strict=True)):

            def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: Cache = cache) -> tuple[jax.Array, Cache]:
                # Rows that have ended write nowhere.
                out_BxHxh, cache = attention.decode(
                    q[:, 0], k[:, 0], v[:, 0], cache, state.length_B, state.active_B, implementation, mesh
                )
                return out_BxHxh[:, None], kv.spread(cache, mesh)

            x_BxTxD, cache = decoder.block(config, layer, x_BxTxD, tables, attend, adapter[i] if adapter else None)
            kept.append(cache)
        new = sample(_logits(config, top, x_BxTxD[:, 0]), state.rows, state.count_B, state.active_B, vocabulary)
        count_B = state.count_B + state.active_B
        drawn = jax.tree.map(lambda all_, x: all_.at[step].set(x), drawn, new)
        ended_B = jnp.any(new.token_B[:, None] == eos_E, axis=-1) | (count_B >= state.limit_B)
        state = dataclasses.replace(
            state,
            active_B=state.active_B & ~ended_B,
            length_B=state.length_B + state.active_B,
            count_B=count_B,
            token_B=new.token_B,
        )
        return step + 1, tuple(kept), state, drawn

    step, caches, state, drawn = jax.lax.while_loop(go_on, one, (jnp.int32(0), caches, state, drawn))
    caches, (state, drawn) = kv.spread(caches, mesh), kv.replicate((state, drawn), mesh)
    return caches, state, (drawn, state.active_B, state.count_B, step)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def _target_logprobs(
    config: ModelConfig, mesh: Mesh | None, top: Params, x_RxCxD: jax.Array, target_RxC: jax.Array
) -> jax.Array:
    hidden_RxCxD = decoder.rms_norm(x_RxCxD, top["final_norm"], config.norm_eps)
    return kv.replicate(token_logprobs(decoder.head(top, mesh), hidden_RxCxD, target_RxC), mesh)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def _alternatives(
    config: ModelConfig, mesh: Mesh | None, top: Params, x_RxCxD: jax.Array, target_RxC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(log-probs, ids) of the likeliest next tokens, [R, C, TOP_LOGPROBS] each, and the targets' log-probs [R, C].

    One column's logits exist at a time. The targets' come from the same ones, so that a target which is the likeliest token
    has its log-prob to the last bit: clients tell so whether it is greedy.
    """

    def column(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        x_RxD, target_R = part
        logprob_RxV = jax.nn.log_softmax(_logits(config, top, x_RxD), axis=-1)
        values_RxN, ids_RxN = jax.lax.top_k(logprob_RxV, min(TOP_LOGPROBS, config.V))
        return values_RxN, ids_RxN, jnp.take_along_axis(logprob_RxV, target_R[:, None], axis=-1)[:, 0]

    found = jax.lax.map(column, (x_RxCxD.swapaxes(0, 1), target_RxC.T))
    return kv.replicate(jax.tree.map(lambda x: x.swapaxes(0, 1), found), mesh)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def _next_probs(
    config: ModelConfig, mesh: Mesh | None, top: Params, x_RxCxD: jax.Array, at_R: jax.Array, ids_RxN: jax.Array
) -> jax.Array:
    """The probabilities of `ids` after position `at` of each chunk, [R, N]."""
    x_RxD = jnp.take_along_axis(x_RxCxD, at_R[:, None, None], axis=1)[:, 0]
    probs_RxV = jax.nn.softmax(_logits(config, top, x_RxD), axis=-1)
    return kv.replicate(jnp.take_along_axis(probs_RxV, ids_RxN, axis=1), mesh)


# --- the host's side ---------------------------------------------------------------------------------------


class _Lane:
    """One adapter's weights and the rows that wait for them. One lane runs at a time."""

    def __init__(self, name: str | None, number: int, adapter: tuple[Adapter, ...] | None):
        self.name = name
        self.number = number
        self.adapter = adapter
        self.waiting: collections.deque[_Row] = collections.deque()


# New (tokens, logprobs, top_logprobs) of a row that goes on; what its last window brings is in the Result alone.
OnTokens = Callable[[tuple[int, ...], tuple[float, ...], tuple[tuple[tuple[int, float], ...], ...]], None]


@dataclasses.dataclass(eq=False)
class _Row:
    """A request on its way; or tokens to be scored, of which nothing is drawn: then `request` is None."""

    lane: _Lane
    tokens: np.ndarray  # int32, to be prefilled
    deliver: Callable[[Any], None]  # takes the Result (of a score, this row), or the exception that ended it
    request: Request | None = None
    limit: int = 0  # tokens to draw at most
    read_from: int = 0  # of a score: the hidden states from here on are read
    targets: np.ndarray | None = None  # of a score: int32, the token after each of `tokens`
    top: int = 0  # of a score: alternatives at each position
    ids: tuple[int, ...] = ()  # of a score: whose probabilities after the last token are asked for
    # On the way:
    names: list[bytes] = dataclasses.field(default_factory=list)  # of its blocks
    order: int = -1
    round: int = -1  # in which it got its slot
    next: int = 0  # the block to be prefilled
    ahead: int = 0  # tokens drawn at most, windows in flight included
    cancelled: bool = False  # by its caller, at any time
    done: bool = False  # delivered
    checked: int = 0  # tokens in which no stop string ends
    on_tokens: OnTokens | None = None
    told: int = 0  # tokens that on_tokens was given
    drawn: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    alternatives: list[tuple[tuple[int, float], ...]] = dataclasses.field(default_factory=list)
    probs: list[float] = dataclasses.field(default_factory=list)


class Engine:
    """Samples from one model, `slots` rows at a time, each with `cache_length` positions.

    generate, submit and the scores may be used side by side, also from several threads: what is asked at the same time
    runs together. On a mesh of several processes requests enter on process 0 alone, while the others `follow`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        slots: int,
        cache_length: int,
        chunk: int = 64,
        mesh: Mesh | None = None,
        attention: str = "xla",
    ):
        """slots: 0 = as many as the free memory holds (cache.free_slots). chunk: prompt tokens in one prefilled block,
        the grain of prefix reuse. attention: the kernels of prefill and decode. Raises UserError for sizes that model or
        mesh cannot take.
        """
        if slots < 0 or chunk < 1 or not 2 <= cache_length <= lm.config.max_position:
            raise UserError(
                f"Engine(slots={slots}, cache_length={cache_length}, chunk={chunk}): slots must be 0 (from free memory) or "
                f"more, a chunk at least 1, and the cache length between 2 and the model's {lm.config.max_position} positions."
            )
        self.config = lm.config
        self.cache_length = cache_length
        self.chunk = chunk
        self._attention = attention
        self._mesh = mesh or lm.mesh
        self._shared = self._mesh is not None and len({d.process_index for d in self._mesh.devices.flat}) > 1
        self._tokenizer = lm.tokenizer
        self._vocabulary = min(len(lm.tokenizer), lm.config.V)
        self._eos = frozenset(lm.eos_ids)
        self._eos_E = np.array(sorted(self._eos), np.int32)
        self._layers = kv.join(lm.config, lm.params["layers"], self._mesh, kv.groups())
        self._top = {name: x for name, x in lm.params.items() if name != "layers"}
        self._positions = -(-cache_length // chunk) * chunk  # the cache's: whole blocks
        self._reaches = kv.reaches(chunk, self._positions)
        # Of data x fsdp shards each prefills its own slots. A few chunks fill two CPU cores; an accelerator needs thousands of
        # tokens a call.
        self._shards = 1 if self._mesh is None else self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        self._blocks_a_shard = max(1, (512 // self._shards if jax.default_backend() == "cpu" else 2048) // chunk)
        self._blocks_a_call = self._shards * self._blocks_a_shard
        dtype = self._top["embed"].dtype
        self.slots = slots or kv.free_slots(self.config, self._positions, dtype, self._mesh)
        self.stats = Stats(self.slots)
        self._lanes: dict[str | None, _Lane] = {}
        self._lane_number = itertools.count()
        self.set_adapter(None, lm.adapter)

        self._lock = threading.RLock()  # one round at a time
        self._inbox: collections.deque[_Row] = collections.deque()
        self._order = itertools.count()
        self._round = 0
        self._closed = False
        self._driver: asyncio.Task[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._caches: tuple[Cache, ...] = ()  # the old ones go before the new ones come
        self._caches = kv.empty_caches(self.config, self.slots, self._positions, self._top["embed"].dtype, self._mesh)
        self._state = kv.empty_state(self.slots, self._mesh)
        self._blocks = Blocks(self.slots)
        self._rows: list[_Row | None] = [None] * self.slots  # prefilling or decoding
        self._free = dict.fromkeys(range(self.slots))  # the longest free first
        self._open: dict[int, _Row] = {}  # taken from the inbox and not delivered, by order
        self._flights: list[Callable[[], None]] = []  # read what the device was told to make
        self._surprises, self._watched = 0, 0  # rows that ended unforeseen when results were last read; of how many
        self._busy: dict[_Lane, None] = {}  # lanes with waiting rows, in the order of their next turn
        self._lane = self._lanes[None]
        self._admitted = 0  # in this lane's turn

    def set_adapter(self, name: str | None, adapter: Adapter | None) -> None:
        """Names an adapter (None = the bare base) for Request.adapter; the name None is the engine's own.

        Requests handed in before keep the adapter they came with. Adapters of one shape share the programs. With
        several processes, all of them call this, in the same order and while nothing is in flight.
        """
        weights = None
        if adapter is not None:
            weights = kv.join_adapter(self.config, adapter, self._top["embed"].dtype, self._mesh, kv.groups())
        self._lanes[name] = _Lane(name, next(self._lane_number), weights)

    # --- requests -----------------------------------------------------------------------------------------

    def _find_lane(self, name: str | None) -> _Lane:
        if name not in self._lanes:
            known = ", ".join(repr(n) for n in self._lanes if n is not None) or "none"
            raise UserError(f"The engine has no adapter named {name!r} (it has: {known}); give it with set_adapter first.")
        return self._lanes[name]

    def _check(self, what: str, tokens: Sequence[int]) -> np.ndarray:
        array = np.asarray(tokens)
        good = array.ndim == 1 and array.size > 0 and array.dtype.kind in "iu"
        if not good or array.min() < 0 or array.max() >= self.config.V:
            raise UserError(f"{what}: tokens must be a non-empty list of ids in [0, {self.config.V}).")
        return array.astype(np.int32)

    def _row(self, request: Request, deliver: Callable[[Any], None]) -> _Row:
        tokens = self._check(f"Request {request.id!r}", request.tokens)
        if len(tokens) >= self.cache_length:
            raise UserError(
                f"Request {request.id!r}: its prompt of {len(tokens)} tokens leaves no room for a new token in "
                f"the engine's cache_length of {self.cache_length}. Shorten it, or lengthen the cache."
            )
        limit = min(request.sampling.max_new, self.cache_length - len(tokens))
        return _Row(self._find_lane(request.adapter), tokens[:-1], deliver, request, limit)

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yields each result as its row ends. Raises UserError, before anything runs, for a bad request."""
        done: collections.deque[Any] = collections.deque()
        rows = [self._row(request, done.append) for request in requests]
        # The longest first: the last steps, in which slots run empty, are then few.
        return self._results(sorted(rows, key=lambda row: -row.limit), done)

    def _results(self, rows: list[_Row], done: collections.deque[Any]) -> Iterator[Any]:
        self._enter(rows)
        try:
            for _ in range(len(rows)):
                while not done:
                    self.step()
                result = done.popleft()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            for row in rows:
                row.cancelled = True  # of no effect on rows that have ended

    def _enter(self, rows: Iterable[_Row]) -> None:
        if self._shared and jax.process_index():
            raise UserError("The engine's mesh spans several processes: requests enter on process 0, the others follow().")
        self._inbox.extend(rows)

    async def submit(self, request: Request, *, on_tokens: OnTokens | None = None) -> Result:
        """Serves one request among all others in flight. Cancelling the caller frees its slot.

        on_tokens is called after each window in which the row did not end, from the engine's thread: it must neither block
        nor raise.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def resolve(result: Result | BaseException) -> None:
            if future.done():
                return
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

        def deliver(result: Result | BaseException) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(resolve, result)

        row = self._row(request, deliver)
        row.on_tokens = on_tokens
        self._enter([row])
        if self._driver is None or self._driver.done() or self._driver.get_loop() is not loop:
            self._driver = loop.create_task(self._drive())
        try:
            return await future
        except asyncio.CancelledError:
            row.cancelled = True
            raise

    async def _drive(self) -> None:
        """Steps while there is work. The device runs in a thread, so callers go on meanwhile."""
        while self._inbox or self._open or self._flights:
            await asyncio.to_thread(self.step)
            # Those just served may hand in their next request before the slots are refilled.
            await asyncio.sleep(0)

    # --- several processes --------------------------------------------------------------------------------

    def follow(self) -> None:
        """On every process but 0: runs what process 0 runs, until that calls `close`."""
        self._closed = False
        while not self._closed:
            self.step()

    def close(self) -> None:
        """On process 0: lets the processes that follow return. With one process there is nothing to close."""
        if self._shared:
            self._closed = True
            self.step()
            self._closed = False

    def _arrivals(self) -> list[_Row]:
        """The rows that came in; ends the cancelled ones. All processes get those of process 0."""
        rows = [self._inbox.popleft() for _ in range(len(self._inbox))]
        cancelled = [order for order, row in self._open.items() if row.cancelled]
        if self._shared:
            sent = [
                (r.lane.name, r.tokens, r.request, r.limit, r.read_from, r.targets, r.top, r.ids) for r in rows
            ]  # fmt: skip
            sent, cancelled, self._closed = _from_process_0((sent, cancelled, self._closed))
            if jax.process_index():
                rows = [_Row(self._find_lane(name), tokens, lambda _: None, *rest) for name, tokens, *rest in sent]
        for row in map(self._open.__getitem__, cancelled):
            if row.round < 0 or row in self._rows:  # the others end by themselves
                self._end(row, self._result(row, row.drawn, "", "cancelled") if row.request else row)
        return rows

    # --- one round ----------------------------------------------------------------------------------------

    def step(self) -> None:
        """One round: refills free slots, prefills, decodes at most STEPS tokens a row; then reads the round before.

        While many rows end unforeseen, it reads its own round too: an idle slot costs more than an idle device.

        An error is delivered to every row in flight; the engine is empty and usable afterwards.
        """
        with self._lock:
            try:
                before, self._flights = self._flights, []
                self._dispatch()
                self._read(before)
                if self._surprises * SHARE > self._watched:
                    self._read(self._flights)
            except BaseException as error:
                self._fail(error)
                if not isinstance(error, Exception):
                    raise

    def _read(self, flights: list[Callable[[], None]]) -> None:
        if flights:
            self._surprises, self._watched = 0, 0
        for read in flights:
            read()
        flights.clear()

    def _fail(self, error: BaseException) -> None:
        failed = [*self._open.values(), *self._inbox]
        self._inbox.clear()
        for lane in self._busy:
            lane.waiting.clear()
        for row in failed:
            row.deliver(error)
        self._reset()

    def _end(self, row: _Row, result: Any) -> None:
        """Delivers a row and frees its slot, unless another row has it by now."""
        row.done = True
        del self._open[row.order]
        self._release(row)
        self.stats.requests += row.request is not None
        row.deliver(result)

    def _release(self, row: _Row) -> bool:
        if row not in self._rows:
            return False
        slot = self._rows.index(row)
        self._rows[slot] = None
        self._free[slot] = None
        return True

    def _dispatch(self) -> None:
        self._round += 1
        for row in self._arrivals():
            row.order = next(self._order)
            row.names = names(row.lane.number, row.tokens, self.chunk)
            self._open[row.order] = row
            row.lane.waiting.append(row)
            self._busy.setdefault(row.lane)
        if len(self._free) == self.slots and self._busy and (self._lane not in self._busy or len(self._busy) > 1):
            # Nothing runs: the next lane has its turn.
            if self._lane in self._busy:
                self._busy[self._lane] = self._busy.pop(self._lane)
            self._lane, self._admitted = next(iter(self._busy)), 0
        self._admit()
        self._prefill()
        self._decode_window()

    def _admit(self) -> None:
        while self._free and self._lane.waiting:
            if len(self._busy) > 1 and self._admitted >= TURN * self.slots:
                break
            row = self._lane.waiting.popleft()
            if row.done:
                continue
            slot = self._blocks.choose(self._free, row.names)
            del self._free[slot]
            self._rows[slot] = row
            row.round = self._round
            row.next = min(self._blocks.take(slot, row.names), self._reusable(row))
            self._admitted += 1
            self.stats.prefill_tokens += len(row.tokens)
            self.stats.reused_tokens += min(row.next * self.chunk, len(row.tokens))
        if not self._lane.waiting:
            self._busy.pop(self._lane, None)

    # --- prefill ------------------------------------------------------------------------------------------

    def _reusable(self, row: _Row) -> int:
        """How many of a row's leading blocks need not be computed by itself: those whose hidden states nobody reads."""
        return len(row.names) if row.request else row.read_from // self.chunk

    def _prefill(self) -> None:
        """Runs calls that are full; and the rest where nothing else runs, or where a row has waited for a round."""
        filling = [(slot, row) for slot, row in enumerate(self._rows) if row and row.next < len(row.names)]
        filling.sort(key=lambda one: one[1].order)
        decoding = any(row.ahead for row in self._rows if row)
        rest = not decoding or any(row.round < self._round for _, row in filling)
        while filling:
            self._reuse(filling)
            calls = ((reach, self._pick(filling, reach)) for reach in self._reaches)
            reach, picked = next(
                ((reach, picked) for reach, picked in calls if len(picked) == self._blocks_a_call or (rest and picked)), (0, [])
            )
            if not picked:
                return
            self._call(picked, reach)
            filling = [(slot, row) for slot, row in filling if row.next < len(row.names)]

    def _reuse(self, filling: list[tuple[int, _Row]]) -> None:
        """Takes the next blocks of the rows from slots that hold them."""
        found, copied = [], []
        for slot, row in filling:
            while row.next < self._reusable(row) and (source := self._blocks.holder(row.names[row.next])) is not None:
                found.append((source, slot, row.next))
                copied.append(row.names[row.next])
                self.stats.reused_tokens += min(self.chunk, len(row.tokens) - row.next * self.chunk)
                row.next += 1
        N = self._blocks_a_call
        for start in range(0, len(found), N):
            some = self.slots + np.tile(np.arange(N, dtype=np.int32)[:, None], 3)  # beyond the last, each another
            some[: len(found[start : start + N])] = found[start : start + N]
            source_N, to_N, block_N = some.T.copy()
            self._caches = _copy(self.chunk, self._mesh, self._caches, source_N % self.slots, to_N, block_N)
        for name, (_, slot, block) in zip(copied, found, strict=True):
            self._blocks.add(slot, block, name)

    def _pick(self, filling: list[tuple[int, _Row]], reach: int) -> list[tuple[int, _Row, int]]:
        """Blocks of one reach for one call. What one row of the call makes, another copies later."""
        picked: list[tuple[int, _Row, int]] = []
        room = [self._blocks_a_shard] * self._shards
        made = set()
        for slot, row in filling:
            if len(picked) == self._blocks_a_call:
                break
            shard, _ = self._place(slot)
            for block in range(row.next, len(row.names)):
                first = next(r for r in self._reaches if (block + 1) * self.chunk <= r)
                copied = row.names[block] in made and block < self._reusable(row)
                if not room[shard] or first != reach or copied:
                    break
                room[shard] -= 1
                picked.append((slot, row, block))
                made.add(row.names[block])
        return picked

    def _place(self, slot: int) -> tuple[int, int]:
        """(the shard that holds a slot, its number there)."""
        return divmod(slot, self.slots // self._shards)

    def _call(self, picked: list[tuple[int, _Row, int]], reach: int) -> None:
        R, C = self._blocks_a_call, self.chunk
        free = [iter(range(shard * self._blocks_a_shard, R)) for shard in range(self._shards)]
        at = [next(free[self._place(slot)[0]]) for slot, _, _ in picked]  # a shard's chunks stand together
        tokens_RxC, target_RxC = np.zeros((R, C), np.int32), np.zeros((R, C), np.int32)
        slot_R, block_R, last_R = self.slots + np.arange(R, dtype=np.int32), np.zeros(R, np.int32), np.zeros(R, np.int32)
        for r, (slot, row, block) in zip(at, picked, strict=True):
            part = row.tokens[block * C : (block + 1) * C]
            tokens_RxC[r, : len(part)] = part
            slot_R[r], block_R[r], last_R[r] = self._place(slot)[1], block, len(part) - 1
            if row.targets is not None:
                target_RxC[r, : len(part)] = row.targets[block * C : (block + 1) * C]
        x_RxCxD = _embed(self._mesh, self._top, tokens_RxC)
        kept = []
        for i, (layer, cache) in enumerate(zip(self._layers, self._caches, strict=True)):
            adapter = self._lane.adapter[i] if self._lane.adapter else None
            x_RxCxD, cache = _prefill_layer(
                self.config, self._attention, reach, self._mesh, layer, adapter, x_RxCxD, cache, slot_R, block_R
            )
            kept.append(cache)
        self._caches = tuple(kept)
        self.stats.prefill_positions += R * C
        for slot, row, block in picked:
            row.next = block + 1
            self._blocks.add(slot, block, row.names[block])

        # What scores read.
        read = [(r, row, block) for r, (_, row, block) in zip(at, picked, strict=True) if block >= self._reusable(row)]
        if not read:
            return
        logprobs = alternatives = probs = None
        if any(row.targets is not None and not row.top for _, row, _ in read):
            logprobs = _target_logprobs(self.config, self._mesh, self._top, x_RxCxD, target_RxC)
        if any(row.top for _, row, _ in read):
            alternatives = _alternatives(self.config, self._mesh, self._top, x_RxCxD, target_RxC)
        if longest := max(len(row.ids) for _, row, _ in read):
            ids_RxN = np.zeros((R, max(16, 1 << (longest - 1).bit_length())), np.int32)
            for r, row, _ in read:
                ids_RxN[r, : len(row.ids)] = row.ids
            probs = _next_probs(self.config, self._mesh, self._top, x_RxCxD, last_R, ids_RxN)
        self._flights.append(functools.partial(self._take_scores, self._lane.name, read, (logprobs, alternatives, probs)))
        for _, row, block in read:
            if block + 1 == len(row.names):
                self._release(row)

    def _take_scores(self, adapter: str | None, read: list[tuple[int, _Row, int]], made: Any) -> None:
        logprob_RxC, alternatives, probs_RxN = jax.device_get(made)
        for r, row, block in read:
            if row.done:
                continue
            at = slice(max(0, row.read_from - block * self.chunk), min(self.chunk, len(row.tokens) - block * self.chunk))
            if row.targets is not None:
                found = alternatives[2] if row.top else logprob_RxC
                self._finite(found[r, at], adapter)
                row.logprobs += found[r, at].tolist()
            if row.top:
                values, ids = (x[r, at, : row.top].tolist() for x in alternatives[:2])
                row.alternatives += [tuple(zip(i, v, strict=True)) for i, v in zip(ids, values, strict=True)]
            if block + 1 == len(row.names):
                if row.ids:
                    self._finite(probs_RxN[r, : len(row.ids)], adapter)
                    row.probs = probs_RxN[r, : len(row.ids)].tolist()
                self._end(row, row)

    def _finite(self, logprobs: np.ndarray, adapter: str | None) -> None:
        if not np.isfinite(logprobs).all():
            raise UserError(
                f"The model's log-probs are not finite (adapter {adapter!r}): its weights hold infinities or NaNs. "
                "Check the training that made them."
            )

    # --- decode -------------------------------------------------------------------------------------------

    def _decode_window(self) -> None:
        slots = [(slot, row) for slot, row in enumerate(self._rows) if row]
        ready = [(slot, row) for slot, row in slots if row.request and row.next == len(row.names)]
        if not ready:
            return
        new = kv.host_state(self.slots)
        for slot, row in ready:
            if row.ahead:
                continue
            assert row.request is not None
            s, rows = row.request.sampling, new.rows
            new.active_B[slot], new.limit_B[slot] = True, row.limit
            new.length_B[slot], new.token_B[slot] = len(row.tokens), row.request.tokens[-1]
            rows.temperature_B[slot], rows.top_p_B[slot], rows.min_p_B[slot] = s.temperature, s.top_p, s.min_p
            rows.top_k_B[slot], rows.top_logprobs_B[slot] = s.top_k, s.top_logprobs
            rows.seed_Bx2[slot] = s.seed >> 32, s.seed & 0xFFFFFFFF
        if new.active_B.any():
            self._state = _start(self._mesh, self._state, new)

        stops = any(row.request and row.request.sampling.stop for _, row in ready)
        steps = BUSY_STEPS if self._surprises or stops else STEPS
        if self._lane.waiting or len(ready) < len(slots):  # a slot that falls free has a use
            steps = min(steps, max(BUSY_STEPS, min(row.limit - row.ahead for _, row in ready)))
        alive_B = np.zeros(self.slots, bool)
        alive_B[[slot for slot, _ in ready]] = True
        self._caches, self._state, news = _decode(
            self.config, self._attention, self._vocabulary, self._mesh, self._layers, self._top, self._lane.adapter,
            self._caches, self._state, alive_B, np.int32(steps), self._eos_E,
        )  # fmt: skip
        drawn, *rest = news
        if not any(row.request and row.request.sampling.top_logprobs for _, row in ready):
            drawn = dataclasses.replace(drawn, top_id_BxN=None, top_logprob_BxN=None)
        for x in jax.tree.leaves((drawn, rest)):
            x.copy_to_host_async()
        self._flights.append(functools.partial(self._collect, self._lane.name, ready, (drawn, *rest)))
        for _, row in ready:
            row.ahead += steps
            if row.ahead >= row.limit:
                self._release(row)  # it will have ended, and nothing that is dispatched from now on comes before

    def _collect(self, adapter: str | None, ready: list[tuple[int, _Row]], news: Any) -> None:
        """Takes a window's tokens and delivers the rows that ended in it."""
        drawn, active_B, count_B, steps = jax.device_get(news)
        self.stats.steps += int(steps)
        for slot, row in ready:
            if row.done:
                continue
            self._watched += 1
            new = int(count_B[slot]) - len(row.drawn)
            self._finite(drawn.logprob_B[:new, slot], adapter)
            row.drawn += drawn.token_B[:new, slot].tolist()
            row.logprobs += drawn.logprob_B[:new, slot].tolist()
            assert row.request is not None
            if wanted := row.request.sampling.top_logprobs:
                values, ids = (x[:new, slot, :wanted].tolist() for x in (drawn.top_logprob_BxN, drawn.top_id_BxN))
                row.alternatives += [tuple(zip(i, v, strict=True)) for i, v in zip(ids, values, strict=True)]
            self.stats.tokens += new
            self.stats.row_steps += new
            result = self._finish(row, bool(active_B[slot]))
            if result is not None:
                self._surprises += row in self._rows
                self._end(row, result)
            elif row.on_tokens is not None:
                told, row.told = slice(row.told, len(row.drawn)), len(row.drawn)
                row.on_tokens(tuple(row.drawn[told]), tuple(row.logprobs[told]), tuple(row.alternatives[told]))

    def _finish(self, row: _Row, active: bool) -> Result | None:
        """The row's result, or None where it goes on."""
        assert row.request is not None
        tokens, stop = row.drawn, row.request.sampling.stop
        body = tokens[:-1] if tokens[-1] in self._eos else tokens
        if stop:
            if any(s in self._text(body) for s in stop):
                for count in range(row.checked + 1, len(body) + 1):
                    text = self._text(body[:count])
                    if found := [at for s in stop if (at := text.find(s)) >= 0]:
                        return self._result(row, tokens[:count], text[: min(found)], "stop")
            row.checked = len(body)
        if active:
            return None
        return self._result(row, tokens, self._text(body), "eos" if len(body) < len(tokens) else "length")

    def _result(self, row: _Row, tokens: list[int], text: str, reason: str) -> Result:
        assert row.request is not None
        count = len(tokens)
        return Result(row.request.id, tuple(tokens), text, tuple(row.logprobs[:count]), tuple(row.alternatives[:count]), reason)

    def _text(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    # --- scores -------------------------------------------------------------------------------------------

    def _scored(self, what: str, adapter: str | None, asked: list[dict[str, Any]]) -> list[_Row]:
        """Runs rows of which nothing is drawn; what was asked of them stands in them."""
        lane, done = self._find_lane(adapter), collections.deque[Any]()
        for one in asked:
            if len(one["tokens"]) > self.cache_length:
                raise UserError(
                    f"{what}: {len(one['tokens'])} tokens exceed the engine's cache_length of {self.cache_length}. "
                    "Shorten the text, or lengthen the cache."
                )
        rows = [_Row(lane, deliver=done.append, **one) for one in asked]
        for _ in self._results(rows, done):
            pass
        return rows

    def score(
        self,
        prompt_tokens: Sequence[int],
        continuations: Sequence[Sequence[int]],
        *,
        adapter: str | None = None,
    ) -> list[float]:
        """The log-prob of each continuation after the prompt, summed over its tokens (0 for an empty one).

        The prompt's whole blocks are computed once.
        """
        prompt = self._check("score", prompt_tokens)
        whole = [np.concatenate([prompt, self._check("score", c)]) for c in continuations if len(c)]
        asked = [{"tokens": x[:-1], "targets": x[1:], "read_from": len(prompt) - 1} for x in whole]
        rows = iter(self._scored("score", adapter, asked))
        return [sum(next(rows).logprobs) if len(c) else 0.0 for c in continuations]

    def prompt_logprobs(
        self, tokens: Sequence[int], *, top: int = 0, adapter: str | None = None
    ) -> tuple[tuple[float | None, ...], tuple[tuple[tuple[int, float], ...] | None, ...]]:
        """(log-prob of each token after those before it, the `top` likeliest (id, log-prob) pairs in its place).

        Both are as long as `tokens` and begin with None.
        """
        x = self._check("prompt_logprobs", tokens)
        if not 0 <= top <= TOP_LOGPROBS:
            raise UserError(f"prompt_logprobs: top = {top!r}: it must be an integer in [0, {TOP_LOGPROBS}].")
        asked = [{"tokens": x[:-1], "targets": x[1:], "top": top}] if len(x) > 1 else []
        for row in self._scored("prompt_logprobs", adapter, asked):
            return (None, *row.logprobs), (None, *(row.alternatives or [()] * len(row.logprobs)))
        return (None,), (None,)

    def next_token_probs(self, tokens: Sequence[int], ids: Sequence[int], *, adapter: str | None = None) -> list[float]:
        """The probability of each of `ids` as the next token, float32, of the full vocabulary's softmax."""
        x, wanted = self._check("next_token_probs", tokens), self._check("next_token_probs", ids)
        asked = [{"tokens": x, "ids": tuple(wanted.tolist()), "read_from": len(x) - 1}]
        return self._scored("next_token_probs", adapter, asked)[0].probs


def _from_process_0(thing: Any) -> Any:
    """The same object on all processes. The first broadcast has one size, so it compiles once."""
    data = np.frombuffer(pickle.dumps(thing), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(max(4096, 1 << (size - 1).bit_length()), np.uint8)
    if not jax.process_index():
        padded[:size] = data
    return pickle.loads(multihost_utils.broadcast_one_to_all(padded)[:size].tobytes())
