"""JSON and JSON lines as people and programs write them."""

import gzip
import json
import math

import pytest

from emjax.errors import UserError
from emjax.runtime.files import check_fields, dumps, loads, numbered_lines, read_lines, write_lines

ROW = {"a": "x\u2028y\x0b\x0c\x1c\x85z"}  # what str.splitlines takes for ends of lines


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps(ROW, ensure_ascii=False).encode(),
        json.dumps(ROW, ensure_ascii=False).encode() + b"\n",
        b"\xef\xbb\xbf" + json.dumps(ROW, ensure_ascii=False).encode() + b"\r\n",
        json.dumps(ROW, ensure_ascii=False).encode() + b"\n\n",
        gzip.compress(json.dumps(ROW, ensure_ascii=False).encode() + b"\n  \n", mtime=0),
    ],
)
def test_lines_end_with_a_line_feed_and_empty_ones_are_none(raw, tmp_path):
    (tmp_path / "rows").write_bytes(raw)
    assert read_lines(tmp_path / "rows") == [ROW]


def test_lines_keep_their_numbers(tmp_path):
    (tmp_path / "rows").write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert numbered_lines(tmp_path / "rows") == [(2, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    "line", [b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}', b"[1]", b"{", b'"\xff"', b"[" * 100_000, b"null"]
)
def test_what_is_no_json_object_is_named(line, tmp_path):
    (tmp_path / "rows").write_bytes(b'{"a": 1}\n' + line)
    with pytest.raises(UserError, match="rows, line 2: "):
        read_lines(tmp_path / "rows")


def test_a_broken_archive_is_named(tmp_path):
    (tmp_path / "rows.gz").write_bytes(gzip.compress(b"{}" * 99)[:-9])
    with pytest.raises(UserError, match="rows.gz cannot be unpacked"):
        read_lines(tmp_path / "rows.gz")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_that_json_has_not_is_written(value, tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        dumps({"a": value})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_lines(tmp_path / "rows", [{"a": [value]}])
    with pytest.raises(ValueError, match="no JSON number"):
        loads(json.dumps(value))


def test_numbers_come_back_as_they_were():
    values = [0, -0.0, 1e308, -1.5, 5e-324, 2**70]
    assert loads(dumps(values)) == values


def test_a_misspelt_field_is_named_with_the_nearest():
    known = ("id", "belief", "truth")
    check_fields({"id": 1}, known, "f, line 1")
    with pytest.raises(UserError, match=r"^f, line 1: the field 'beleif' is unknown\. Is 'belief' meant\? The fields are id, "):
        check_fields({"id": 1, "beleif": []}, known, "f, line 1")
    with pytest.raises(UserError, match=r"'canary' is unknown\. The fields are"):
        check_fields({"canary": 1}, known, "f")
    check_fields({"canary": 1, "belief": [], "beliefs": []}, known, "f", others=True)  # nothing is missing
    with pytest.raises(UserError, match="Is 'belief' meant"):
        check_fields({"canary": 1, "beliefs": []}, known, "f", others=True)
