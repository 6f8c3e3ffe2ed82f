"""Names for the classes of one family: scores, cells, normalisers, ..."""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from attn_jax.errors import UserError, unknown

T = TypeVar("T", bound=type)


class Registry(Mapping[str, T], Generic[T]):
    """A table name -> class. A class enters by decorating it; its name is its `name` attribute.

    >>> @SCORES.register
    ... class Dot(Score):
    ...     name = "dot"
    """

    def __init__(self, family: str):
        self.family = family
        self._table: dict[str, T] = {}

    def register(self, cls: T) -> T:
        """Adds a class. Raises UserError if its name is taken."""
        name = cls.__dict__.get("name")
        if not name:
            raise UserError(f"{self.family} class {cls.__name__} needs a class attribute `name`")
        if name in self._table:
            raise UserError(f"{self.family} '{name}' is already defined by {self._table[name].__module__}")
        self._table[name] = cls
        return cls

    def remove(self, name: str) -> None:
        """Takes a class out again, as a test of a temporary entry does."""
        del self._table[name]

    def __getitem__(self, name: str) -> T:
        if name not in self._table:
            raise unknown(self.family, name, self._table)
        return self._table[name]

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def check(self, name: str) -> None:
        """Raises UserError, with the nearest name, if there is no such entry."""
        self[name]
