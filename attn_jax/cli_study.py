"""The flags that every study shares, and what they ask for: axes, changes, data, devices; and the study itself.

An experiment defines them at import, makes its variants of what they say, and hands them to `conduct`.
"""

import difflib
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from attn_jax import combinators, config, processes
from attn_jax.cli_parsers import Assignment, Datasets, Names, SweepText, Text, split_values
from attn_jax.combinators import Sweep
from attn_jax.errors import UserError, unknown

if TYPE_CHECKING:
    from attn_jax.config import Config
    from attn_jax.devices import MeshShape
    from attn_jax.study import Corpora, Local, Resources

FLAGS = flags.FLAGS

# Shortcut flag -> configuration path. `hidden_size` is no field: a study sets all sizes from it.
_SHORTCUTS = {
    "steps": "train.steps",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "hidden_size": "hidden_size",
    "learning_rate": "optim.learning_rate",
}

# Fields with a flag of their own that does more than set them.
_RESERVED = {"seed": "--seeds", "data.dataset": "--dataset"}


def define(
    axes: Mapping[str, Callable[[], Iterable[str]]],
    *,
    dataset: str | None = None,
    datasets: Sequence[str] = (),
    seeds: int = 3,
    runs_per_program: int = 16,
    flag_values: flags.FlagValues = FLAGS,
) -> None:
    """Define the flags that every study shares, and one list flag an axis.

    Args:
      axes: configuration path -> a function that returns the allowed names; `score` becomes `--scores=A,B`.
        They are called for help and when the values are used: tables may be imported, and grow, late.
      dataset: default of `--dataset`, a list of names; without it the flag is required.
      datasets: the only data sets of this experiment; empty: any that `attn_jax.data` knows. `--files` is defined
        where parallel_text is one of them.
      seeds: default of `--seeds`.
      runs_per_program: default of `--runs_per_program`.
      flag_values: where the flags are defined.
    """
    fv = flag_values
    parser = Datasets((lambda: datasets) if datasets else _dataset_names, closed=bool(datasets))
    flags.DEFINE(parser, "dataset", dataset, "data set, or several", required=dataset is None, flag_values=fv)
    text = "directory that holds the folders of the data sets"
    flags.DEFINE(Text("DIR"), "manual_dir", None, text, flag_values=fv)
    serializer: flags.ArgumentSerializer[tuple[str, str]] = flags.ArgumentSerializer()
    if not datasets or "parallel_text" in datasets:
        text = "a split of parallel_text: a pair of line-aligned files, or a TSV file; may be repeated"
        flags.DEFINE_multi(Assignment("SPLIT=FILE,FILE"), serializer, "files", None, text, flag_values=fv)
    text = "where prepared data is kept (default: $ATTN_JAX_DATA or ~/.cache/attn_jax/data)"
    flags.DEFINE(Text("DIR"), "data_dir", None, text, flag_values=fv)
    text = "output directory; finished runs in it are kept"
    flags.DEFINE(Text("DIR"), "out", None, text, required=True, flag_values=fv)
    text = "number of seeds: every variant is trained with the seeds 0 to N-1"
    flags.DEFINE_integer("seeds", seeds, text, 1, flag_values=fv)
    for axis, allowed in axes.items():
        text = f"compare these values of {axis}"
        flags.DEFINE(Names(allowed), f"{axis}s", None, text, flag_values=fv)
    flags.DEFINE_integer("steps", None, "optimiser steps, instead of epochs", 1, flag_values=fv)
    flags.DEFINE_float("epochs", None, "passes over the training data, instead of steps", 0, flag_values=fv)
    flags.DEFINE_integer("batch_size", None, "sentence pairs a step", 1, flag_values=fv)
    flags.DEFINE_integer("hidden_size", None, "units of the decoder; the encoder's follow", 1, flag_values=fv)
    flags.DEFINE_float("learning_rate", None, "learning rate", 0, flag_values=fv)
    text = "set any configuration field (--helpconfig lists them); may be repeated"
    flags.DEFINE_multi(Assignment("PATH=VALUE"), serializer, "set", None, text, flag_values=fv)
    text = "compare these values of any configuration field, or what a named sweep says; may be repeated"
    sweep_parser = SweepText("PATH=V1,V2", combinators.described)
    flags.DEFINE_multi(sweep_parser, serializer, "sweep", None, text, flag_values=fv)
    text = (
        "choose for every variant one of these values of any configuration field, by its results on dev with seeds of "
        "their own, before the variants are compared; may be repeated"
    )
    flags.DEFINE_multi(Assignment("PATH=V1,V2"), serializer, "tune", None, text, flag_values=fv)
    flags.DEFINE_integer("tune_seeds", 2, "seeds with which every value of --tune is tried", 1, flag_values=fv)
    text = "print variants, programs and an estimate of the time, and train nothing"
    flags.DEFINE_boolean("dry_run", False, text, flag_values=fv)
    text = "most runs that are trained together as one program"
    flags.DEFINE_integer("runs_per_program", runs_per_program, text, 1, flag_values=fv)
    define_load(fv)
    text = "steps between checkpoints, from which the same command goes on; 0: about once a minute"
    flags.DEFINE_integer("checkpoint_every", 0, text, 0, flag_values=fv)
    flags.DEFINE_integer("keep", 2, "checkpoints of a program that are kept", 1, flag_values=fv)
    define_devices(fv)
    define_launching(fv)


