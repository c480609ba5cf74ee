"""python main.py --config configs/NAME.py[:VARIANT] [--workdir DIR] [--store DIR] [--dry_run [--target T]] [--config.a.b=X]"""

import errno
import os
import sys
from pathlib import Path

from absl import flags

from emjax import commands
from emjax.errors import UserError
from emjax.runtime import process, stopping


def parse(argv: list[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Default: runs/<config>[-<variant>].", flag_values=values)
    flags.DEFINE_string(
        "store", None, "Where finished stages are kept and shared. Default: <workdir>/store.", flag_values=values
    )
    flags.DEFINE_bool("dry_run", False, "Print the plan and stop.", flag_values=values)
    flags.DEFINE_string(
        "target", "", "With --dry_run, the devices to plan for: cpu, h200, h100x8, v5p:2x2x4, ...", flag_values=values
    )
    return commands.parse(argv, values, str(__doc__))


def workdir(options: flags.FlagValues) -> Path:
    file, _, variant = options["config"].config_filename.partition(":")  # type: ignore[attr-defined]
    return Path(options.workdir or Path("runs") / (Path(file).stem + (f"-{variant}" if variant else "")))


def run(options: flags.FlagValues) -> None:
    config = options.config
    if options.dry_run:
        from emjax import plan

        print(plan.describe(config, options.target))
        return
    if options.target:
        raise UserError("--target is for a plan: add --dry_run. A run takes the devices that it finds.")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the compiler's notes on cached CPU programs
    stopping.listen()
    process.join()
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "emjax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

    from emjax import experiment
    from emjax.store import Store

    where = workdir(options)
    experiment.run(config, where, Store(Path(options.store) if options.store else where / "store"))


def main(argv: list[str]) -> int:
    """0, also where SIGTERM ended the run; or 2 with one paragraph where the user can mend what is wrong."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch, which nothing here needs
    try:
        run(parse(argv))
    except stopping.Stopped:
        print("Stopped by SIGTERM. The same command goes on from here.", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(
            f"error: {error.filename or 'the work directory'} cannot be written ({error.strerror}). Make room or choose "
            "another --workdir, then start the same command again: what is finished is kept.",
            file=sys.stderr,
        )
        return 2
    except Exception as error:
        return process.failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(stopping.leave(main(sys.argv)))
