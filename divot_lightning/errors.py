"""The error that users see."""


class UserError(ValueError):
    """Something in a recipe, a folder or the data is wrong and the user can fix it.

    The message says what is wrong, the offending value, what is allowed and what to do, in at most five lines;
    the command line shows it without a traceback.
    """