def define_load(flag_values: flags.FlagValues = FLAGS) -> None:
    """Define `--load`, which `run` obeys before anything else: help and checks know what the files register."""
    text = "Python file that registers scores, cells or other parts of your own; may be repeated"
    flags.DEFINE_multi(Text("FILE"), flags.ArgumentSerializer(), "load", None, text, flag_values=flag_values)


def define_devices(fv: flags.FlagValues = FLAGS) -> None:
    """Define the flags that say on which devices and in how many processes a program is trained."""
    text = (
        "devices that a program is cut over: its runs, and its batches (default: as many as its runs can be spread "
        "over evenly)"
    )
    flags.DEFINE(Text("run=N,data=N"), "mesh", None, text, flag_values=fv)
    text = "process 0, where several processes that train as one meet; give each the same command but for --process_id"
    flags.DEFINE(Text("HOST:PORT"), "coordinator", None, text, flag_values=fv)
    flags.DEFINE_integer("num_processes", None, "processes that train as one", 1, flag_values=fv)
    flags.DEFINE_integer("process_id", None, "number of this process, from 0", 0, flag_values=fv)
    text = "auto: the cluster that started this process (Slurm, Kubernetes, MPI, TPU) tells where the others are"
    flags.DEFINE_enum("distributed", None, ["auto"], text, flag_values=fv)


def define_launching(fv: flags.FlagValues = FLAGS) -> None:
    """Define the flags that say in which processes the programs of a study are trained, and who is told."""
    text = "local: on this machine; ray: as Ray tasks (to be installed besides)"
    flags.DEFINE_enum("launcher", "local", ["local", "ray"], text, flag_values=fv)
    text = "programs that are trained at a time, each in a process of its own"
    flags.DEFINE_integer("jobs", 1, text, 1, flag_values=fv)
    text = "a part of the programs, i from 0 to n-1; a last call without it makes the table of all"
    flags.DEFINE(Text("i/n"), "shard", None, text, flag_values=fv)
    text = "the Ray cluster (default: $RAY_ADDRESS, else a Ray of this machine alone)"
    flags.DEFINE(Text("HOST:PORT"), "ray_address", None, text, flag_values=fv)
    text = "cores that Ray keeps for a program (default 1)"
    flags.DEFINE_float("cpus_per_program", None, text, 0, flag_values=fv)
    text = "GPUs that Ray keeps for a program; a fraction: programs share one (default: none, trained on cores)"
    flags.DEFINE_float("gpus_per_program", None, text, 0, flag_values=fv)
    text = "TPU chips that Ray keeps for a program"
    flags.DEFINE_integer("tpus_per_program", None, text, 0, flag_values=fv)
    text = "wandb, mlflow: send the runs' metrics there, too (to be installed besides)"
    flags.DEFINE_list("log_to", [], text, flag_values=fv)


def launching(flag_values: flags.FlagValues = FLAGS) -> "Local | Resources":
    """Where programs are trained. Raises UserError if the flags do not go together."""
    from attn_jax.study import Local, Resources  # Help must not wait for JAX.

    names = ("ray_address", "cpus_per_program", "gpus_per_program", "tpus_per_program")
    given: dict[str, Any] = {name: flag_values[name].value for name in names if flag_values[name].value is not None}
    jobs: Any = flag_values["jobs"].value
    if flag_values["launcher"].value == "local":
        if given:
            raise UserError(f"--{next(iter(given))}: goes with --launcher=ray")
        return Local(jobs)
    if flag_values["jobs"].present:
        raise UserError("--jobs: goes with --launcher=local; Ray trains as many programs at a time as it has room for")
    gpus = given.get("gpus_per_program", 0)
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"--gpus_per_program={gpus:g}: expected a fraction below 1 or a whole number")
    return Resources(**{name.removesuffix("_per_program").removeprefix("ray_"): value for name, value in given.items()})


