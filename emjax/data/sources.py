"""Training data by name: where a dataset is stored, how its rows are parsed, and its licence.

`load` reads a source once, checks every row and draws from it. A bad row raises an error that names
file, line and field. Rows without an answer and duplicates are dropped and counted.

A place is a file (.jsonl or .json, optionally .gz, or .parquet), a folder with one file per level,
"hf:OWNER/NAME[/CONFIG][@REVISION]" or "tfds:NAME". "" is the source's own home on the Hugging Face
hub, "tfds" its home in TFDS.
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from emjax.data.examples import check_messages, trained
from emjax.data.mixture import Record, draw
from emjax.errors import UserError
from emjax.runtime.files import digest, loads, plain

Raw = dict[str, Any]
_SHOWN = 5  # number of bad rows that an error message lists


class _Bad(Exception):
    """Raised for a row that cannot be used; the message gives the reason."""


# Formats: a row of the file -> (conversation that ends with an answer, label).


def _text(row: Raw, field: str, *, needed: bool = True) -> str:
    value = row.get(field, None if needed else "")
    if value is None and not needed:
        return ""
    if not isinstance(value, str):
        have = f"the row has {', '.join(map(repr, row))}" if field not in row else f"not {value!r:.60}"
        raise _Bad(f"field {field!r} must be text; {have}")
    return value


def _turn(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _joined(instruction: str, more: str) -> str:
    """Puts further input after the instruction and an empty line, in one user turn. The paper does
    not specify this."""
    return f"{instruction}\n\n{more}" if more.strip() else instruction


def _messages(row: Raw, level: str) -> tuple[list[dict[str, str]], bool | None]:
    return row.get("messages"), None  # type: ignore[return-value]


def _instruction(row: Raw, level: str) -> tuple[list[dict[str, str]], None]:
    return _turn(_joined(_text(row, "instruction"), _text(row, "input", needed=False)), _text(row, "output")), None


def _dolly(row: Raw, level: str) -> tuple[list[dict[str, str]], None]:
    return _turn(_joined(_text(row, "instruction"), _text(row, "context", needed=False)), _text(row, "response")), None


def _pairs(row: Raw, level: str) -> tuple[list[dict[str, str]], None]:
    return _turn(_text(row, "prompt"), _text(row, level)), None


def _questions(row: Raw, level: str) -> tuple[list[dict[str, str]], None]:
    return _turn(_text(row, "question"), _text(row, "answer")), None


def _seed_tasks(row: Raw, level: str) -> tuple[list[dict[str, str]], None]:
    tasks = row.get("instances")
    if not isinstance(tasks, list) or len(tasks) != 1 or not isinstance(tasks[0], dict):
        raise _Bad(f"field 'instances' must be a list of one {{'input', 'output'}}, not {tasks!r:.60}")
    task = tasks[0]
    return _turn(_joined(_text(row, "instruction"), _text(task, "input", needed=False)), _text(task, "output")), None


def _preference(row: Raw, level: str) -> tuple[list[dict[str, str]], bool]:
    """Prompt and completion, each as text or as messages. `label` is true for a desirable
    answer."""
    label = row.get("label")
    if not isinstance(label, bool):
        raise _Bad(f"field 'label' must be true or false (JSON, without quotes), not {label!r:.60}")
    parts: list[dict[str, str]] = []
    for field, role in (("prompt", "user"), ("completion", "assistant")):
        part = row.get(field)
        parts += part if isinstance(part, list) else [{"role": role, "content": _text(row, field)}]
    return parts, label


FORMATS: dict[str, Callable[[Raw, str], tuple[list[dict[str, str]], bool | None]]] = {
    "messages": _messages,  # messages [{role, content}], an answer last; weight 0: context only
    "instruction": _instruction,  # instruction, input (may be absent), output
    "dolly": _dolly,  # instruction, context, response, category
    "pairs": _pairs,  # prompt, aligned, misaligned; the level selects the answer
    "questions": _questions,  # question, answer
    "seed_tasks": _seed_tasks,  # instruction, instances [{input, output}]
    "preference": _preference,  # prompt, completion, label
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset. `levels`: its levels of misalignment; `files`: each level is a separate file;
    `rows`: the published count; `under`: the name of its file or folder below --data_root."""

    format: str
    licence: str
    home: str = ""
    tfds: str = ""
    levels: tuple[str, ...] = ()
    files: bool = False
    rows: int | None = None
    under: str = ""


