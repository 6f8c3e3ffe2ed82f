"""Writes tests/arrays/statsmodels.json: analyses of variance and corrected p values, for tests/test_effects.py.

statsmodels is no dependency of anything else here. To write the file again:

    python -m venv /tmp/statsmodels && /tmp/statsmodels/bin/pip install statsmodels
    /tmp/statsmodels/bin/python scripts/statsmodels_tables.py

The file holds the versions, p values with their Holm correction, and grids: axes with their levels, the values as
[levels, seed, value], and the table of type II, {term: [sum of squares, df, F, p]}. In the grid with a gap the table
has the main effects alone, each from the comparison of two additive models with the residual of all cells.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import statsmodels
from scipy.stats import f as f_distribution
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests


def draw(sizes: dict[str, int], seeds: int, missing: list[tuple[int, ...]], rng: np.random.Generator) -> pd.DataFrame:
    """Values with effects of everything."""
    effects = rng.normal(size=tuple(sizes.values()))
    blocks = rng.normal(size=seeds)
    rows = [
        [*cell, seed, round(float(80 + effects[cell] + 0.3 * cell[0] + blocks[seed] + rng.normal()), 3)]
        for cell in itertools.product(*map(range, sizes.values()))
        if cell not in missing
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=[*sizes, "seed", "value"])


def table(frame: pd.DataFrame, axes: list[str], gaps: bool) -> dict[str, list[float | None]]:
    """Type II table. With gaps only the main effects."""
    if not gaps:
        found = anova_lm(ols(f"value ~ {' * '.join(f'C({a})' for a in axes)} + C(seed)", frame).fit(), typ=2)
        return {
            name.replace("C(", "").replace(")", "").replace(":", " x "): [
                None if np.isnan(value) else float(value) for value in row
            ]
            for name, row in zip(found.index, found.to_numpy(), strict=True)
        }
    cells = ols(f"value ~ C({' * 10 + '.join(axes)}) + C(seed)", frame).fit()
    additive = ols(f"value ~ {' + '.join(f'C({a})' for a in axes)} + C(seed)", frame).fit()
    rows = {}
    for axis in axes:
        others = " + ".join(f"C({a})" for a in axes if a != axis)
        compared = anova_lm(ols(f"value ~ {others} + C(seed)", frame).fit(), additive, cells)
        # F has the residual of the largest model below the line, but the p value beside it takes another model's df.
        squares, df, f = (float(compared[name][1]) for name in ("ss_diff", "df_diff", "F"))
        rows[axis] = [squares, df, f, float(f_distribution.sf(f, df, cells.df_resid))]
    return rows


def main() -> None:
    """Writes the file."""
    rng = np.random.default_rng(0)
    grids = []
    for sizes, seeds, missing in [
        ({"a": 3, "b": 2}, 4, []),
        ({"a": 2, "b": 3, "c": 2}, 3, []),
        ({"a": 3, "b": 3}, 5, [(0, 2)]),
    ]:
        frame = draw(sizes, seeds, missing, rng)
        values = [[list(row[: len(sizes)]), row[-2], row[-1]] for row in frame.itertuples(index=False)]
        found = table(frame, list(sizes), bool(missing))
        grids.append({"axes": sizes, "missing": missing, "values": values, "table": found})
    p_values = (rng.random(12) ** 3).tolist()
    holm = {"p": p_values, "corrected": multipletests(p_values, method="holm")[1].tolist()}
    versions = {"statsmodels": statsmodels.__version__, "numpy": np.__version__, "pandas": pd.__version__}
    path = Path(__file__).resolve().parent.parent / "tests" / "arrays" / "statsmodels.json"
    path.write_text(json.dumps({"versions": versions, "holm": holm, "grids": grids}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
