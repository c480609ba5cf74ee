"""A seeded hundred of the mutants of `make fuzz`: each is read or refused in a sentence, within five seconds."""

from tests.fuzz.__main__ import jobs, outcomes


def test_a_hundred_mutants_are_read_or_refused():
    faults = [found for found in outcomes(jobs(100, seed=1)) if found[2] not in ("works", "refused")]
    assert not faults, "\n\n".join(map(str, faults))
