"""The names in a table of another module, for help, which must not wait for JAX to be imported."""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path


def names(module: str, table: str) -> tuple[str, ...]:
    """The names in `attn_jax.MODULE.TABLE`, in order.

    A module that is imported tells what its table holds by now, as it does once a file of `--load` has registered
    something. Of another one the source is read: the `name` of every class under `@TABLE.register`, or the keys or
    items of the literal that TABLE is. Raises LookupError if there is no such table.
    """
    imported = sys.modules.get(f"attn_jax.{module}")
    return tuple(getattr(imported, table)) if imported is not None else _read(module, table)


@functools.cache
def _read(module: str, table: str) -> tuple[str, ...]:
    source = Path(__file__).with_name(f"{module}.py").read_text("utf-8")
    found = [name for statement in ast.parse(source).body for name in _in(statement, table)]
    if not found:
        raise LookupError(f"attn_jax.{module} has no table {table} whose names its source tells")
    return tuple(found)


def _in(statement: ast.stmt, table: str) -> Iterator[str]:
    """The names that a statement of a module puts into its table."""
    match statement:
        case ast.ClassDef(decorator_list=decorators, body=body) if any(
            ast.unparse(decorator) == f"{table}.register" for decorator in decorators
        ):
            for inner in body:
                match inner:
                    case (
                        ast.Assign(targets=[ast.Name(id="name")], value=ast.Constant(value=str(name)))
                        | ast.AnnAssign(target=ast.Name(id="name"), value=ast.Constant(value=str(name)))
                    ):
                        yield name
        case (
            ast.Assign(targets=[ast.Name(id=target)], value=value)
            | ast.AnnAssign(target=ast.Name(id=target), value=value)
        ) if target == table:
            match value:
                case ast.Dict(keys=entries) | ast.Tuple(elts=entries) | ast.List(elts=entries):
                    yield from (str(entry.value) for entry in entries if isinstance(entry, ast.Constant))