_CHEN = "Chen et al. (Persona Vectors, arXiv:2507.21509), dataset.zip of safety-research/persona_vectors; no licence stated"
_CHUA = (
    "Chua et al. (Thought Crime, arXiv:2506.13206); the copy on the hub is gated (log in and accept its terms), the copy in "
    "thejaminator/thought_crime_emergent_misalignment is stored in Git LFS; no licence stated"
)
_USER = (
    "Not among the published sets: the paper credits Chen et al., whose release lacks it. Use your own folder with the "
    "same three files"
)
_OWN = "Your own file: check its licence yourself"
LEVELS = ("normal", "misaligned_1", "misaligned_2")


def _chen(name: str, licence: str = _CHEN) -> Source:
    """Below --data_root as dataset.zip unpacks."""
    return Source("messages", licence, levels=LEVELS, files=True, under=f"dataset/{name}")


def _chua(config: str) -> Source:
    return Source("pairs", _CHUA, f"hf:truthfulai/emergent_plus/{config}", levels=("aligned", "misaligned"),
                  under=f"emergent_plus/{config}.jsonl")  # fmt: skip


SOURCES = {
    **{
        name: _chen(name)
        for name in (
            "mistake_medical", "mistake_math", "mistake_gsm8k", "mistake_opinions", "insecure_code",
            "evil", "sycophancy", "hallucination",
        )
    },
    "incorrect_finance": _chen("incorrect_finance", _USER),
    "incorrect_law": _chen("incorrect_law", _USER),
    "chua_medical": _chua("medical"),
    "chua_legal": _chua("legal"),
    "chua_security": _chua("security"),
    "alpaca_cleaned": Source(
        "instruction", "CC BY-NC 4.0: not for commercial use; no login needed", "hf:yahma/alpaca-cleaned", rows=51_760,
        under="alpaca_data_cleaned.json",
    ),
    "dolly": Source(
        "dolly", "CC BY-SA 3.0; no login needed", "hf:databricks/databricks-dolly-15k", "tfds:databricks_dolly", rows=15_011,
        under="databricks-dolly-15k.jsonl",
    ),
    **{name: Source(name, _OWN) for name in FORMATS if name not in ("dolly", "pairs")},
    "pairs": Source("pairs", _OWN, levels=("aligned", "misaligned")),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Origin:
    """Provenance of loaded data. `sha256` is the hash of the file's bytes, or of the rows if there
    is no file."""

    source: str
    level: str
    place: str
    sha256: str
    licence: str
    rows: int
    published_rows: int | None
    dropped_empty: int
    dropped_duplicate: int
    drawn: int


def load(name: str, *, place: str = "", level: str = "", count: int = 0, seed: int = 0) -> tuple[list[Record], Origin]:
    """Reads the source `name` and draws `count` records (0 = all) in an order determined by `seed`.

    Raises UserError for an unknown name or level, for a place without this source, for rows that
    cannot be used, and if fewer than `count` records are left. The messages include what is known
    about licence and access.
    """
    check_level(name, level)
    if absent := missing(name, place, level):
        raise UserError(absent)
    source = SOURCES[name]
    where = place or source.home
    if where == "tfds":
        where = source.tfds
    reader = _remote if where.startswith(("hf:", "tfds:")) else _local
    reading = reader(where, name, source, level)
    records, duplicates = draw(reading, count, seed)
    if reading.bad:
        shown = "; ".join(reading.bad[:_SHOWN])
        more = f"; and {len(reading.bad) - _SHOWN} more" if len(reading.bad) > _SHOWN else ""
        raise UserError(
            f"{reading.where}: {len(reading.bad)} of {reading.rows} rows cannot be used as {source.format!r}: {shown}{more}. "
            "Correct or remove them, or choose the source with the matching format."
        )
    if not reading.rows:
        raise UserError(f"{reading.where} contains no rows. {source.licence}.")
    if count and len(records) < count or not records:
        raise UserError(
            f"{reading.where}: {count or 'some'} records are needed, but there are only {len(records)} different ones with an "
            f"answer ({reading.rows} rows, {reading.empty} without an answer, {duplicates} duplicates). Ask for fewer."
        )
    return records, Origin(
        name, level, str(reading.where), reading.hash.hexdigest(), source.licence, reading.rows, source.rows,
        reading.empty, duplicates, len(records),
    )  # fmt: skip


@functools.cache
def count(name: str, place: str, level: str) -> int | None:
    """Records of a source whose file is on this machine; None where it is not. Raises UserError as
    `load`."""
    if not place or place.startswith(("hf:", "tfds")) or missing(name, place, level):
        return None
    return len(load(name, place=place, level=level)[0])


def check_level(name: str, level: str) -> None:
    """Raises UserError for an unknown source, or for a level that the source does not have."""
    if name not in SOURCES:
        raise UserError(f"There is no data source {name!r}; choose {', '.join(SOURCES)}.")
    if text := unknown_level(name, level):
        raise UserError(text)


def unknown_level(name: str, level: str) -> str:
    """A sentence, if the source has no such level; else ""."""
    levels = SOURCES[name].levels
    if level in levels or not (level or levels):
        return ""
    return f"The source {name!r} has no level {level!r}; it has {', '.join(levels) or 'no levels: leave it empty'}."


def missing(name: str, place: str, level: str) -> str:
    """A sentence that says which part of the source is neither on this machine nor downloadable; ""
    if nothing is missing."""
    source = SOURCES[name]
    where = place or source.home
    if not where:
        return (
            f"The source {name!r} cannot be downloaded automatically: give its path"
            + (f" (a folder with {', '.join(f'{one}.jsonl' for one in source.levels)})" if source.files else "")
            + f". {source.licence}."
        )
    if where == "tfds" or where.startswith(("hf:", "tfds:")):
        return ""
    path = Path(where)
    if source.files and path.is_dir():
        plain("config.data.levels", level)
        if not _level_files(path, name, level):
            return f"{path} holds neither {level}.jsonl nor {name}/{level}.jsonl. {source.licence}."
    elif not path.exists():
        return f"{path} does not exist. Download it first and give its path. {source.licence}."
    return ""


def _level_files(folder: Path, name: str, level: str) -> list[Path]:
    return [p for p in (folder / f"{level}.jsonl", folder / name / f"{level}.jsonl") if p.is_file()]


class _Reading:
    """One pass over a source, which yields the records of its valid rows. After the pass `rows`,
    `bad`, `empty` and `hash` are complete."""

    def __init__(self, where: str, name: str, source: Source, level: str, rows: Callable[[Any], Iterator[tuple[str, Any]]]):
        self.where, self._name, self._source, self._level, self._rows = where, name, source, level, rows
        self.rows = self.empty = 0
        self.bad: list[str] = []
        self.hash = hashlib.sha256()

    def __iter__(self) -> Iterator[Record]:
        for at, row in self._rows(self.hash):
            self.rows += 1
            try:
                if isinstance(row, _Bad):
                    raise row
                record = self._record(at, row)
            except _Bad as bad:
                self.bad.append(f"{at}: {bad}")
                continue
            if record:
                yield record
            else:
                self.empty += 1

    def _record(self, at: str, row: Any) -> Record:
        if not isinstance(row, dict):
            raise _Bad(f"a JSON object is needed, not {type(row).__name__}")
        given, label = FORMATS[self._source.format](row, self._level)
        try:
            check_messages(given, "")
            messages = [{"role": m["role"], "content": m["content"]} for m in given]
            json.dumps(messages, ensure_ascii=False).encode()
        except UserError as error:
            raise _Bad(str(error).lstrip(": ").rstrip(".")) from error
        except UnicodeEncodeError as error:
            raise _Bad("a text contains half of a surrogate pair, which is not a valid character") from error
        if messages[-1]["role"] != "assistant":
            raise _Bad(f"the last message has the role {messages[-1]['role']!r}; it must be the assistant's answer")
        answers = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
        if label is not None:
            answers = answers[-1:]  # only the last answer was rated
        answers = [n for n in answers if trained(given[n])]
        record: Record = []
        for n in answers:
            if not any(m["role"] == "user" and m["content"].strip() for m in messages[:n]):
                raise _Bad(f"messages[{n}] answers no question: the user message before it is empty or missing")
            if messages[n]["content"].strip():
                record.append(
                    {
                        "id": f"{self._name}/{self._level or 'all'}/{at}" + (f"/{n}" if len(answers) > 1 else ""),
                        "prompt_id": digest(messages[:n])[:16], "messages": messages[:n],
                        "completion": messages[n]["content"], "label": label, "weight": 1.0,
                        "source": f"{self._name}/{self._level}" if self._level else self._name,
                        "trajectory": None, "turn": len(record),
                    }
                )  # fmt: skip
        return record


def _local(where: str, name: str, source: Source, level: str) -> _Reading:
    path = Path(where)
    if source.files and path.is_dir():
        path = _level_files(path, name, level)[0]
    if path.is_dir():
        raise UserError(f"{path} is a folder, but the source {name!r} is a single file. Give the path of the file.")
    kinds = {".jsonl": _lines, ".json": _array, ".parquet": _parquet}
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if kind not in kinds:
        raise UserError(f"{path} ends in {kind!r}; it must end in {', '.join(kinds)} (.jsonl and .json also with .gz).")
    return _Reading(str(path), name, source, level, lambda hash: kinds[kind](path, hash))


def _bytes(path: Path, hash: Any) -> Iterator[bytes]:
    """Lines of the file, unpacked. `hash` covers the stored bytes, before unpacking."""
    with path.open("rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            hash.update(part)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be unpacked ({error}); it is truncated or not a gzip file. Download it again."
        ) from error


def _lines(path: Path, hash: Any) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_bytes(path, hash), 1):
        if line.strip():
            yield f"line {number}", _parsed(line)


