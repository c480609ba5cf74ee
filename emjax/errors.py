"""The one exception for errors that the user can fix."""


class UserError(Exception):
    """Bad input. The message is one paragraph: what is wrong, where, and what to do.

    "Where" is a field, or a file and line. main.py prints the message without a traceback and exits
    with status 2.
    """
