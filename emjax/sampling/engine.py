"""The sampling engine: continuous batching over a fixed number of slots.

The device functions are module-level and take the model's configuration as a static argument and all weights
as arrays, so every Engine in the process (other weights, other adapters of the same shape) runs the same
programs.

A row's result depends on its prompt, its settings and the engine's slots and cache length, bit for bit: the
shape of its prefill follows from its own length, its random key is its own, and no neighbour changes a
program it runs in.
"""

import asyncio
import collections
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emjax.errors import UserError
from emjax.models import LanguageModel, attention, decoder, rope
from emjax.models.config import ModelConfig
from emjax.models.decoder import Params
from emjax.models.lora import Adapter
from emjax.sampling import cache as kv
from emjax.sampling.cache import Cache, State
from emjax.sampling.processors import TOP_LOGPROBS, Drawn, Rows, sample
from emjax.train.logprobs import token_logprobs

STEPS = 8  # decode steps between two looks of the host; rows that end earlier idle until then
SCORE_ROWS = 4  # continuations scored in one call
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
    prefill_tokens: int = 0  # of prompts
    prefill_positions: int = 0  # computed for them, padding included
    row_steps: int = 0  # decode steps times the rows that used them

    @property
    def occupied(self) -> float:
        """The share of decoded slot-steps that a row used."""
        return self.row_steps / max(1, self.steps * self.slots)


# --- device functions --------------------------------------------------------------------------------------


@jax.jit
def _embed(top: Params, tokens_RxT: jax.Array) -> jax.Array:
    return top["embed"][tokens_RxT]


# One program a prompt length serves all layers: compile time does not grow with depth, and nothing needs the
# weights stacked as well as apart.
@functools.partial(jax.jit, static_argnames=("config", "implementation", "mesh"), donate_argnames=("x_RxTxD", "cache"))
def _prefill_layer(
    config: ModelConfig,
    implementation: str,
    mesh: Mesh | None,
    layer: Params,
    adapter: Adapter | None,
    x_RxTxD: jax.Array,
    cache: Cache | None,
    slot_R: jax.Array,
) -> tuple[jax.Array, Cache | None]:
    """One layer over right-padded prompts; with a cache, writes their keys and values into their slots."""
    T = x_RxTxD.shape[1]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Cache | None]:
        out = attention.causal(q, k, v, implementation)
        if cache is None:
            return out, None
        # Rows that only fill the call up have a slot beyond the last; their writes are dropped.
        k_cache, v_cache = (
            kv.spread(old.at[slot_R, :, :T].set(new.swapaxes(1, 2), mode="drop"), mesh)
            for old, new in zip(cache, (k, v), strict=True)
        )
        return out, (k_cache, v_cache)

    return decoder.block(config, layer, x_RxTxD, rope.tables(config, jnp.arange(T)[None, :]), attend, adapter)


@functools.partial(jax.jit, static_argnames=("rows", "mesh"))
def _last(rows: int, mesh: Mesh | None, x_RxTxD: jax.Array, length_N: jax.Array) -> jax.Array:
    """Each prompt's last position, padded to [rows, D]: what follows compiles once, not once a length."""
    R, _, D = x_RxTxD.shape
    last_RxD = x_RxTxD[jnp.arange(R), length_N[:R] - 1]
    return kv.replicate(jnp.zeros((rows, D), x_RxTxD.dtype).at[:R].set(last_RxD), mesh)


def _logits(config: ModelConfig, top: Params, x_BxD: jax.Array) -> jax.Array:
    hidden_BxD = decoder.rms_norm(x_BxD, top["final_norm"], config.norm_eps)
    return jnp.einsum("bd,dv->bv", hidden_BxD, decoder.head(top), preferred_element_type=jnp.float32)


def _ended(token_B: jax.Array, count_B: jax.Array, limit_B: jax.Array, eos_E: jax.Array) -> jax.Array:
    return jnp.any(token_B[:, None] == eos_E, axis=-1) | (count_B >= limit_B)


