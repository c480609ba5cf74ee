"""The one exception for what a user can mend."""


class UserError(Exception):
    """Bad input. The message is one paragraph: what is wrong, where (field, file, line), what to do.

    main.py prints it without a traceback and exits with status 2.
    """
