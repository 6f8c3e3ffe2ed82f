r"""Bytes to lines to columns: the reading rules that every data set shares.

Text is UTF-8 and is split on "\n" only: `str.splitlines` would also cut at U+0085, U+2028 and others. Spaces,
and the carriage return of a CRLF file, are stripped from the end of a line; a last line without a newline
counts. Words are separated by the ASCII space alone: `str.split()` would also cut at U+00A0, which is part of
French and German text.
"""

from attn_jax.data.datasets import Example, pair
from attn_jax.errors import UserError


def lines(data: bytes, path: str) -> list[str]:
    """The lines of a text file; a byte order mark is dropped. Raises UserError where it is not UTF-8."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise UserError(f"{path}:{line}: not valid UTF-8 (byte 0x{byte:02x}); convert the file to UTF-8") from None
    rows = text.removeprefix("\ufeff").split("\n")
    if rows[-1] == "":
        rows.pop()
    return [row.rstrip(" \r") for row in rows]


def words(text: str) -> list[str]:
    """The words of a line: what stands between ASCII spaces."""
    return [word for word in text.split(" ") if word]


def columns(data: bytes, path: str, count: int, form: str, *, more: bool = False) -> list[list[str]]:
    """The tab-separated columns of every line.

    Args:
        data: the file's bytes.
        path: its name, for messages.
        count: how many columns a line has.
        form: what a line should look like, for messages.
        more: whether further columns may follow; they are left out.

    Raises:
        UserError: on a line with another number of columns or with an empty one.
    """
    rows = []
    for number, line in enumerate(lines(data, path), 1):
        row = line.split("\t")
        if len(row) < count or (len(row) > count and not more):
            raise UserError(f"{path}:{number}: {len(row)} tab-separated columns; expected {form}")
        empty = [column for column, text in enumerate(row[:count], 1) if not text.strip(" ")]
        if empty:
            raise UserError(f"{path}:{number}: column {empty[0]} is empty; expected {form}")
        rows.append(row[:count])
    return rows


def parallel(source: bytes, source_path: str, target: bytes, target_path: str) -> list[Example]:
    """The pairs of two line-aligned files. Raises UserError on unequal line counts and on empty lines."""
    sources, targets = lines(source, source_path), lines(target, target_path)
    if len(sources) != len(targets):
        raise UserError(
            f"{source_path} has {len(sources)} lines but {target_path} has {len(targets)}: "
            "line n of one must translate line n of the other"
        )
    for path, rows in ((source_path, sources), (target_path, targets)):
        if "" in rows:
            raise UserError(f"{path}:{rows.index('') + 1}: empty line; remove the pair from both files")
    return [pair(s, t) for s, t in zip(sources, targets, strict=True)]
