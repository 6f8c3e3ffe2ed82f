"""What stands after the "=" of a flag: parsers for absl. `metavar` and `allowed` are for the help text."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping

from absl import flags

from attn_jax.errors import unknown


def split_values(text: str) -> list[str]:
    """The values between commas. Raises ValueError if one is empty."""
    values = [value.strip() for value in text.split(",")]
    if "" in values:
        raise ValueError("expected values separated by commas, and none of them empty")
    return values


class Datasets(flags.ArgumentParser[list[str]]):
    """Comma-separated data sets: of `allowed` if those are all there are, else `data.load` judges them."""

    metavar = "A,B"

    def __init__(self, allowed: Callable[[], Iterable[str]], closed: bool):
        self.allowed = allowed
        self.closed = closed

    def parse(self, argument: str | list[str]) -> list[str]:
        """The value that the text stands for. Raises ValueError."""
        names = argument if isinstance(argument, list) else split_values(argument)
        for place, name in enumerate(names):
            if self.closed and name not in tuple(self.allowed()):
                raise ValueError(str(unknown("data set", name, self.allowed())))
            if name in names[:place]:
                raise ValueError(f"the data set {name} is given twice")
        return names


class Text(flags.ArgumentParser[str]):
    """Text that is not empty."""

    def __init__(self, metavar: str):
        self.metavar = metavar

    def parse(self, argument: str) -> str:
        """The value that the text stands for. Raises ValueError."""
        if not argument.strip():
            raise ValueError("must not be empty")
        return argument


class Place(Text):
    """A file or directory; `~` is the user's home, which shells leave after a "=" as it is."""

    def parse(self, argument: str) -> str:
        """The value that the text stands for. Raises ValueError."""
        return os.path.expanduser(super().parse(argument))


class Names(flags.ArgumentParser[list[str]]):
    """Comma-separated names, compared with `allowed` when used: a table may still grow after parsing."""

    metavar = "A,B"

    def __init__(self, allowed: Callable[[], Iterable[str]]):
        self.allowed = allowed

    def parse(self, argument: str | list[str]) -> list[str]:
        """The value that the text stands for. Raises ValueError."""
        return argument if isinstance(argument, list) else split_values(argument)


class Assignment(flags.ArgumentParser[tuple[str, str]]):
    """Two texts around the first "="."""

    def __init__(self, metavar: str):
        self.metavar = metavar

    def parse(self, argument: str | tuple[str, str]) -> tuple[str, str]:
        """The value that the text stands for. Raises ValueError."""
        if isinstance(argument, tuple):
            return argument
        path, equals, value = argument.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"expected {self.metavar}")
        return path.strip(), value.strip()


class SweepText(Assignment):
    """Texts around the first "=", or the name of a sweep, which stands alone after an empty path.

    described: the sweeps that have names, with what each one is.
    """

    def __init__(self, metavar: str, described: Callable[[], Mapping[str, str]]):
        super().__init__(metavar)
        self.described = described

    def parse(self, argument: str | tuple[str, str]) -> tuple[str, str]:
        """The value that the text stands for. Raises ValueError."""
        if isinstance(argument, str) and "=" not in argument and argument.strip() and self.described():
            return "", argument.strip()
        return super().parse(argument)


class Integers(flags.ArgumentParser[list[int]]):
    """Comma-separated whole numbers, each at least `least` and above the one before."""

    metavar = "M,N"

    def __init__(self, least: int):
        self.least = least

    def parse(self, argument: str | list[int]) -> list[int]:
        """The value that the text stands for. Raises ValueError."""
        if not isinstance(argument, str):
            return argument
        texts = split_values(argument)
        if not all(text.isdecimal() and len(text) <= 9 for text in texts):
            raise ValueError("expected whole numbers separated by commas")
        numbers = [int(text) for text in texts]
        if min(numbers) < self.least or any(a >= b for a, b in itertools.pairwise(numbers)):
            raise ValueError(f"expected rising numbers from {self.least}, each given once")
        return numbers
