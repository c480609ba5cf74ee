"""Hostile versions of a file or a reply: values, keys and bytes changed by a seeded generator."""

import json

VALUES = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 2**31, 2**40, 2**63, -(10**9), 1e308, float("nan"), float("inf"),
    "", "abc", "0", "\ud800", "\u2028", "a\x00b", "<|im_end|>", "../x", "/etc/hostname", "x" * 10_000,
    [], {}, [[]], [None], {"": None}, ["x"] * 50, [1.5], [-7, 5],
)  # fmt: skip
TEMPLATES = ("{{ 1/0 }}", "{{ messages.nothing.there }}", "{% for %}", "{{ raise_exception('no') }}", "", "{{ messages }}")
DEEP = "[" * 100_000


def pick(rng, values):
    return values[int(rng.integers(len(values)))]


def places(value, at=()):
    """Every place below a JSON value, as a path of keys."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*at, key)
        yield from places(child, (*at, key))


def change(value, rng):
    """The JSON value with one thing in it replaced, removed, renamed or doubled."""
    found = list(places(value))
    kind = pick(rng, ("replace", "replace", "replace", "remove", "rename", "add", "root"))
    if not found or kind == "root":
        return pick(rng, VALUES)
    *path, last = pick(rng, found)
    value = json.loads(json.dumps(value))
    part = value
    for key in path:
        part = part[key]
    if kind == "replace":
        part[last] = pick(rng, VALUES)
    elif kind == "remove":
        del part[last]
    elif isinstance(part, list):
        part.append(part[last])
    elif kind == "rename":
        part[last[:-1] + "x"] = part.pop(last)
    else:
        part[pick(rng, ("rope_scaling", "unknown_key", "weight", "quantization_config", "auto_map", "r"))] = pick(rng, VALUES)
    return value


def spoil(raw, rng):
    """The bytes flipped, cut, doubled, replaced or with something in them that is no text."""
    kind = pick(rng, ("flip", "cut", "insert", "double", "empty", "zeros", "head"))
    at = int(rng.integers(len(raw))) if raw else 0
    if kind == "flip" and raw:
        return raw[:at] + bytes([raw[at] ^ (1 << int(rng.integers(8)))]) + raw[at + 1 :]
    if kind == "cut":
        return raw[:at]
    if kind == "insert":
        return (
            raw[:at]
            + pick(rng, (b"\xff\xfe", b"\x00", b"\xed\xa0\x80", b"\n\n", b"\xef\xbb\xbf", "\u2028".encode(), b'"'))
            + raw[at:]
        )
    if kind == "head":  # where binary formats keep their counts and sizes
        at = int(rng.integers(min(64, len(raw)) or 1))
        return raw[:at] + rng.bytes(4) + raw[at + 4 :]
    return {"double": raw + raw, "zeros": bytes(len(raw))}.get(kind, b"")


def text(raw, name, rng):
    """A hostile version of the file `name` with these bytes, by what the file is."""
    if rng.random() < 0.2:
        return spoil(raw, rng)
    if name.endswith(".json"):
        return pick(rng, (DEEP.encode(), b"[]", b"null")) if rng.random() < 0.05 else dumped(change(json.loads(raw), rng))
    if name.endswith(".jsonl"):
        lines = raw.splitlines()
        at = int(rng.integers(len(lines)))
        lines[at] = (
            pick(rng, (DEEP.encode(), b"", b"null")) if rng.random() < 0.1 else dumped(change(json.loads(lines[at]), rng))
        )
        return b"\n".join(lines) + b"\n"
    if name.endswith(".jinja") and rng.random() < 0.7:
        return pick(rng, TEMPLATES).encode()
    return spoil(raw, rng)


def dumped(value):
    """As JSON, with whatever UTF-8 cannot hold, and with NaN as careless writers leave it."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
