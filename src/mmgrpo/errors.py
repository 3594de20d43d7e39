"""The one exception that carries a sentence for the user."""


class UserError(Exception):
    """Something the user can mend: says what was given, what is allowed and what to do next.

    The command line prints the message alone; in a notebook it is the last line of the traceback.
    """


def nearest(given: str, allowed: list[str]) -> str:
    """A sentence that names what is allowed and, where one is near, the likeliest meaning of `given`."""
    import difflib

    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"allowed: {', '.join(sorted(allowed))}{hint}"


def user_error_in(error: BaseException | None) -> UserError | None:
    """The UserError that this is, or that it was raised from, as DSPy passes on what an engine raises."""
    found = (one for one in (error, getattr(error, "__cause__", None)) if isinstance(one, UserError))
    return next(found, None)
