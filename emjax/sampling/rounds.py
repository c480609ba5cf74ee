"""Rounds: assign slots to rows, dispatch work to the device, read its results.

A prompt is prefilled in chunks on the absolute grid 0, chunk, 2 chunk, ... One program takes a
fixed number of chunks of any rows; a chunk's own position determines what it reads. Prefill covers
all but a prompt's last token; decode takes that token and draws the first new one like every other.
So a row's result depends on its prompt, its settings and the engine's slots, cache length and
chunk, bit for bit: its random key is its own, no neighbour changes a program it runs in, and a
block computed for another prompt equals the block that the row would compute itself.

The host works one round ahead: it dispatches a round before it reads the previous round's results.
"""

import collections
import dataclasses
import functools
import itertools
import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from emjax.data.chat import special_tokens
from emjax.errors import UserError
from emjax.models import LanguageModel
from emjax.models.lora import Adapter
from emjax.sampling import cache as kv
from emjax.sampling import programs
from emjax.sampling.cache import Cache
from emjax.sampling.prefix import Blocks, names
from emjax.sampling.requests import Result, Stats
from emjax.sampling.rows import Lane, Row
from emjax.sampling.text import first_stop

BUSY_STEPS = 4  # replaces programs.STEPS while rows come and go
# If more than one row in SHARE ended early, the host reads a round before it dispatches the next.
SHARE = 16
# While other adapters wait, one adapter's turn ends after TURN * slots requests.
TURN = 4


