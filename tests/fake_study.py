"""Result files of a study with known numbers, made without training, and what a page of them holds."""

import html.parser
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from attn_jax.config import Config, override, run_id, to_dict

SENTENCES = [
    ("list job use languageid0", "job ( ANS ) , language ( ANS , languageid0 )"),
    ("what job are avail", "job ( ANS )"),
    ("everyth", "job ( ANS )"),
    ("what job in locid0 requir no experi", "job ( ANS ) , loc ( ANS , locid0 ) , \\+ req_exp ( ANS )"),
    ("show <unk> & </script><b>$0</b>", "job ( ANS ) , title ( ANS , titleid0 )"),
    ("job on platformid0 in locid0 that pay num_salary", "job ( ANS ) , loc ( ANS , locid0 )"),
]


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def predictions(pairs: list[tuple[str, str]], wrong: int) -> list[dict[str, Any]]:
    """Of which the first ones are wrong."""
    return [
        {
            "source": source,
            "references": [target],
            "prediction": target if i >= wrong else target + " , job",
            "source_length": len(source.split()),
            "target_length": len(target.split()),
        }
        for i, (source, target) in enumerate(pairs)
    ]


def fake_run(
    out: Path,
    changes: dict[str, Any],
    value: float | None,
    *,
    metric: str = "exact_match",
    stopped: dict[str, Any] | None = None,
    done: bool = True,
    steps: int = 400,
    wrong: int = 1,
    fingerprint: str = "f",
    long: int | None = None,
    signature: str = "exact_match|norm:logic|nrefs:1",
) -> str:
    """Writes one run's result files; `value` is its test value, `wrong` how many predictions differ.

    long: how many of the predictions of a second test split, `test_long`, differ; None: there is no such split.
    """
    config = override(Config(), {"data.dataset": "semantic_parsing/jobs"} | changes)
    name, rng = run_id(config, fingerprint), np.random.default_rng(config.seed)
    folder = out / "runs" / name
    write_json(folder / "config.json", to_dict(config))
    write_json(folder / "data.json", {"name": config.data.dataset, "fingerprint": fingerprint})
    lines: list[dict[str, Any]] = []
    for step in range(20, steps + 1, 20):
        loss = 3 * math.exp(-step / 120) + 0.1 + 0.02 * rng.random()
        lines.append({"step": step, "epoch": step / 25, "split": "train", "loss": loss, "learning_rate": 1e-3})
        if step % 100 == 0:
            dev = {"loss": loss + 0.2, "perplexity": math.exp(loss + 0.2), "token_accuracy": 90.0}
            accuracy = (value or 50.0) * (1 - math.exp(-step / 90))
            lines.append({"step": step, "epoch": step / 25, "split": "dev", **dev, metric: accuracy})
    write_lines(folder / "metrics.jsonl", lines)
    if not done:
        return name
    test = {} if value is None else {metric: value, "token_accuracy": 97.5, "loss": 0.31}
    splits = {"test": test}
    write_lines(folder / "predictions.test.jsonl", predictions(SENTENCES, wrong))
    if long is not None:
        pairs = [(f"{source} {source}", target) for source, target in SENTENCES]
        write_lines(folder / "predictions.test_long.jsonl", predictions(pairs, long))
        splits["test_long"] = {metric: 100 * (1 - long / len(pairs))}
    if config.score.name != "none":
        examples = []
        for source, target in SENTENCES[:5]:
            size = (len(target.split()),) if config.score.name != "multihead" else (2, len(target.split()))
            weights = rng.dirichlet(np.full(len(source.split()), 0.3), size=size)
            example = {"source": source.split(), "target": target.split(), "weights": weights.tolist()}
            examples.append(example)
        write_json(folder / "attention.json", {"examples": examples})
    write_json(
        folder / "result.json",
        {
            "run_id": name,
            "dataset": {
                "name": config.data.dataset,
                "fingerprint": fingerprint,
                "sizes": {"train": 500, "test": 140},
                "notes": ["80 of 140 test lines also occur in train."],
                "metric": metric,
                "citation": "Dong & Lapata (2016)",
                "licence": "MIT",
            },
            "metrics": splits | {"dev": {} if value is None else {metric: value + 1}},
            "signatures": {metric: signature},
            "selected_step": 300,
            "steps": steps,
            "parameters": 123456 if config.score.name == "none" else 234567,
            "stopped": stopped,
            "program": "p-" + config.score.name,
            "versions": {"jax": "0.10.2", "flax": "0.12.8"},
            "device": "cpu (2 cores)",
            "git": "0123abc",
        },
    )
    return name


def fake_program(out: Path, name: str, members: list[str], speed: float) -> None:
    write_json(out / "programs" / name / "program.json", {"members": members})
    timing = {"compile_seconds": 4.2, "train_seconds": 61.0, "steps": 400, "steps_per_second": 6.5}
    timing |= {"target_tokens_per_second": speed, "padding": 0.08, "runs": len(members), "masked_work": 0.0}
    timing |= {"compilations": 31, "cached_compilations": 29, "bytes": 5_000_000 * len(members)}
    write_json(out / "programs" / name / "timing.json", timing)


def decoded(found: dict[str, Any], width: int) -> np.ndarray:
    """The weights [N, T, S] of a map of the page."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    numbers = np.array([digits.index(character) for character in found["weights"]]).reshape(-1, 2) @ [64, 1]
    weights = found["low"] + numbers * (found["high"] - found["low"]) / 4000
    return np.where(numbers == 4095, np.nan, weights).reshape(found["heads"], len(found["target"]), width)


VALUES = {"none": [78.6, 77.1, 80.0], "dot": [88.6, 85.0, 86.4], "general": [85.7, 85.0, 87.1]}


def three_scores(folder: Path) -> Path:
    """Three scores, three seeds."""
    names = []
    for score, values in VALUES.items():
        members = [fake_run(folder, {"score": score, "seed": seed}, value) for seed, value in enumerate(values)]
        fake_program(folder, f"p-{score}", members, {"none": 9000.0, "dot": 8000.0, "general": 7500.0}[score])
        names += members
    figure = {
        "variant": {"score": "dot"},
        "metric": "exact_match",
        "value": 87.1,
        "source": "Dong (2016), table 2",
    }
    study = {
        "titles": ["Scores on JOBS"],
        "commands": ["compare --scores=none,dot"],
        "reference": [figure],
        "runs": names,
    }
    write_json(folder / "study.json", study)
    counts = {word: 10 ** (len(word) % 4) for _, target in SENTENCES for word in target.split()}
    write_json(folder / "data" / "f.json", {"name": "semantic_parsing/jobs", "target_words": counts})
    return folder


class Page(html.parser.HTMLParser):
    """What the page refers to, its figures, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.addresses: list[str] = []
        self.places: list[str] = []
        self.tags: list[str] = []
        self.classes: list[str] = []
        self.words: list[str] = []
        self.figures: dict[str, Any] = {}
        self.maps: dict[str, Any] = {}
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.classes.append(str(values.get("class", "")))
        self.addresses += [str(values[key]) for key in ("src", "href", "action") if key in values]
        self.places += [str(values["data-figure"])] if "data-figure" in values else []
        self._inside = str(values["id"]) if values.get("id") in ("figures", "maps") else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "figures":
            self.figures = json.loads(data)
        elif self._inside == "maps":
            self.maps = json.loads(data)["maps"]
        elif self._inside not in ("script", "style"):
            self.words.append(data)
