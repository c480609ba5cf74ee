"""The one exception for errors that the user can fix."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message is one paragraph: what is wrong, where, and what to do.

    "Where" is a field, or a file and line. main.py prints the message without a traceback and exits
    with status 2.
    """


def exit_code(command: Callable[[list[str]], int]) -> int:
    """The command's exit code on this process's arguments: 2 after a UserError, whose message is
    printed."""
    try:
        return command(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
