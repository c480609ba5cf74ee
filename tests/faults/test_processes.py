"""Two real processes with CPU collectives: they agree with one, and when one goes the other does not hang."""

import re
import time

from tests.faults.conftest import close, ended, result, saved, start


def names_process_1(told):
    """In the coordination service's words."""
    return re.search(r"[Tt]ask[: ]1\b|unhealthy \(stopped sending heartbeats\):\n1\n", told)


def test_a_dead_process_ends_the_other_and_one_alone_goes_on(alone, tmp_path):
    first, last = processes = start(2, tmp_path, 6, "SIGKILL")
    last.wait(timeout=240)
    clock = time.monotonic()
    codes, told = ended(processes)
    assert time.monotonic() - clock < 30  # HEARTBEAT_S is 6 here
    assert codes[1] == -9
    assert codes[0] not in (0, None)
    assert names_process_1(told[0]), told[0][-2000:]
    assert saved(tmp_path)[-1] in (2, 4)  # killed at step 6, when the one of step 4 may still be on its way to the disk
    codes, told = ended(start(1, tmp_path))  # with another number of processes
    assert codes == [0], told
    close(result(tmp_path), alone)
    assert len(result(tmp_path)[1]) == 8


def test_a_process_that_fails_tells_why_and_ends_the_other(tmp_path):
    codes, told = ended(start(2, tmp_path, 6, "RAISE"), timeout=120)
    assert codes[1] == 1
    assert "ValueError: a defect on one of the processes" in told[1]
    assert codes[0] not in (0, None)
    assert names_process_1(told[0]), told[0][-2000:]


def test_sigterm_to_one_stops_both_after_the_same_step(alone, tmp_path):
    codes, told = ended(start(2, tmp_path, 3, "SIGTERM"))
    assert codes == [0, 0], told
    assert all("stopped" in x for x in told)
    assert 3 <= saved(tmp_path)[-1] <= 6
    assert not list(tmp_path.glob("store/train/*/manifest.json"))
    codes, told = ended(start(2, tmp_path))
    assert codes == [0, 0], told
    close(result(tmp_path), alone)


def test_sigterm_in_a_visit_ends_both_with_the_step_saved(alone, tmp_path):
    """The one that has it leaves at once, and the other, which cannot go on alone, with an error."""
    codes, told = ended(start(2, tmp_path, 3, "VISIT"), timeout=120)
    assert codes[1] == 0, told
    assert "stopped" in told[1]
    assert codes[0] != 0
    assert saved(tmp_path) == [2, 3]
    codes, told = ended(start(2, tmp_path))
    assert codes == [0, 0], told
    close(result(tmp_path), alone)


def test_a_process_that_stands_still_is_named(tmp_path):
    """Stopped, it sends no heartbeats either."""
    first, last = processes = start(2, tmp_path, 6, "SIGSTOP")
    code = first.wait(timeout=240)
    assert code != 0
    last.kill()
    _, told = ended(processes)
    assert names_process_1(told[0]), told[0][-2000:]


def test_a_process_that_lives_and_does_not_get_on_is_named(tmp_path):
    """Its heartbeats go on; config.watch.stall, here 45 s (the first step is compiled), ends the run."""
    codes, told = ended(start(2, tmp_path, 6, "HANG", STALL="45"))
    assert all(codes)
    assert "no step was finished for 45 s (config.watch.stall). Furthest behind is process 1" in told[0] + told[1]
