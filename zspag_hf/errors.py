"""The one exception type for bad input, so that a caller can tell a request to mend from a fault in the library."""


class UnlearningError(ValueError):
    """Bad input: the message names the offending value and the mend. Raised before any expensive work."""