@functools.partial(jax.jit, static_argnames=("config", "vocabulary", "mesh"), donate_argnames=("state",))
def _insert(
    config: ModelConfig,
    vocabulary: int,
    mesh: Mesh | None,
    top: Params,
    x_NxD: jax.Array,
    state: State,
    rows: Rows,
    slot_N: jax.Array,
    length_N: jax.Array,
    limit_N: jax.Array,
    eos_E: jax.Array,
) -> State:
    """Draws the first token of each prompt and puts the rows into their slots."""
    live_N = slot_N < state.length_B.shape[0]
    drawn = sample(_logits(config, top, x_NxD), rows, jnp.zeros_like(length_N), live_N, vocabulary)
    one_N = jnp.ones_like(length_N)
    new = State(~_ended(drawn.token_B, one_N, limit_N, eos_E), length_N, one_N, limit_N, drawn, rows)
    return kv.replicate(jax.tree.map(lambda old, x: old.at[slot_N].set(x, mode="drop"), state, new), mesh)


@functools.partial(
    jax.jit,
    static_argnames=("config", "vocabulary", "steps", "mesh"),
    donate_argnames=("caches", "state"),
)
def _decode(
    config: ModelConfig,
    vocabulary: int,
    steps: int,
    mesh: Mesh | None,
    layers: tuple[Params, ...],
    top: Params,
    adapter: tuple[Adapter, ...] | None,
    caches: tuple[Cache, ...],
    state: State,
    alive_B: jax.Array,
    eos_E: jax.Array,
) -> tuple[tuple[Cache, ...], State, tuple[Drawn, jax.Array, jax.Array, jax.Array]]:
    """At most `steps` tokens for every active row. Rows that are not alive are dropped first.

    Returns (caches, state, (drawn, active_B, count_B, steps run)). drawn holds steps + 1 entries a field, the
    first being the newest token from before: so the first token of a row reaches the host without a transfer
    of its own.
    """
    B = alive_B.shape[0]
    row_B = jnp.arange(B)
    state = dataclasses.replace(state, active_B=state.active_B & alive_B)
    drawn = jax.tree.map(lambda x: jnp.zeros((steps + 1, *x.shape), x.dtype).at[0].set(x), state.drawn)

    def go_on(carry: tuple[jax.Array, tuple[Cache, ...], State, Drawn]) -> jax.Array:
        step, _, state, _ = carry
        return (step < steps) & jnp.any(state.active_B)

    def one(
        carry: tuple[jax.Array, tuple[Cache, ...], State, Drawn],
    ) -> tuple[jax.Array, tuple[Cache, ...], State, Drawn]:
        step, caches, state, drawn = carry
        tables = rope.tables(config, state.length_B[:, None])
        # Rows that have ended write nowhere.
        write_B = jnp.where(state.active_B, state.length_B, caches[0][0].shape[2])
        x_BxTxD = top["embed"][state.drawn.token_B][:, None]
        kept = []
        for i, (layer, (k_BxKxSxh, v_BxKxSxh)) in enumerate(zip(layers, caches, strict=True)):

            def attend(
                q: jax.Array,
                k: jax.Array,
                v: jax.Array,
                k_cache: jax.Array = k_BxKxSxh,
                v_cache: jax.Array = v_BxKxSxh,
            ) -> tuple[jax.Array, Cache]:
                k_cache = kv.spread(k_cache.at[row_B, :, write_B].set(k[:, 0], mode="drop"), mesh)
                v_cache = kv.spread(v_cache.at[row_B, :, write_B].set(v[:, 0], mode="drop"), mesh)
                return attention.over_cache(q[:, 0], k_cache, v_cache, state.length_B + 1)[:, None], (
                    k_cache,
                    v_cache,
                )

            x_BxTxD, cache = decoder.block(config, layer, x_BxTxD, tables, attend, adapter[i] if adapter else None)
            kept.append(cache)
        new = sample(_logits(config, top, x_BxTxD[:, 0]), state.rows, state.count_B, state.active_B, vocabulary)
        count_B = state.count_B + state.active_B
        drawn = jax.tree.map(lambda all_, x: all_.at[step + 1].set(x), drawn, new)
        state = dataclasses.replace(
            state,
            active_B=state.active_B & ~_ended(new.token_B, count_B, state.limit_B, eos_E),
            length_B=state.length_B + state.active_B,
            count_B=count_B,
            drawn=new,
        )
        return step + 1, tuple(kept), state, drawn

    step, caches, state, drawn = jax.lax.while_loop(go_on, one, (jnp.int32(0), caches, state, drawn))
    caches, (state, drawn) = kv.spread(caches, mesh), kv.replicate((state, drawn), mesh)
    return caches, state, (drawn, state.active_B, state.count_B, step)


