import csv
import gzip
import hashlib
from pathlib import Path

import pytest

from attn_jax.data import reading, sources
from attn_jax.errors import UserError


def test_lines_are_cut_at_newlines_only() -> None:
    # str.splitlines would cut at every one of these.
    text = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\nh"
    assert text.count("\n") == 1
    assert len(text.splitlines()) == 8
    assert reading.lines(text.encode(), "f") == ["a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g", "h"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\nb", ["a", "b"]),
        (b"a\nb\n", ["a", "b"]),
        (b"a\n\n", ["a", ""]),
        (b"", []),
        (b"a  \n b \n", ["a", " b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\n", ["a"]),
        ("a\u00a0\nb\u3000\n".encode(), ["a\u00a0", "b\u3000"]),
        (b"a\t\n", ["a\t"]),
    ],
)
def test_ends_of_lines(data: bytes, expected: list[str]) -> None:
    assert reading.lines(data, "f") == expected


def test_words_are_cut_at_ascii_spaces_only() -> None:
    assert reading.words(" Cours\u00a0!  la\u3000bas\u200b ") == ["Cours\u00a0!", "la\u3000bas\u200b"]


def test_broken_utf8_names_file_and_line() -> None:
    with pytest.raises(UserError, match=r"^dir/x\.txt:3: not valid UTF-8 \(byte 0xe9\)"):
        reading.lines(b"good\ngut \xc3\xa4\ncaf\xe9\n", "dir/x.txt")


def test_ragged_files_name_both_counts() -> None:
    with pytest.raises(UserError, match="a has 2 lines but b has 3"):
        reading.parallel(b"1\n2\n", "a", b"1\n2\n3\n", "b")


def test_empty_line_is_named() -> None:
    with pytest.raises(UserError, match="b:2: empty line"):
        reading.parallel(b"1\n2\n", "a", b"1\n \n", "b")


@pytest.mark.parametrize(("line", "message"), [("a", "1 tab"), ("a\tb\tc", "3 tab"), ("a\t", "column 2 is empty")])
def test_wrong_columns_name_the_line(line: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^t:2: .*{message}"):
        reading.columns(f"x\ty\n{line}\n".encode(), "t", 2, "source<TAB>target")


def test_further_columns_are_left_out_where_allowed() -> None:
    assert reading.columns(b"a\tb\tCC-BY\n", "t", 2, "", more=True) == [["a", "b"]]


def test_line_counts_of_all_published_files(manual_dir: Path) -> None:
    with (manual_dir / "MANIFEST.tsv").open(encoding="utf-8") as file:
        manifest = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    checked = 0
    for row in manifest:
        folder, _, name = row["path"].removesuffix(".gz").partition("/")
        if name in sources.pins().get(folder, {"files": {}})["files"]:
            rows = reading.lines(sources.read_file(manual_dir / row["path"]), row["path"])
            # A last line without a newline is a line, though `wc -l` does not count it.
            assert len(rows) - int(row["lines"]) in (0, 1), row["path"]
            assert all(rows), row["path"]
            checked += 1
    assert checked == sum(len(origin["files"]) for origin in sources.pins().values()) == 290


def test_pins_are_those_of_the_manifest(manual_dir: Path) -> None:
    with (manual_dir / "MANIFEST.tsv").open(encoding="utf-8") as file:
        rows = {row["path"].removesuffix(".gz"): row for row in csv.DictReader(file, delimiter="\t")}
    for folder, origin in sources.pins().items():
        for name, pin in origin["files"].items():
            row = rows[f"{folder}/{name}"]
            expected = (row["source_repo"], row["source_commit"], row["source_path"])
            assert (origin["repository"], origin["commit"], pin["path"]) == expected
            content = sources.read_file(manual_dir / row["path"])
            assert len(content) == int(row["bytes_uncompressed"])
            assert hashlib.sha256(content).hexdigest() == pin["sha256"]


def test_no_break_spaces_survive(manual_dir: Path) -> None:
    rows = reading.lines(gzip.decompress((manual_dir / "anki_fra_eng/fra.txt.gz").read_bytes()), "fra")
    held = [row for row in rows if "\u00a0" in row]
    assert len(held) == 1841
    assert sum(any("\u00a0" in word for word in reading.words(row)) for row in held) == 1841


def test_last_lines_without_newline_are_kept(manual_dir: Path) -> None:
    data = (manual_dir / "semantic_parsing/geo/geo_anonymous_lambda_test.txt").read_bytes()
    assert not data.endswith(b"\n")
    assert len(reading.lines(data, "geo")) == 280


def test_a_column_of_spaces_is_empty() -> None:
    with pytest.raises(UserError, match=r"t\.tsv:2: column 1 is empty"):
        reading.columns(b"a\tb\n \tc\n", "t.tsv", 2, "source<TAB>target")
