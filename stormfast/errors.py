"""The one error a user is meant to see."""


class UserError(Exception):
    """Bad input, told in one line: what was expected, what came, what to do. The CLI prints it and exits with status 2."""
