"""python -m tests.fuzz [COUNT] [SEED]: mutants of every kind; prints the outcomes and each fault, exit code 1 with a fault.

One of them again, by itself: python -m tests.fuzz.worker TARGET SEED
"""

import multiprocessing
import sys
import tempfile
from collections import Counter

from tests.fuzz.targets import TARGETS
from tests.fuzz.worker import serve

LIMIT = 5.0  # seconds that a mutant may take


def outcomes(jobs):
    """Yields (target, seed, outcome, what was said, what was done) of each (target, seed)."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as root:
        process = connection = None
        for n, job in enumerate(jobs):
            if process is None:
                connection, theirs = context.Pipe()
                process = context.Process(target=serve, args=(theirs, f"{root}/{n}"), daemon=True)
                process.start()
                assert connection.recv() == "ready"
            connection.send(job)
            try:
                found = connection.recv() if connection.poll(LIMIT) else ("hang", f"longer than {LIMIT:g} s", "")
            except EOFError:
                found = ("died", "the process ended", "")
            if found[0] in ("hang", "died"):
                process.kill()
                process.join()
                process = None
            yield (*job, *found)
        if process is not None:
            connection.send(None)
            process.join()


def jobs(count, seed):
    names = (*TARGETS, "endpoint")
    return [(names[i % len(names)], seed + i // len(names)) for i in range(count)]


def main(count="2000", seed="1"):
    tally, faults = Counter(), 0
    for target, number, outcome, said, done in outcomes(jobs(int(count), int(seed))):
        tally[target, outcome] += 1
        if outcome not in ("works", "refused"):
            faults += 1
            print(
                f"{outcome}: python -m tests.fuzz.worker {target} {number}\n  {done[:300]}\n  {said.strip()[-300:]}\n",
                flush=True,
            )
    for (target, outcome), n in sorted(tally.items()):
        print(f"{target:14} {outcome:10} {n}")
    print(f"{sum(tally.values())} mutants, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
