"""The one error that a user is meant to see."""


class UserError(ValueError):
    """What was expected, what came, what to do, in one line. The program prints it and ends with status 2."""