def mesh(flag_values: flags.FlagValues = FLAGS) -> "MeshShape | None":
    """What `--mesh` says; None without it. Raises UserError."""
    from attn_jax.devices import MeshShape  # JAX is not needed to tell help.

    text = flag_values["mesh"].value
    return None if text is None else MeshShape.parse(text)


def group() -> processes.Group | None:
    """The processes that this one trains with, if its script has the flags."""
    names = ("coordinator", "num_processes", "process_id", "distributed")
    return processes.Group.of(*(FLAGS[name].value for name in names)) if names[0] in FLAGS else None


def files(flag_values: flags.FlagValues = FLAGS) -> dict[str, list[str]] | None:
    """Split -> its files as `data.load` takes them; None without `--files`.

    Raises:
      UserError: a split is given twice.
    """
    given = flag_values["files"].value
    if given is None:
        return None
    splits: dict[str, list[str]] = {}
    for split, text in given:
        if split in splits:
            raise UserError(f"--files: the split {split} is given twice")
        try:
            splits[split] = split_values(text)
        except ValueError as error:
            raise UserError(f"--files={split}={text}: {error}") from None
    return splits


def overrides(flag_values: flags.FlagValues = FLAGS) -> dict[str, str]:
    """Configuration path -> text, from the shortcut flags, then `--set`.

    `--hidden_size=H` appears under "hidden_size", which is no field; the caller decides what it sets.

    Raises:
      UserError: unknown path or name, wrong type, a field that is set twice or has its own flag, steps beside epochs.
    """
    given = _settings(flag_values)
    _check_length({path: (origin, [value]) for path, (origin, value) in given.items()})
    changes = {path: value for path, (_, value) in given.items()}
    if "train.epochs" in changes:
        # Epochs count where steps is 0; the data set's recommended configuration may have steps.
        changes.setdefault("train.steps", "0")
    return changes


def _settings(flag_values: flags.FlagValues) -> dict[str, tuple[str, str]]:
    """Configuration path -> the flag that sets it and the value's text."""
    given: dict[str, tuple[str, str]] = {}
    for name, path in _SHORTCUTS.items():
        if flag_values[name].value is not None:
            given[path] = f"--{name}", str(flag_values[name].value)
            if path != "hidden_size":
                _field(f"--{name}", path, [given[path][1]], flag_values)
    for path, value in flag_values["set"].value or ():
        full = _field("--set", path, [value], flag_values)
        if full in given:
            raise UserError(f"{given[full][0]} and --set={path}: {full} is set twice")
        given[full] = f"--set={path}", value
    return given