@functools.partial(jax.jit, static_argnames=("config",))
def _score(
    config: ModelConfig,
    top: Params,
    x_RxTxD: jax.Array,
    at_RxC: jax.Array,
    target_RxC: jax.Array,
    count_R: jax.Array,
) -> jax.Array:
    """The summed log-prob of the first `count` targets, each predicted from the position `at`."""
    hidden_RxTxD = decoder.rms_norm(x_RxTxD, top["final_norm"], config.norm_eps)
    hidden_RxCxD = jnp.take_along_axis(hidden_RxTxD, at_RxC[:, :, None], axis=1)
    logprob_RxC = token_logprobs(decoder.head(top), hidden_RxCxD, target_RxC)
    return jnp.sum(jnp.where(jnp.arange(at_RxC.shape[1]) < count_R[:, None], logprob_RxC, 0.0), axis=-1)


@functools.partial(jax.jit, static_argnames=("config",))
def _next_probs(config: ModelConfig, top: Params, x_1xTxD: jax.Array, last: jax.Array) -> jax.Array:
    return jax.nn.softmax(_logits(config, top, x_1xTxD[:, last]), axis=-1)[0]


@functools.partial(jax.jit, static_argnames=("config",))
def _prompt_logprobs(
    config: ModelConfig, top: Params, x_1xTxD: jax.Array, target_T: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    logprob_TxV = jax.nn.log_softmax(_logits(config, top, x_1xTxD[0]), axis=-1)
    values_TxN, ids_TxN = jax.lax.top_k(logprob_TxV, min(TOP_LOGPROBS, logprob_TxV.shape[-1]))
    return jnp.take_along_axis(logprob_TxV, target_T[:, None], axis=-1)[:, 0], ids_TxN, values_TxN


# --- the host's side ---------------------------------------------------------------------------------------


class _Lane:
    """One adapter's weights and the rows that wait for them, by padded length. One lane runs at a time."""

    def __init__(self, name: str | None, adapter: tuple[Adapter, ...] | None):
        self.name = name
        self.adapter = adapter
        self.waiting: dict[int, collections.deque[_Row]] = {}

    def oldest(self) -> "_Row | None":
        return min((rows[0] for rows in self.waiting.values() if rows), key=lambda row: row.order, default=None)


# New (tokens, logprobs, top_logprobs) of a row that goes on; what its last window brings is in the Result alone.
OnTokens = Callable[[tuple[int, ...], tuple[float, ...], tuple[tuple[tuple[int, float], ...], ...]], None]


class _Row:
    """A request on its way. `deliver` takes its Result, or the exception that ended it."""

    def __init__(
        self,
        request: Request,
        lane: _Lane,
        limit: int,
        padded: int,
        deliver: Callable[[Result | BaseException], None],
    ):
        self.request = request
        self.lane = lane
        self.limit = limit
        self.padded = padded
        self.deliver = deliver
        self.order = -1
        self.cancelled = False
        self.checked = 0  # tokens in which no stop string ends
        self.on_tokens: OnTokens | None = None
        self.told = 0  # tokens that on_tokens was given
        self.top: list[tuple[tuple[int, float], ...]] = []


class Engine:
    """Samples from one model, `slots` rows at a time, each with `cache_length` positions.

    generate, submit and the scores may be used side by side, also from several threads.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        slots: int,
        cache_length: int,
        mesh: Mesh | None = None,
        attention: str = "xla",
    ):
        """attention: the prefill's kernel. Raises UserError for sizes that model or mesh cannot take."""
        if slots < 1 or not 2 <= cache_length <= lm.config.max_position:
            raise UserError(
                f"Engine(slots={slots}, cache_length={cache_length}): at least one slot is needed, and a "
                f"cache length between 2 and the model's {lm.config.max_position} positions."
            )
        self.config = lm.config
        self.slots = slots
        self.cache_length = cache_length
        self.stats = Stats(slots)
        self._attention = attention
        self._mesh = mesh or lm.mesh
        self._tokenizer = lm.tokenizer
        self._vocabulary = min(len(lm.tokenizer), lm.config.V)
        self._eos = frozenset(lm.eos_ids)
        self._eos_E = np.array(sorted(self._eos), np.int32)
        # A few rows fill two CPU cores; an accelerator needs thousands of tokens a call.
        self._prefill_tokens = 512 if jax.default_backend() == "cpu" else 8192
        self._layers = kv.unstack(lm.params["layers"])
        self._top = {name: x for name, x in lm.params.items() if name != "layers"}
        self._lanes: dict[str | None, _Lane] = {}
        self.set_adapter(None, lm.adapter)

        self._lock = threading.RLock()  # one step at a time
        self._inbox: collections.deque[_Row] = collections.deque()
        self._order = itertools.count()
        self._driver: asyncio.Task[None] | None = None
        self._reset()

    def _reset(self) -> None:
        dtype = self._top["embed"].dtype
        self._caches = kv.empty_caches(self.config, self.slots, self.cache_length, dtype, self._mesh)
        self._state = kv.empty_state(self.config, self.slots, self._mesh)
        self._rows: list[_Row | None] = [None] * self.slots
        self._count_B = np.zeros(self.slots, np.int32)
        self._tokens_BxS = np.zeros((self.slots, self.cache_length), np.int32)
        self._logprobs_BxS = np.zeros((self.slots, self.cache_length), np.float32)
        self._busy: dict[_Lane, None] = {}  # lanes with waiting rows, in the order of their next turn
        self._lane = self._lanes[None]
        self._admitted = 0  # in this lane's turn

    def set_adapter(self, name: str | None, adapter: Adapter | None) -> None:
        """Names an adapter (None = the bare base) for Request.adapter; the name None is the engine's own.

        Requests handed in before keep the adapter they came with. Adapters of one shape share the programs.
        """
        weights = None if adapter is None else kv.unstack_adapter(adapter, self._top["embed"].dtype)
        self._lanes[name] = _Lane(name, weights)

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
        return array

    def _row(self, request: Request, deliver: Callable[[Result | BaseException], None]) -> _Row:
        length = len(self._check(f"Request {request.id!r}", request.tokens))
        if length >= self.cache_length:
            raise UserError(
                f"Request {request.id!r}: its prompt of {length} tokens leaves no room for a new token in "
                f"the engine's cache_length of {self.cache_length}. Shorten it, or lengthen the cache."
            )
        limit = min(request.sampling.max_new, self.cache_length - length)
        return _Row(request, self._find_lane(request.adapter), limit, kv.bucket(length, self.cache_length), deliver)

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yields each result as its row ends. Raises UserError, before anything runs, for a bad request."""
        done: collections.deque[Result | BaseException] = collections.deque()
        rows = [self._row(request, done.append) for request in requests]

        def results() -> Iterator[Result]:
            self._inbox.extend(rows)
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

        return results()

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
        self._inbox.append(row)
        if self._driver is None or self._driver.done() or self._driver.get_loop() is not loop:
            self._driver = loop.create_task(self._drive())
        try:
            return await future
        except asyncio.CancelledError:
            row.cancelled = True
            raise

    async def _drive(self) -> None:
        """Steps while there is work. The device runs in a thread, so callers go on meanwhile."""
        while self._inbox or self._busy or any(self._rows):
            await asyncio.to_thread(self.step)
            # Those just served may hand in their next request before the slots are refilled.
            await asyncio.sleep(0)

    # --- one round ----------------------------------------------------------------------------------------

    def step(self) -> None:
        """Refills free slots, decodes at most STEPS tokens a row, delivers the rows that ended.

        An error is delivered to every row in flight; the engine is empty and usable afterwards.
        """
        with self._lock:
            try:
                self._refill()
                if any(self._rows):
                    self._window()
            except BaseException as error:
                self._fail(error)
                if not isinstance(error, Exception):
                    raise

    def _fail(self, error: BaseException) -> None:
        failed = [row for row in self._rows if row is not None]
        for lane in self._busy:
            failed += itertools.chain.from_iterable(lane.waiting.values())
            lane.waiting.clear()
        while self._inbox:
            failed.append(self._inbox.popleft())
        for row in failed:
            row.deliver(error)
        self._reset()

    def _refill(self) -> None:
        while self._inbox:
            row = self._inbox.popleft()
            row.order = next(self._order)
            row.lane.waiting.setdefault(row.padded, collections.deque()).append(row)
            self._busy.setdefault(row.lane)
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        if len(free) == self.slots and self._busy and (self._lane not in self._busy or len(self._busy) > 1):
            # Nothing runs: the next lane has its turn.
            if self._lane in self._busy:
                self._busy[self._lane] = self._busy.pop(self._lane)
            self._lane, self._admitted = next(iter(self._busy)), 0
        while free and (oldest := self._lane.oldest()) is not None:
            if len(self._busy) > 1 and self._admitted >= TURN * self.slots:
                break
            rows: list[_Row] = []
            waiting = self._lane.waiting[oldest.padded]
            while waiting and len(rows) < min(len(free), self._prefill_rows(oldest.padded)):
                row = waiting.popleft()
                if row.cancelled:
                    row.deliver(Result(row.request.id, (), "", (), (), "cancelled"))
                else:
                    rows.append(row)
            slots = [free.pop() for _ in rows]
            for slot, row in zip(slots, rows, strict=True):
                self._rows[slot] = row
            if rows:
                self._prefill(rows, slots)
        if self._lane.oldest() is None:
            self._busy.pop(self._lane, None)

    def _prefill_rows(self, padded: int) -> int:
        """Prompts in one call; follows from their padded length alone."""
        return max(1, min(self.slots, self._prefill_tokens // max(padded, kv.SHORTEST)))

    def _prefill(self, rows: list[_Row], slots: list[int]) -> None:
        T = rows[0].padded
        R, N = self._prefill_rows(T), self._prefill_rows(0)
        tokens_RxT = np.zeros((R, T), np.int32)
        slot_N = np.full(N, self.slots, np.int32)
        slot_N[: len(rows)] = slots
        length_N, limit_N = np.ones(N, np.int32), np.ones(N, np.int32)
        floats_Nx3 = np.ones((N, 3), np.float32)
        ints_Nx2 = np.zeros((N, 2), np.int32)
        seed_Nx2 = np.zeros((N, 2), np.uint32)
        for i, row in enumerate(rows):
            tokens, s = row.request.tokens, row.request.sampling
            tokens_RxT[i, : len(tokens)] = tokens
            length_N[i], limit_N[i] = len(tokens), row.limit
            floats_Nx3[i] = s.temperature, s.top_p, s.min_p
            ints_Nx2[i] = s.top_k, s.top_logprobs
            seed_Nx2[i] = s.seed >> 32, s.seed & 0xFFFFFFFF
            self.stats.prefill_tokens += len(tokens)
        self._count_B[slots] = 1
        temperature_N, top_p_N, min_p_N = floats_Nx3.T
        top_k_N, top_logprobs_N = ints_Nx2.T
        settings = Rows(temperature_N, top_p_N, min_p_N, top_k_N, top_logprobs_N, seed_Nx2)
        x_RxTxD, self._caches = self._forward(self._lane, tokens_RxT, self._caches, slot_N[:R])
        x_NxD = _last(N, self._mesh, x_RxTxD, length_N)
        self._state = _insert(
            self.config, self._vocabulary, self._mesh, self._top, x_NxD, self._state, settings, slot_N,
            length_N, limit_N, self._eos_E,
        )  # fmt: skip
        self._admitted += len(rows)
        self.stats.prefill_positions += R * T
        self.stats.tokens += len(rows)

    def _forward(
        self, lane: _Lane, tokens_RxT: np.ndarray, caches: tuple[Cache, ...] | None, slot_R: np.ndarray
    ) -> tuple[jax.Array, tuple[Cache, ...]]:
        """Embedding and all layers; the final norm is left to what reads the result."""
        x_RxTxD = _embed(self._top, tokens_RxT)
        kept = []
        for i, layer in enumerate(self._layers):
            adapter, cache = lane.adapter[i] if lane.adapter else None, caches[i] if caches else None
            x_RxTxD, cache = _prefill_layer(self.config, self._attention, self._mesh, layer, adapter, x_RxTxD, cache, slot_R)
            kept.append(cache)
        return x_RxTxD, tuple(kept)

    def _window(self) -> None:
        alive_B = np.array([row is not None and not row.cancelled for row in self._rows])
        self._caches, self._state, news = _decode(
            self.config, self._vocabulary, STEPS, self._mesh, self._layers, self._top, self._lane.adapter,
            self._caches, self._state, alive_B, self._eos_E,
        )  # fmt: skip
        drawn, active_B, count_B, steps = news
        if any(row.request.sampling.top_logprobs for row in self._rows if row):
            drawn, active_B, count_B, steps = jax.device_get(news)
        else:
            token, logprob, active_B, count_B, steps = jax.device_get(
                (drawn.token_B, drawn.logprob_B, active_B, count_B, steps)
            )
            drawn = Drawn(token, logprob, None, None)
        self.stats.steps += int(steps)
        self._collect(drawn, alive_B, active_B, count_B)

    def _collect(self, drawn: Drawn, alive_B: np.ndarray, active_B: np.ndarray, count_B: np.ndarray) -> None:
        """Takes a window's tokens and delivers the rows that ended in it."""
        first_B = self._count_B - 1  # where the window's entry 0 belongs
        new_B = np.where(alive_B, count_B - self._count_B, 0)
        self.stats.tokens += int(new_B.sum())
        self.stats.row_steps += int(new_B.sum())
        taken_B = np.array([row is not None for row in self._rows])
        slot_N, entry_N = np.nonzero((np.arange(STEPS + 1) <= new_B[:, None]) & taken_B[:, None])
        logprob_N = drawn.logprob_B[entry_N, slot_N]
        if not np.isfinite(logprob_N).all():
            raise UserError(
                f"The model's log-probs are not finite (adapter {self._lane.name!r}): its weights hold "
                "infinities or NaNs. Check the training that made them."
            )
        self._tokens_BxS[slot_N, first_B[slot_N] + entry_N] = drawn.token_B[entry_N, slot_N]
        self._logprobs_BxS[slot_N, first_B[slot_N] + entry_N] = logprob_N
        self._count_B += new_B

        for slot, row in enumerate(self._rows):
            if row is None:
                continue
            if wanted := row.request.sampling.top_logprobs:
                for e in range(len(row.top) - first_B[slot], new_B[slot] + 1):
                    ids = drawn.top_id_BxN[e, slot, :wanted].tolist()
                    values = drawn.top_logprob_BxN[e, slot, :wanted].tolist()
                    row.top.append(tuple(zip(ids, values, strict=True)))
            if row.request.sampling.stop or row.cancelled or not active_B[slot]:
                result = self._finish(row, slot, bool(active_B[slot]))
                if result is not None:
                    self._rows[slot] = None
                    self.stats.requests += 1
                    row.deliver(result)
                    continue
            if row.on_tokens is not None:
                new = slice(row.told, int(self._count_B[slot]))
                row.told = new.stop
                tokens, logprobs = self._tokens_BxS[slot, new].tolist(), self._logprobs_BxS[slot, new].tolist()
                row.on_tokens(tuple(tokens), tuple(logprobs), tuple(row.top[new]))

    def _finish(self, row: _Row, slot: int, active: bool) -> Result | None:
        """The row's result, or None where it goes on."""
        tokens = self._tokens_BxS[slot, : self._count_B[slot]].tolist()
        body = tokens[:-1] if tokens[-1] in self._eos else tokens
        stop = row.request.sampling.stop
        if stop:
            if any(s in self._text(body) for s in stop):
                for count in range(row.checked + 1, len(body) + 1):
                    text = self._text(body[:count])
                    if found := [at for s in stop if (at := text.find(s)) >= 0]:
                        return self._result(row, slot, tokens[:count], text[: min(found)], "stop")
            row.checked = len(body)
        if active and not row.cancelled:
            return None
        reason = "cancelled" if row.cancelled else "eos" if len(body) < len(tokens) else "length"
        return self._result(row, slot, tokens, self._text(body), reason)

    def _result(self, row: _Row, slot: int, tokens: list[int], text: str, reason: str) -> Result:
        count = len(tokens)
        logprobs = tuple(self._logprobs_BxS[slot, :count].tolist())
        return Result(row.request.id, tuple(tokens), text, logprobs, tuple(row.top[:count]), reason)

    def _text(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    # --- scores -------------------------------------------------------------------------------------------

    def score(
        self,
        prompt_tokens: Sequence[int],
        continuations: Sequence[Sequence[int]],
        *,
        adapter: str | None = None,
    ) -> list[float]:
        """The log-prob of each continuation after the prompt, summed over its tokens (0 for an empty one)."""
        lane = self._find_lane(adapter)
        prompt = self._check("score", prompt_tokens)
        P, limit = len(prompt), self.config.max_position
        groups: dict[tuple[int, int], list[int]] = {}  # by shape, which follows from the row alone
        for i, continuation in enumerate(continuations):
            C = len(continuation)
            if limit < P + C:
                raise UserError(f"score: {P} + {C} tokens exceed the model's {limit} positions.")
            if C:
                self._check("score", continuation)
                groups.setdefault((kv.bucket(P + C - 1, limit), kv.bucket(C, limit)), []).append(i)
        scores = [0.0] * len(continuations)
        for (T, C), members in groups.items():
            for start in range(0, len(members), SCORE_ROWS):
                some = members[start : start + SCORE_ROWS]
                tokens_RxT = np.zeros((SCORE_ROWS, T), np.int32)
                at_RxC, target_RxC = np.zeros((SCORE_ROWS, C), np.int32), np.zeros((SCORE_ROWS, C), np.int32)
                count_R = np.zeros(SCORE_ROWS, np.int32)
                for r, i in enumerate(some):
                    count = count_R[r] = len(continuations[i])
                    tokens_RxT[r, : P + count - 1] = [*prompt, *continuations[i][:-1]]
                    at_RxC[r, :count] = np.arange(P - 1, P + count - 1)
                    target_RxC[r, :count] = continuations[i]
                x_RxTxD, _ = self._forward(lane, tokens_RxT, None, count_R)
                sums = _score(self.config, self._top, x_RxTxD, at_RxC, target_RxC, count_R)
                for i, value in zip(some, jax.device_get(sums)[: len(some)].tolist(), strict=True):
                    scores[i] = value
        return scores

    def prompt_logprobs(
        self, tokens: Sequence[int], *, top: int = 0, adapter: str | None = None
    ) -> tuple[tuple[float | None, ...], tuple[tuple[tuple[int, float], ...] | None, ...]]:
        """The log-prob of each token of a prompt given those before it, and the `top` likeliest ones; None for the first."""
        lane = self._find_lane(adapter)
        prompt = self._check("prompt_logprobs", tokens)
        n, limit = len(prompt), self.config.max_position
        if n > limit:
            raise UserError(f"prompt_logprobs: {n} tokens exceed the model's {limit} positions.")
        T = kv.bucket(n, limit)
        tokens_1xT, target_T = np.zeros((1, T), np.int32), np.zeros(T, np.int32)
        tokens_1xT[0, :n] = prompt
        target_T[: n - 1] = prompt[1:]
        x_1xTxD, _ = self._forward(lane, tokens_1xT, None, np.zeros(1, np.int32))
        logprob_T, id_TxN, value_TxN = jax.device_get(_prompt_logprobs(self.config, self._top, x_1xTxD, target_T))
        pairs = [
            tuple(zip(i, v, strict=True))
            for i, v in zip(id_TxN[: n - 1, :top].tolist(), value_TxN[: n - 1, :top].tolist(), strict=True)
        ]
        return (None, *logprob_T[: n - 1].tolist()), (None, *pairs)

    def next_token_probs(self, tokens: Sequence[int], ids: Sequence[int], *, adapter: str | None = None) -> list[float]:
        """The probability of each of `ids` as the next token, float32, of the full vocabulary's softmax."""
        lane = self._find_lane(adapter)
        prompt, wanted = self._check("next_token_probs", tokens), self._check("next_token_probs", ids)
        limit = self.config.max_position
        if len(prompt) > limit:
            raise UserError(f"next_token_probs: {len(prompt)} tokens exceed the model's {limit} positions.")
        tokens_1xT = np.zeros((1, kv.bucket(len(prompt), limit)), np.int32)
        tokens_1xT[0, : len(prompt)] = prompt
        x_1xTxD, _ = self._forward(lane, tokens_1xT, None, np.zeros(1, np.int32))
        probs_V = jax.device_get(_next_probs(self.config, self._top, x_1xTxD, np.int32(len(prompt) - 1)))
        return probs_V[wanted].tolist()
