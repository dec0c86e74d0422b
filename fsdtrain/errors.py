"""The errors a user can cause and mend; everything else is a bug and keeps its traceback."""


class UserError(ValueError):
    """A mistake in what was given: the command line prints it as one sentence and exits with 2.

    The message says what was given, what is allowed and what to do.
    """


class DataError(UserError):
    """Data that breaks the fleetclip format; the message names shard, clip and field."""


class BackendError(UserError):
    """A backend was given options that it does not have, or a step that it cannot take."""
