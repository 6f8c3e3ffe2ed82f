"""Errors that a user can mend, told in one line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What is wrong, where, and what would be right, in one line; a command line ends with exit code 2 on it."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def unknown(what: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a `name` that is none of the `allowed` ones; names the nearest of them.

    >>> str(unknown("score", "dott", ["dot", "general"]))
    "unknown score 'dott': did you mean 'dot'? (allowed: dot, general)"
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown {what} '{name}': {hint}(allowed: {', '.join(names)})")
