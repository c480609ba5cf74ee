"""Moved to emjax.worlds.micro.evidence; `python -m emjax.micro.evidence` still runs it throughout
version 0.2."""

import runpy
import sys

if __name__ == "__main__":
    print("emjax.micro.evidence is now emjax.worlds.micro.evidence", file=sys.stderr)
    runpy.run_module("emjax.worlds.micro.evidence", run_name="__main__", alter_sys=True)
