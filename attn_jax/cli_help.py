"""The text of `--help` and `--helpconfig`: meaning, defaults and allowed values, wrapped to the terminal."""

import re
import shutil
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from attn_jax import config

_COLUMN = 28

# What absl adds to the help of enum flags and repeatable flags; the table says it in its own way.
_ABSL_EXTRAS = re.compile(r"^<[^>]*>: |;\s*repeat this option to specify a list of values$")


def own_flags(flag_values: flags.FlagValues, script: str) -> list[flags.Flag]:
    """The flags that the script or attn_jax defined, in that order; not those of libraries."""
    modules = flag_values.flags_by_module_dict()
    own = list(modules.get(script, ()))
    for module, defined in modules.items():
        if module.startswith("attn_jax."):
            own.extend(defined)
    return own


def flags_text(doc: str, flag_values: flags.FlagValues, script: str) -> str:
    """The script's docstring and a list of its flags."""
    entries = [(_spelling(flag), _description(flag)) for flag in own_flags(flag_values, script)]
    others = [("--helpconfig", ["list the configuration fields"])] if "set" in flag_values else []
    others += [("--helpfull", ["list the flags of the libraries, too"]), ("--help", ["show this text"])]
    return f"{doc.strip()}\n\nFlags:\n{_table(entries + others)}"


def config_text(names: Mapping[str, Sequence[str]]) -> str:
    """Every configuration field; `names` are the allowed values by path where no annotation tells them."""
    entries = []
    for path, field, annotation in config.fields():
        lines = [field.metadata["doc"]]
        allowed = names.get(path) or (
            typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
        )
        if allowed:
            lines.append(f"one of: {', '.join(allowed)}")
        shown = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        entries.append((f"{path}={shown}", lines))
    return f"Configuration fields with their defaults, for --set and --sweep:\n{_table(entries)}"


def _spelling(flag: flags.Flag) -> str:
    if flag.boolean:
        return f"--[no]{flag.name}"
    metavar = getattr(flag.parser, "metavar", None)
    if metavar is None:
        kinds = {
            flags.IntegerParser: "N",
            flags.FloatParser: "X",
            flags.ListParser: "A,B",
            flags.EnumParser: "NAME",
        }
        metavar = next((name for kind, name in kinds.items() if isinstance(flag.parser, kind)), "TEXT")
    return f"--{flag.name}={metavar}"


def meaning(flag: flags.Flag) -> str:
    """What the flag's author wrote of it."""
    return _ABSL_EXTRAS.sub("", flag.help or "")


def _description(flag: flags.Flag) -> list[str]:
    """Meaning and default, then the allowed values."""
    lines = [meaning(flag)]
    if flag.default not in (None, [], ""):
        lines[0] += f" (default: {_default(flag)})"
    parser: Any = flag.parser
    allowed: Iterable[str] = parser.allowed() if hasattr(parser, "allowed") else getattr(parser, "enum_values", ())
    if allowed := list(allowed):
        several = isinstance(parser, flags.ListParser) or getattr(parser, "metavar", "") == "A,B"
        lines.append(f"{'any' if several else 'one'} of: {', '.join(allowed)}")
    if described := parser.described() if hasattr(parser, "described") else {}:
        lines.append("sweeps with a name:")
        lines += [f"{name}: {meaning}" for name, meaning in described.items()]
    return lines


def _default(flag: flags.Flag) -> str:
    if flag.boolean:
        return str(flag.default).lower()
    return ",".join(map(str, flag.default)) if isinstance(flag.default, list) else str(flag.default)


def _table(entries: Iterable[tuple[str, list[str]]]) -> str:
    """Two columns; a name that is too wide for the first stands on a line of its own."""
    width = max(40, min(shutil.get_terminal_size().columns, 120))
    lines = []
    for name, paragraphs in entries:
        text = [
            line
            for paragraph in paragraphs
            for line in textwrap.wrap(paragraph, width - _COLUMN, break_on_hyphens=False, break_long_words=False)
        ] or [""]
        if len(name) > _COLUMN - 4:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name:<{_COLUMN - 2}}{text.pop(0)}".rstrip())
        lines += [" " * _COLUMN + line for line in text]
    return "\n".join(lines)