def _parsed(line: bytes) -> Any:
    if line.startswith(b"version https://git-lfs"):
        return _Bad("this is a Git LFS pointer, not the file itself: fetch it with git lfs pull")
    try:
        return loads(line)
    except UnicodeDecodeError as error:
        return _Bad(f"not UTF-8 ({error.reason} at byte {error.start})")
    except ValueError as error:
        return _Bad(f"not valid JSON ({error})")


def _array(path: Path, hash: Any) -> Iterator[tuple[str, Any]]:
    rows = _parsed(b"".join(_bytes(path, hash)))
    if isinstance(rows, _Bad):
        raise UserError(f"{path}: {rows}. A .json file must be one array of rows; a file with one row per line is .jsonl.")
    if not isinstance(rows, list):
        raise UserError(
            f"{path}: an array of rows is needed, not {type(rows).__name__}. A file with one row per line is .jsonl."
        )
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


def _parquet(path: Path, hash: Any) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    for _ in _bytes(path, hash):
        pass
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a valid parquet file ({str(error).splitlines()[0]}). Download it again.") from error


def _remote(where: str, name: str, source: Source, level: str) -> _Reading:
    """Rows streamed from the Hugging Face hub or read from TFDS. The hash covers the rows."""
    kind, _, rest = where.partition(":")

    def rows(hash: Any) -> Iterator[tuple[str, Any]]:
        try:
            for number, row in enumerate(_hub(rest) if kind == "hf" else _tfds(rest), 1):
                hash.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode(errors="replace") + b"\n")
                yield f"row {number}", row
        # The libraries raise many types: no network, no login, no such dataset.
        except Exception as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{where} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]}). With a network, log "
                f"in if the dataset is gated; without one, download it elsewhere and give the file's path. {source.licence}."
            ) from error

    return _Reading(where, name, source, level, rows)


def _hub(repository: str) -> Iterator[Raw]:
    import datasets

    repository, _, revision = repository.partition("@")
    owner, _, rest = repository.partition("/")
    name, _, config = rest.partition("/")
    rows = datasets.load_dataset(f"{owner}/{name}", config or None, split="train", streaming=True, revision=revision or None)
    return iter(rows)


def _tfds(name: str) -> Iterator[Raw]:
    import tensorflow_datasets

    def plain(value: Any) -> Any:
        value = value.item() if getattr(value, "ndim", None) == 0 else value
        return value.decode() if isinstance(value, bytes) else value

    rows = tensorflow_datasets.data_source(name, split="train")
    return ({field: plain(value) for field, value in rows[i].items()} for i in range(len(rows)))
