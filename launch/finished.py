"""python -m launch.finished ARGS: checks whether the run of `python main.py ARGS` that ended with 0
is finished.

main.py also ends with 0 when SIGTERM stopped it, so a launcher that trusted that code would leave a
run half done. Exit code 0: the results exist. 75 ("try again"): they do not, and the same command
resumes the run. Every experiment writes results.json at its end (the page, or pretraining's
gates.json, follows within seconds). A grid with --config.only writes the results of the named
cells.
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
        print(f"{folder} contains no results.json: the run was stopped; the same command resumes it.", file=sys.stderr)
    return GO_ON if missing else 0


if __name__ == "__main__":
    sys.exit(finished(sys.argv))