def _check_length(given: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Raises UserError if steps, by the values of one flag, leave epochs, by those of another, without effect."""
    if "train.steps" in given and "train.epochs" in given:
        (steps, values), (epochs, _) = given["train.steps"], given["train.epochs"]
        if all(int(value) for value in values):
            raise UserError(f"{steps} and {epochs}: only one of them can give the length of training")


def sweeps(flag_values: flags.FlagValues = FLAGS) -> dict[str, list[str]]:
    """Configuration path -> the texts of its values, from the list flags that were given, then `--sweep=PATH=...`.

    Raises:
      UserError: unknown path or name, wrong type, a value twice, a field swept twice or both set and swept, steps
        beside epochs.
    """
    given = [(f"--{f.name}", axis, f.value) for axis, f in axis_flags(flag_values).items() if f.value is not None]
    given += [("--sweep", path, values) for path, values in _listed("sweep", flag_values)]
    fixed = _settings(flag_values)
    taken = {path: f"also set to {value}; set it or compare values of it" for path, (_, value) in fixed.items()}
    axes = _axes(given, taken, flag_values)
    _check_length(_lengths(given, flag_values))
    if "train.epochs" in axes and "train.steps" not in {*axes, *fixed}:
        axes["train.steps"] = ["0"]  # as in `overrides`
    return axes


def choices(axes: Mapping[str, Sequence[str]], flag_values: flags.FlagValues = FLAGS) -> Sweep:
    """The sweeps that `--sweep=NAME` names times every combination of the axes, see `sweeps`.

    Raises:
      UserError: unknown name, as `sweeps` for what a named sweep says, a field that another flag sets or compares.
    """
    taken = {path: f"{origin} sets it" for path, (origin, _) in _settings(flag_values).items()}
    taken |= dict.fromkeys(axes, "another flag compares values of it")
    chosen: list[Sweep] = []
    for path, name in flag_values["sweep"].value or ():
        if path:
            continue
        origin, sweep = f"--sweep={name}", _named(name)
        for field in combinators.paths(sweep):
            if field in taken:
                raise UserError(f"{origin}: this sweep chooses {field}, and {taken[field]}")
            taken[field] = f"{origin} chooses it"
            if field != "hidden_size":
                _field(origin, field, _distinct(c[field] for c in sweep if field in c), flag_values)
        chosen.append(sweep)
    own = combinators.paths(itertools.chain(*chosen))
    for one, other in (("train.steps", "train.epochs"), ("train.epochs", "train.steps")):
        if one in own and other in {*_settings(flag_values), *axes}:
            raise UserError(f"{taken[one].split()[0]}: this sweep chooses {one}, and another flag {other}; give one")
    if "train.epochs" in own and "train.steps" not in own:
        chosen.append([{"train.steps": 0}])  # as in `overrides`
    return combinators.product(*chosen, combinators.grid(axes))


def _named(name: str) -> Sweep:
    """A named sweep. Raises UserError if there is no such one, or nothing in it."""
    if name not in combinators.SWEEPS:
        raise unknown("sweep", name, combinators.SWEEPS)
    try:
        sweep = combinators.chain(combinators.SWEEPS[name]())
        if not sweep:
            raise UserError("this sweep has no variants")
    except UserError as error:
        raise UserError(f"--sweep={name}: {error}") from None
    return sweep


def tuned(flag_values: flags.FlagValues = FLAGS) -> dict[str, list[str]]:
    """Configuration path -> the texts of its values, from `--tune`. Raises UserError as `sweeps` does."""
    fixed, axes = _settings(flag_values), sweeps(flag_values)
    compared = combinators.paths(choices(axes, flag_values))
    taken = {path: f"set by {origin} already; set it or tune it" for path, (origin, _) in fixed.items()}
    taken |= dict.fromkeys(compared, "compared already; compare its values or tune it")
    given = [("--tune", path, values) for path, values in _listed("tune", flag_values)]
    found = _axes(given, taken, flag_values)
    _check_length(_lengths(given, flag_values))
    if "train.epochs" in found and "train.steps" not in {*found, *fixed, *compared}:
        found["train.steps"] = ["0"]  # as in `overrides`
    if flag_values["tune_seeds"].present and not found:
        raise UserError("--tune_seeds: nothing is tuned; name a field and its values by --tune")
    return found


def _lengths(
    given: Iterable[tuple[str, str, Sequence[str]]], flag_values: flags.FlagValues
) -> dict[str, tuple[str, Sequence[str]]]:
    """What `_check_length` needs of (flag, path, values) and of the fields that are set."""
    found: dict[str, tuple[str, Sequence[str]]] = {
        path: (origin, [value]) for path, (origin, value) in _settings(flag_values).items()
    }
    for origin, path, values in given:
        found[config.resolve(path)] = f"{origin}={path}" if origin in ("--sweep", "--tune") else origin, values
    return found


def _listed(name: str, flag_values: flags.FlagValues) -> list[tuple[str, list[str]]]:
    """Path and values of every PATH=V1,V2 of a flag."""
    found = []
    for path, text in flag_values[name].value or ():
        try:
            if path:
                found.append((path, split_values(text)))
        except ValueError as error:
            raise UserError(f"--{name}={path}={text}: {error}") from None
    return found


def _axes(
    given: Iterable[tuple[str, str, list[str]]], taken: Mapping[str, str], flag_values: flags.FlagValues
) -> dict[str, list[str]]:
    """Full path -> values of (flag, path, values); taken: fields that have no room for values, and why."""
    axes: dict[str, list[str]] = {}
    for origin, path, values in given:
        full = _field(origin, path, values, flag_values)
        if full in axes:
            raise UserError(f"{origin}: the values of {path} are given twice; give them in one flag")
        if full in taken:
            raise UserError(f"{origin}: {path} is {taken[full]}")
        axes[full] = values
    return axes


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if not any(value == other and type(value) is type(other) for other in found):
            found.append(value)
    return found


def _field(origin: str, path: str, values: Sequence[str], flag_values: flags.FlagValues) -> str:
    """The full path of a field after checking `values` for it: names, types, no two equal."""
    try:
        full = _resolve(path)
        if full in _RESERVED:
            raise UserError(f"{path} has a flag of its own: use {_RESERVED[full]}")
        for axis, flag in axis_flags(flag_values).items():
            if config.resolve(axis) == full:
                allowed = allowed_values(flag)
                for value in values:
                    if value not in allowed:
                        raise unknown(axis, value, allowed)
        parsed = [config.get(config.override(config.Config(), {full: value}), full) for value in values]
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    for i, value in enumerate(parsed):
        if value in parsed[:i]:
            raise UserError(f"{origin}: {path} has the value {values[i]} twice")
    return full


def axis_flags(flag_values: flags.FlagValues) -> dict[str, flags.Flag]:
    """Axis -> its list flag."""
    found = (flag_values[name] for name in flag_values)
    return {flag.name[:-1]: flag for flag in found if isinstance(flag.parser, Names)}


def allowed_values(flag: flags.Flag) -> tuple[str, ...]:
    """The names that an axis flag allows now."""
    parser: Any = flag.parser
    return tuple(parser.allowed())


def _resolve(path: str) -> str:
    """The full path of a field, or an error that names the nearest one, by its path or by its last part."""
    try:
        return config.resolve(path)
    except UserError:
        paths = [name for name, _, _ in config.fields()]
        by_end = [name for name in paths if name.rpartition(".")[2] == path.rpartition(".")[2]]
        near = by_end or difflib.get_close_matches(path, paths, n=1)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        message = f"unknown configuration field '{path}'{hint} (--helpconfig lists the fields)"
        raise UserError(message) from None


def _dataset_names() -> Iterable[str]:
    from attn_jax import data  # Only help needs the names.

    return data.names()


def command_line(argv: Sequence[str] | None = None) -> str:
    """The command as typed, ready for a shell; the script's path relative to the working directory."""
    words = list(sys.argv if argv is None else argv)
    script = os.path.relpath(words[0])
    return shlex.join(["python", words[0] if script.startswith("..") else script, *words[1:]])


# -- the study -----------------------------------------------------------------------------------------------


def corpora(flag_values: flags.FlagValues = FLAGS) -> "Corpora":
    """Data sets and their encodings, from where the flags say. Raises UserError when one is asked for."""
    from attn_jax import study  # Help must not wait for JAX.

    own = files(flag_values) if "files" in flag_values else None
    manual_dir, data_dir = flag_values["manual_dir"].value, flag_values["data_dir"].value
    return study.Corpora(study.Source(manual_dir, data_dir, own))


def conduct(
    variants: "Callable[[Mapping[str, Any]], Sequence[Config]]",
    corpora: "Corpora",
    *,
    title: str,
    reference: Sequence[Mapping[str, Any]] = (),
    flag_values: flags.FlagValues = FLAGS,
) -> None:
    """Trains what is missing of a study as the flags say, and prints its table and the path of its page.

    variants: the variants with further changes by path, which `--tune` asks for; always as many in the same order.
    reference: published figures, see `study.run`. With `--dry_run` prints what would be done. Raises UserError.
    """
    from attn_jax import forecast, report, study, tuning  # As above.

    given: Any = flag_values
    axes = tuned(flag_values)
    described: Any = tuning.candidates(variants, axes, corpora, given.tune_seeds) if axes else variants({})
    options: dict[str, Any] = {
        "seeds": range(given.seeds),
        "out": given.out,
        "corpora": corpora,
        "runs_per_program": given.runs_per_program,
        "mesh": mesh(flag_values),
    }
    if given.shard is not None:
        for other in (name for name in ("tune", "dry_run") if given[name].value):
            raise UserError(f"--shard={given.shard} and --{other}: give one of them, which are for all of the programs")
    if given.dry_run:
        (forecast.of_tuning if axes else forecast.of_study)(described, **options)
        return
    options |= {
        "title": title,
        "command": command_line(),
        "reference": reference,
        "saving": study.Saving(given.checkpoint_every, given.keep),
        "launcher": launching(flag_values),
        "log_to": given.log_to,
    }
    if axes:
        path = tuning.run(described, **options)
    else:
        shard = None if given.shard is None else study.Shard.parse(given.shard)
        path = study.run(described, shard=shard, **options)
    if path.exists():  # else a part of the study that has no program
        print(report.table_text(path.parent))
        print(path)
