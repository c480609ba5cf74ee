"""Moved to emjax.eval.benchmarks.humaneval; `python -m emjax.eval.humaneval` still runs it
throughout version 0.2."""

import sys

from emjax.eval.benchmarks import humaneval

if __name__ == "__main__":
    print("emjax.eval.humaneval is now emjax.eval.benchmarks.humaneval", file=sys.stderr)
    humaneval.main()
