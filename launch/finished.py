"""python -m launch.finished ARGS: whether the run of `python main.py ARGS` that ended with 0 is finished.

main.py ends with 0 where SIGTERM stopped it too, so a launcher that took 0 for finished would leave a run half done. 0: results
are there; 75 (the code of "try again"): they are not, and the same command goes on. Every experiment writes results.json at its
end (the page, or pretraining's gates.json, follows within seconds); a grid of which --config.only names cells writes theirs.
"""

import sys

from emjax import commands

GO_ON = 75


def finished(argv: list[str]) -> int:
    options = commands.options(argv)
    where = commands.workdir(options)
    wanted = [where / "cells" / name for name in options.config.get("only", ())] or [where]
    missing = [] if options.dry_run else [folder for folder in wanted if not (folder / "results.json").is_file()]
    for folder in missing:
        print(f"{folder} holds no results.json: the run was stopped, and the same command goes on.", file=sys.stderr)
    return GO_ON if missing else 0


if __name__ == "__main__":
    sys.exit(finished(sys.argv))
