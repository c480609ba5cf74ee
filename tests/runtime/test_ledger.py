"""The cap on money holds over clients, processes and restarts."""

import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emjax.errors import UserError
from emjax.runtime.ledger import Ledger


def test_a_restart_does_not_start_anew(tmp_path):
    first = Ledger(tmp_path / "spent.jsonl", 1.0)
    call = first.reserve(0.6)
    assert call
    first.settle(call, 0.25)
    again = Ledger(tmp_path / "spent.jsonl", 1.0)
    assert again.spent == 0.25
    assert again.reserve(0.8) is None
    assert again.reserve(0.7)
    # What was open when a run was killed counts with its worst case.
    assert Ledger(tmp_path / "spent.jsonl", 1.0).spent == pytest.approx(0.95)


def test_two_clients_share_the_cap(tmp_path):
    one, other = (Ledger(tmp_path / "spent.jsonl", 1.0) for _ in range(2))
    assert one.reserve(0.6)
    assert other.reserve(0.6) is None
    assert other.spent == 0.6


@given(st.integers(0, 200))
def test_a_line_cut_anywhere_loses_no_more_than_itself(tmp_path_factory, cut):
    file = tmp_path_factory.mktemp("ledger") / "spent.jsonl"
    ledger = Ledger(file, 10.0)
    assert ledger.reserve(1.0)
    assert ledger.reserve(2.0)
    whole = file.read_bytes()
    file.write_bytes(whole[: min(cut, len(whole))])
    again = Ledger(file, 10.0)
    kept = again.spent
    assert kept in (0.0, 1.0, 3.0)
    assert again.reserve(4.0)
    assert Ledger(file, 10.0).spent in (kept + 4.0, kept + 5.0, kept + 6.0)


def test_what_is_no_entry_is_named(tmp_path):
    (tmp_path / "spent.jsonl").write_text('{"call": "a", "usd": "much"}\n')
    with pytest.raises(UserError, match="is no entry of what was spent"):
        assert Ledger(tmp_path / "spent.jsonl", 1.0).spent


def _spend(file):
    ledger = Ledger(file, 5.0)
    for _ in range(40):
        ledger.reserve(0.1)


def test_processes_share_the_cap(tmp_path):
    workers = [multiprocessing.get_context("fork").Process(target=_spend, args=(tmp_path / "s.jsonl",)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert Ledger(tmp_path / "s.jsonl", 5.0).spent == pytest.approx(5.0)
