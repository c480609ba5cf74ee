"""Whether two work directories hold the same results: python -m tests.equal OLD NEW

Compares results.json (and those of a grid's cells) without what names the code that made them and without keys that are new in
NEW, and, byte for byte whatever their stage is called, trajectories, examples, answers and every tensor of trained weights.
Prints what differs; exit code 1 where something does.
"""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import safetensors.numpy

ASIDE = {"config_hash", "versions", "store_format", "cost", "world", "world_note"}
LINES = ("collect/*/trajectories.jsonl", "rate/*/trajectories.jsonl", "select/*/examples.jsonl", "examples/*/examples.jsonl")
ANSWERS = "answers/**/*.jsonl"
TENSORS = "train/*/**/*.safetensors"


def differences(old, new, where):
    """Where `new` is not `old`; keys that only `new` has are left out."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() - ASIDE:
            if key not in new:
                yield f"{where}.{key} is missing"
            else:
                yield from differences(old[key], new[key], f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{where} has {len(new)} entries, not {len(old)}"
        for i, (a, b) in enumerate(zip(old, new, strict=False)):
            yield from differences(a, b, f"{where}[{i}]")
    elif old != new:
        yield f"{where}: {old!r:.80} became {new!r:.80}"


def hashes(root, pattern):
    """{SHA-256 of the file: how many}, for a store's files."""
    files = [file for store in root.glob("**/store") for file in store.glob(pattern)]
    return Counter(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def tensors(root):
    found = Counter()
    for file in {file for store in root.glob("**/store") for file in store.glob(TENSORS)}:
        arrays = safetensors.numpy.load_file(file)
        found[hashlib.sha256(repr([(n, x.tobytes()) for n, x in sorted(arrays.items())]).encode()).hexdigest()] += 1
    return found


def compare(old, new):
    for file in sorted(old.glob("**/results.json")):
        name = file.relative_to(old)
        if not (new / name).is_file():
            yield f"{name} is missing"
            continue
        yield from differences(json.loads(file.read_text()), json.loads((new / name).read_text()), str(name))
    for pattern in (*LINES, ANSWERS):
        a, b = hashes(old, pattern), hashes(new, pattern)
        print(f"{pattern:35} {a.total()} files, {(a & b).total()} equal")
        if a != b:
            yield f"{pattern}: {(a - b).total()} of {a.total()} files differ"
    a, b = tensors(old), tensors(new)
    print(f"{TENSORS:35} {a.total()} files, {(a & b).total()} equal")
    if a != b:
        yield f"{TENSORS}: {(a - b).total()} of {a.total()} files differ"


if __name__ == "__main__":
    found = list(compare(*map(Path, sys.argv[1:])))
    print("\n".join(found[:40]) or "equal")
    sys.exit(bool(found))
