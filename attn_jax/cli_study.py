"""The study that a command line asks for.

An experiment defines its flags at import, see `cli_flags`, says what it compares by itself, and calls `compare`.
"""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn_jax import cli_choices, cli_flags, combinators
from attn_jax.cli_flags import FLAGS
from attn_jax.combinators import Sweep
from attn_jax.errors import UserError

if TYPE_CHECKING:
    from attn_jax.config import Config
    from attn_jax.study import Corpora


def command_line(argv: Sequence[str] | None = None) -> str:
    """The command as typed, ready for a shell; interpreter and script relative to the working directory."""
    script, *words = sys.argv if argv is None else argv

    def below(path: str, elsewhere: str) -> str:
        relative = os.path.relpath(path)
        return elsewhere if relative.startswith("..") else relative

    return shlex.join([below(sys.executable, "python"), below(script, script), *words])


def corpora() -> "Corpora":
    """Data sets and their encodings, from where the flags say.

    Raises UserError on flags that no data set needs, and, when one is asked for, if it is not there.
    """
    from attn_jax import study  # Help must not wait for JAX.

    given: Any = FLAGS
    files = cli_flags.files() if "files" in FLAGS else None
    if files is not None and "parallel_text" not in given.dataset:
        raise UserError(f"--files are for parallel_text alone; {', '.join(given.dataset)}: reads its own")
    if given.manual_dir and given.dataset == ["parallel_text"]:
        raise UserError("--manual_dir is for data sets with files of their own; for parallel_text give --files alone")
    return study.Corpora(study.Source(given.manual_dir, given.data_dir, files))


def _check_effect(variants: "Sequence[Config]") -> None:
    """Raises UserError on a field that is set and can matter to no variant, as it might be without notice."""
    from attn_jax import seq2seq  # As above.

    def idle(variant: "Config", path: str) -> bool:
        seq2seq.check(variant)
        return seq2seq.idle(variant, path)

    for path, flag in cli_choices.set_by().items():
        if variants and all(idle(variant, path) for variant in variants):
            raise UserError(f"{flag}: has no effect on any variant, beside their other fields")


def compare(
    own: Callable[[str], Sweep],
    *,
    title: str,
    dataset: Callable[[str], str] = str,
    reference: Sequence[Mapping[str, Any]] = (),
    check: "Callable[[Config], None] | None" = None,
    left_out: "Callable[[Config], bool] | None" = None,
) -> Path | None:
    """Trains what is missing of a study, prints its table and the path of its page; with `--dry_run` what it would do.

    Args:
      own: what the experiment compares on a name of `--dataset`, as changes to what the data set recommends. A field
        that a flag sets, compares or tunes is left to the flag.
      title: title of the page.
      dataset: a name of `--dataset` -> the full name of the data set.
      reference: published figures, see `study.run`.
      check: raises UserError on a variant that the experiment cannot use.
      left_out: true of combinations that the experiment leaves out, whichever of their fields flags say. Where nothing
        else is left they stay, and are refused for what is wrong with them.

    Returns:
      The folder of the study; None if nothing was trained, or if this is one of the shards of the study.

    Raises:
      UserError: what the flags say does not go together, data or results that cannot be read.
    """
    from attn_jax import forecast, report, study, sweep, tuning  # As above.

    given: Any = FLAGS
    changes, tuned, taken = cli_choices.overrides(), cli_choices.tuned(), cli_choices.chosen()
    chosen = cli_choices.choices(cli_choices.sweeps())
    found = corpora()

    def combinations(name: str) -> Sweep:
        free = combinators.omitting(own(name), taken)
        everything = [{**mine, **choice} for mine in free for choice in chosen]
        if left_out is None:
            return everything
        configured = sweep.variants(found.dataset(dataset(name)), changes, everything)
        kept = [choice for choice, one in zip(everything, configured, strict=True) if not left_out(one)]
        return kept or everything

    def variants(tried: Mapping[str, Any]) -> "list[Config]":
        described = [
            variant
            for name in given.dataset
            for variant in sweep.variants(found.dataset(dataset(name)), {**changes, **tried}, combinations(name))
        ]
        if check is not None:
            for variant in described:
                check(variant)
        made.extend(described)
        return described

    made: list[Config] = []
    described: Any = tuning.candidates(variants, tuned, found, given.tune_seeds) if tuned else variants({})
    _check_effect(made)
    options: dict[str, Any] = {
        "seeds": range(given.seeds),
        "out": given.out,
        "corpora": found,
        "runs_per_program": given.runs_per_program,
        "mesh": cli_flags.mesh(),
        "launcher": cli_flags.launching(),
        "log_to": given.log_to,
    }
    if given.dry_run:
        if given.shard is not None:
            raise UserError(f"--shard={given.shard} and --dry_run: give one of them; a forecast is of all programs")
        (forecast.of_tuning if tuned else forecast.of_study)(described, **options)
        return None
    options |= {
        "title": title,
        "command": command_line(),
        "reference": reference,
        "saving": study.Saving(given.checkpoint_every, given.keep),
        "shard": None if given.shard is None else study.Shard.parse(given.shard),
    }
    path = (tuning.run if tuned else study.run)(described, **options)
    if not path.exists():  # a part of the study that has no program, or tries others than those it reports
        return None
    print(report.table_text(path.parent))
    print(path)
    return None if given.shard is not None else path.parent
