"""The one exception type whose message is meant for the person at the keyboard."""


class UserError(ValueError):
    """Something the user can put right.

    The message is one sentence that names the input and the remedy. The command line prints it and
    exits with code 2; nodes show it on the node; library callers can catch it as a `ValueError`.
    """
