"""Faults that a user can act on. A leaf."""


class TorchmemError(RuntimeError):
    """Its message says what is wrong and the way out; the command line shows it without a traceback."""
