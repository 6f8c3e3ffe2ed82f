"""The flags that every study shares, and what those say that set no field of the configuration."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from attn_jax import combinators, processes
from attn_jax.cli_parsers import Assignment, Datasets, Names, Place, SweepText, Text, split_values
from attn_jax.errors import UserError

if TYPE_CHECKING:
    from attn_jax.devices import MeshShape
    from attn_jax.study import Local, Resources

FLAGS = flags.FLAGS


def define(
    axes: Mapping[str, Callable[[], Iterable[str]]],
    *,
    dataset: str | None = None,
    datasets: Sequence[str] = (),
    seeds: int = 3,
    runs_per_program: int = 0,
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
    flags.DEFINE(Place("DIR"), "manual_dir", None, text, flag_values=fv)
    serializer: flags.ArgumentSerializer[tuple[str, str]] = flags.ArgumentSerializer()
    if not datasets or "parallel_text" in datasets:
        text = "a split of parallel_text: a pair of line-aligned files, or a TSV file; may be repeated"
        flags.DEFINE_multi(Assignment("SPLIT=FILE,FILE"), serializer, "files", None, text, flag_values=fv)
    text = "where prepared data is kept (default: $ATTN_JAX_DATA or ~/.cache/attn_jax/data)"
    flags.DEFINE(Place("DIR"), "data_dir", None, text, flag_values=fv)
    text = "output directory; finished runs in it are kept"
    flags.DEFINE(Place("DIR"), "out", None, text, required=True, flag_values=fv)
    text = "number of seeds: every variant is trained with the seeds 0 to N-1"
    flags.DEFINE_integer("seeds", seeds, text, 1, flag_values=fv)
    for axis, allowed in axes.items():
        text = f"compare these values of {axis}"
        flags.DEFINE(Names(allowed), f"{axis}s", None, text, flag_values=fv)
    flags.DEFINE_integer("steps", None, "optimiser steps, instead of epochs", 1, flag_values=fv)
    flags.DEFINE_float("epochs", None, "passes over the training data, instead of steps", 0, flag_values=fv)
    flags.DEFINE_integer("batch_size", None, "sentence pairs a step", 1, flag_values=fv)
    text = "width of embeddings, decoder and memory, or of a transformer with feed-forward layers of 4 times that"
    flags.DEFINE_integer("hidden_size", None, text, 1, flag_values=fv)
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
    text = "most runs that are trained together as one program; 0: by their size and the device"
    flags.DEFINE_integer("runs_per_program", runs_per_program, text, 0, flag_values=fv)
    define_load(fv)
    text = "steps between checkpoints, from which the same command goes on; 0: about once a minute"
    flags.DEFINE_integer("checkpoint_every", 0, text, 0, flag_values=fv)
    flags.DEFINE_integer("keep", 2, "checkpoints of a program that are kept", 1, flag_values=fv)
    define_devices(fv)
    define_launching(fv)


def define_load(flag_values: flags.FlagValues = FLAGS) -> None:
    """Define `--load`, which `run` obeys before anything else: help and checks know what the files register."""
    text = "Python file that registers scores, cells or other parts of your own; may be repeated"
    flags.DEFINE_multi(Place("FILE"), flags.ArgumentSerializer(), "load", None, text, flag_values=flag_values)


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
            splits[split] = [os.path.expanduser(path) for path in split_values(text)]
        except ValueError as error:
            raise UserError(f"--files={split}={text}: {error}") from None
    return splits


def axis_flags(flag_values: flags.FlagValues) -> dict[str, flags.Flag]:
    """Axis -> its list flag."""
    found = (flag_values[name] for name in flag_values)
    return {flag.name[:-1]: flag for flag in found if isinstance(flag.parser, Names)}


def allowed_values(flag: flags.Flag) -> tuple[str, ...]:
    """The names that an axis flag allows now."""
    parser: Any = flag.parser
    return tuple(parser.allowed())


def _dataset_names() -> Iterable[str]:
    from attn_jax import data  # Only help needs the names.

    return data.names()