class Rounds:
    """Runs rows of one model, `slots` at a time, each with `cache_length` positions.

    Engine puts rows into the inbox and calls `step`; each row's `deliver` receives its result.
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
        """slots: 0 = as many as fit in free memory (cache.free_slots). chunk: prompt tokens in one
        prefilled block, the unit of prefix reuse. attention: the kernels of prefill and decode.
        Raises UserError for sizes that the model or mesh does not support.
        """
        if slots < 0 or chunk < 1 or not 2 <= cache_length <= lm.config.max_position:
            raise UserError(
                f"Engine(slots={slots}, cache_length={cache_length}, chunk={chunk}): slots must be 0 (as many as fit in free "
                "memory) or more, chunk at least 1, and cache_length between 2 and the model's "
                f"{lm.config.max_position} positions."
            )
        self.config = lm.config
        self.cache_length = cache_length
        self.chunk = chunk
        self._attention = attention
        self._mesh = mesh or lm.mesh
        self._shared = self._mesh is not None and len({d.process_index for d in self._mesh.devices.flat}) > 1
        self._tokenizer = lm.tokenizer
        self.generation = lm.generation  # generation_config.json, for draws from the model
        self._vocabulary = min(len(lm.tokenizer), lm.config.V)
        self._eos = frozenset(lm.eos_ids)
        self._eos_E = np.array(sorted(self._eos), np.int32)
        self._layers = kv.join(lm.config, lm.params["layers"], self._mesh, kv.groups())
        self._top = {name: x for name, x in lm.params.items() if name != "layers"}
        self._positions = -(-cache_length // chunk) * chunk  # of the cache, in whole blocks
        self._reaches = kv.reaches(chunk, self._positions)
        # Each of the data x fsdp shards prefills its own slots. A few chunks fill two CPU cores; an
        # accelerator needs thousands of tokens per call.
        self._shards = 1 if self._mesh is None else self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        self._blocks_a_shard = max(1, (512 // self._shards if jax.default_backend() == "cpu" else 2048) // chunk)
        self._blocks_a_call = self._shards * self._blocks_a_shard
        dtype = self._top["embed"].dtype
        self.slots = slots or kv.free_slots(self.config, self._positions, dtype, self._mesh)
        self.stats = Stats(self.slots)
        self._lanes: dict[str | None, Lane] = {}
        self._lane_number = itertools.count()
        self.set_adapter(None, lm.adapter)

        self._lock = threading.RLock()  # one round at a time
        self._inbox: collections.deque[Row] = collections.deque()
        self._order = itertools.count()
        self._round = 0
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        # Frees the old caches before the new ones are allocated.
        self._caches: tuple[Cache, ...] = ()
        self._caches = kv.empty_caches(self.config, self.slots, self._positions, self._top["embed"].dtype, self._mesh)
        self._state = kv.empty_state(self.slots, self._mesh)
        self._blocks = Blocks(self.slots)
        self._rows: list[Row | None] = [None] * self.slots  # prefilling or decoding
        self._free = dict.fromkeys(range(self.slots))  # longest free first
        self._open: dict[int, Row] = {}  # by order: taken from the inbox, not yet delivered
        self._flights: list[Callable[[], None]] = []  # each reads results of dispatched work
        # When results were last read: rows that ended early, and all rows.
        self._surprises, self._watched = 0, 0
        self._busy: dict[Lane, None] = {}  # lanes with waiting rows, in turn
        self._lane = self._lanes[None]
        self._admitted = 0  # rows admitted in this lane's turn

    def set_adapter(self, name: str | None, adapter: Adapter | None) -> None:
        """Names an adapter (None = the bare base) for Request.adapter.

        The name None is the engine's own model. Requests submitted earlier keep their adapter.
        Adapters of one shape share the programs. With several processes, all of them call this, in
        the same order and while nothing is in flight.
        """
        weights = None
        if adapter is not None:
            weights = kv.join_adapter(self.config, adapter, self._top["embed"].dtype, self._mesh, kv.groups())
        self._lanes[name] = Lane(name, next(self._lane_number), weights)

    def _find_lane(self, name: str | None) -> Lane:
        if name not in self._lanes:
            known = ", ".join(repr(n) for n in self._lanes if n is not None) or "none"
            raise UserError(f"The engine has no adapter named {name!r} (it has: {known}); add it with set_adapter first.")
        return self._lanes[name]

    def _arrivals(self) -> list[Row]:
        """Ends cancelled rows and returns the new ones; all processes get those of process 0."""
        rows = [self._inbox.popleft() for _ in range(len(self._inbox))]
        cancelled = [order for order, row in self._open.items() if row.cancelled]
        if self._shared:
            sent = [(r.lane.name, r.tokens, r.request, r.limit, r.read_from, r.targets, r.top, r.ids) for r in rows]
            sent, cancelled, self._closed = _from_process_0((sent, cancelled, self._closed))
            if jax.process_index():
                rows = [Row(self._find_lane(name), tokens, lambda _: None, *rest) for name, tokens, *rest in sent]
        for row in map(self._open.__getitem__, cancelled):
            if row.round < 0 or row in self._rows:  # the others end by themselves
                self._end(row, self._result(row, row.drawn, "", "cancelled") if row.request else row)
        return rows

    # --- one round -------------------------------------------------------------------------------

    def step(self) -> None:
        """Runs one round.

        The round refills free slots, prefills, decodes at most programs.STEPS tokens per row and
        then reads the previous round's results. While many rows end early, it also reads its own:
        an idle slot costs more than an idle device.

        An error is delivered to every row in flight; afterwards the engine is empty and usable.
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

    def _end(self, row: Row, result: Any) -> None:
        """Delivers a row's result and frees its slot, unless another row has the slot by now."""
        row.done = True
        del self._open[row.order]
        self._release(row)
        self.stats.requests += row.request is not None
        row.deliver(result)

    def _release(self, row: Row) -> bool:
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
            # Nothing is running, so the next lane has its turn.
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

    # --- prefill ---------------------------------------------------------------------------------

    def _reusable(self, row: Row) -> int:
        """How many leading blocks of a row may be copies: nobody reads their hidden states."""
        return len(row.names) if row.request else row.read_from // self.chunk

    def _prefill(self) -> None:
        """Runs full prefill calls.

        Runs a partly filled call only if nothing else runs, or if a row has waited for a round.
        """
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

    def _reuse(self, filling: list[tuple[int, Row]]) -> None:
        """Copies the rows' next blocks from slots that hold them."""
        copies, copied_names = [], []
        for slot, row in filling:
            while row.next < self._reusable(row) and (source := self._blocks.holder(row.names[row.next])) is not None:
                copies.append((source, slot, row.next))
                copied_names.append(row.names[row.next])
                self.stats.reused_tokens += min(self.chunk, len(row.tokens) - row.next * self.chunk)
                row.next += 1
        N = self._blocks_a_call
        for start in range(0, len(copies), N):
            # Padding goes to distinct slots beyond the last.
            batch_Nx3 = self.slots + np.tile(np.arange(N, dtype=np.int32)[:, None], 3)
            batch_Nx3[: len(copies[start : start + N])] = copies[start : start + N]
            source_N, to_N, block_N = batch_Nx3.T.copy()
            self._caches = programs.copy(self.chunk, self._mesh, self._caches, source_N % self.slots, to_N, block_N)
        for name, (_, slot, block) in zip(copied_names, copies, strict=True):
            self._blocks.add(slot, block, name)

    def _pick(self, filling: list[tuple[int, Row]], reach: int) -> list[tuple[int, Row, int]]:
        """Blocks of one reach for one call.

        A block that one row of the call computes is copied by the others later.
        """
        picked: list[tuple[int, Row, int]] = []
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
        """(the shard that holds a slot, the slot's number there)."""
        return divmod(slot, self.slots // self._shards)

    def _call(self, picked: list[tuple[int, Row, int]], reach: int) -> None:
        R, C = self._blocks_a_call, self.chunk
        free = [iter(range(shard * self._blocks_a_shard, R)) for shard in range(self._shards)]
        # A shard's chunks are adjacent.
        at = [next(free[self._place(slot)[0]]) for slot, _, _ in picked]
        tokens_RxC, target_RxC = np.zeros((R, C), np.int32), np.zeros((R, C), np.int32)
        slot_R, block_R, last_R = self.slots + np.arange(R, dtype=np.int32), np.zeros(R, np.int32), np.zeros(R, np.int32)
        for r, (slot, row, block) in zip(at, picked, strict=True):
            part = row.tokens[block * C : (block + 1) * C]
            tokens_RxC[r, : len(part)] = part
            slot_R[r], block_R[r], last_R[r] = self._place(slot)[1], block, len(part) - 1
            if row.targets is not None:
                target_RxC[r, : len(part)] = row.targets[block * C : (block + 1) * C]
        x_RxCxD = programs.embed(self._mesh, self._top, tokens_RxC)
        kept = []
        for i, (layer, cache) in enumerate(zip(self._layers, self._caches, strict=True)):
            adapter = self._lane.adapter[i] if self._lane.adapter else None
            x_RxCxD, cache = programs.prefill_layer(
                self.config, self._attention, reach, self._mesh, layer, adapter, x_RxCxD, cache, slot_R, block_R
            )
            kept.append(cache)
        self._caches = tuple(kept)
        self.stats.prefill_positions += R * C
        for slot, row, block in picked:
            row.next = block + 1
            self._blocks.add(slot, block, row.names[block])

        # The outputs that scores need.
        read = [(r, row, block) for r, (_, row, block) in zip(at, picked, strict=True) if block >= self._reusable(row)]
        if not read:
            return
        logprobs = alternatives = probs = None
        if any(row.targets is not None and not row.top for _, row, _ in read):
            logprobs = programs.target_logprobs(self.config, self._mesh, self._top, x_RxCxD, target_RxC)
        if any(row.top for _, row, _ in read):
            alternatives = programs.alternatives(self.config, self._mesh, self._top, x_RxCxD, target_RxC)
        if longest := max(len(row.ids) for _, row, _ in read):
            ids_RxN = np.zeros((R, max(16, 1 << (longest - 1).bit_length())), np.int32)
            for r, row, _ in read:
                ids_RxN[r, : len(row.ids)] = row.ids
            probs = programs.next_probs(self.config, self._mesh, self._top, x_RxCxD, last_R, ids_RxN)
        self._flights.append(functools.partial(self._take_scores, self._lane.name, read, (logprobs, alternatives, probs)))
        for _, row, block in read:
            if block + 1 == len(row.names):
                self._release(row)

    def _take_scores(self, adapter: str | None, read: list[tuple[int, Row, int]], made: Any) -> None:
        logprob_RxC, alternatives, probs_RxN = jax.device_get(made)
        for r, row, block in read:
            if row.done:
                continue
            at = slice(max(0, row.read_from - block * self.chunk), min(self.chunk, len(row.tokens) - block * self.chunk))
            if row.targets is not None:
                target_RxC = alternatives[2] if row.top else logprob_RxC
                self._finite(target_RxC[r, at], adapter)
                row.logprobs += target_RxC[r, at].tolist()
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
                f"The model's log-probs are not finite (adapter {adapter!r}): its weights contain infinities or NaNs. "
                "Check the training run that produced them."
            )

    # --- decode ----------------------------------------------------------------------------------

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
            self._state = programs.start(self._mesh, self._state, new)

        stops = any(row.request and row.request.sampling.stop for _, row in ready)
        steps = BUSY_STEPS if self._surprises or stops else programs.STEPS
        if self._lane.waiting or len(ready) < len(slots):  # a freed slot is needed
            steps = min(steps, max(BUSY_STEPS, min(row.limit - row.ahead for _, row in ready)))
        alive_B = np.zeros(self.slots, bool)
        alive_B[[slot for slot, _ in ready]] = True
        self._caches, self._state, news = programs.decode(
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
                # The row ends in this window, and work dispatched from now on runs after it.
                self._release(row)

    def _collect(self, adapter: str | None, ready: list[tuple[int, Row]], news: Any) -> None:
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

    def _finish(self, row: Row, active: bool) -> Result | None:
        """The row's result, or None if the row continues."""
        assert row.request is not None
        tokens, stop = row.drawn, row.request.sampling.stop
        body = tokens[:-1] if tokens[-1] in self._eos else tokens
        if stop:
            if found := first_stop(self._text, body, stop, self._special, row.checked):
                count, text = found
                return self._result(row, tokens[:count], text, "stop")
            row.checked = len(body)
        if active:
            return None
        return self._result(row, tokens, self._text(body), "eos" if len(body) < len(tokens) else "length")

    def _result(self, row: Row, tokens: list[int], text: str, reason: str) -> Result:
        assert row.request is not None
        count = len(tokens)
        return Result(row.request.id, tuple(tokens), text, tuple(row.logprobs[:count]), tuple(row.alternatives[:count]), reason)

    @functools.cached_property
    def _special(self) -> tuple[str, ...]:
        return tuple(special_tokens(self._tokenizer))

    def _text(self, tokens: Sequence[int], special: bool = False) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=not special, clean_up_tokenization_spaces=False)


def _from_process_0(thing: Any) -> Any:
    """Process 0's object, on all processes.

    The first broadcast has a fixed size, so it compiles once.
    """
    data = np.frombuffer(pickle.dumps(thing), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(max(4096, 1 << (size - 1).bit_length()), np.uint8)
    if not jax.process_index():
        padded[:size] = data
    return pickle.loads(multihost_utils.broadcast_one_to_all(padded)[:size].tobytes())
