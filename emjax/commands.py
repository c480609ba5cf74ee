"""What the commands that read a config file share: their flags."""

from absl import flags
from ml_collections import config_flags

from emjax.errors import UserError


def parse(argv: list[str], values: flags.FlagValues, usage: str) -> flags.FlagValues:
    """Reads --config, its fields' flags and those that `values` defines.

    Raises UserError for an unknown flag or field, or a value of the wrong type.
    """
    config_flags.DEFINE_config_file("config", None, "The experiment's config file, with its variant.", flag_values=values)
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
        raise UserError(f"Unknown argument {surplus[0]!r}. Usage: {usage}")
    if not values["config"].present:
        raise UserError(f"--config is missing. Usage: {usage}")
    return values
