"""python main.py --config configs/kto_biased10.py[:VARIANT] [--workdir DIR] [--store DIR] [--dry_run] [--config.a.b=value]"""

import errno
import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from emjax.errors import UserError


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags, config among them. Raises UserError for an unknown flag or field, or a value of the wrong type."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "The experiment's config file, with its variant.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Default: runs/<config>[-<variant>].", flag_values=values)
    flags.DEFINE_string(
        "store", None, "Where finished stages are kept and shared. Default: <workdir>/store.", flag_values=values
    )
    flags.DEFINE_bool("dry_run", False, "Print the plan and stop.", flag_values=values)
    try:
        surplus = values(argv)[1:]
        if values["config"].present:
            values.config.lock()  # a config file that cannot be read is reported on first use
    except AttributeError as error:  # an unknown field, with the nearest known one
        inner = error.args[0]
        text = str(inner.args[0] if isinstance(inner, Exception) else inner)
        raise UserError(f"--config.*: there is no field {'. '.join(text.splitlines())}") from error
    except OSError as error:
        raise UserError(f"The config file cannot be read: {str(error).splitlines()[-1].strip()}") from error
    except flags.Error as error:
        raise UserError(
            f"{str(error).strip().splitlines()[-1]}. Correct the flag; a field takes values of its own type."
        ) from error
    if surplus:
        raise UserError(f"Unknown argument {surplus[0]!r}. Usage: {__doc__}")
    if not values["config"].present:
        raise UserError(f"--config is missing. Usage: {__doc__}")
    return values


def run(options: flags.FlagValues) -> None:
    config = options.config
    if options.dry_run:
        from emjax import plan

        print(plan.describe(config))
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the compiler's notes on cached CPU programs
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "emjax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

    from emjax import experiment
    from emjax.store import Store

    file, _, variant = options["config"].config_filename.partition(":")  # type: ignore[attr-defined]
    default = Path("runs") / (Path(file).stem + (f"-{variant}" if variant else ""))
    workdir = Path(options.workdir) if options.workdir else default
    experiment.run(config, workdir, Store(Path(options.store) if options.store else workdir / "store"))


def main(argv: list[str]) -> int:
    """0, or 2 with one paragraph where the user can mend what is wrong."""
    try:
        run(parse(argv))
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
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
