"""Gold alignments: the reading rules, and the published files."""

import shutil
from pathlib import Path

import pytest

from attn_jax.data import TextCodec, alignments
from attn_jax.data.alignments import Aligned, Gold
from attn_jax.data.sources import Files
from attn_jax.errors import UserError


def load(name: str, manual_dir: Path) -> Aligned:
    return alignments.load(name, Files(str(manual_dir), manual_dir / "no downloads"))


def test_links_of_a_line() -> None:
    assert alignments.links("0-0 1p2  10-3 ", "f:1") == Gold(
        frozenset({(0, 0), (10, 3)}), frozenset({(0, 0), (1, 2), (10, 3)})
    )
    assert alignments.links("", "f:1") == Gold(frozenset(), frozenset())
    # Sure and possible at once is sure.
    assert alignments.links("1-1 1p1", "f:1").sure == {(1, 1)}
    for wrong in ("0-0 1~2", "1", "-1-2", "1-2-3", "a-b", "1 -2", "١-2", "1-2\t2-3"):
        with pytest.raises(UserError, match=r"^f:7: '.*' is no link: expected i-j \(sure\) or ipj \(possible\)"):
            alignments.links(wrong, "f:7")


def test_links_in_parallel_with_texts() -> None:
    texts = (["a b", "c", "d e f"], ["x", "y z", "w"])
    found = alignments.parallel(b"0-0 1p0\n\n2-0", "gold.txt", *texts)
    assert [sorted(gold.possible) for gold in found] == [[(0, 0), (1, 0)], [], [(2, 0)]]
    assert [len(gold.sure) for gold in found] == [1, 0, 1]
    with pytest.raises(UserError, match=r"gold.txt has 2 lines of links, but there are 3 pairs"):
        alignments.parallel(b"0-0\n0-0\n", "gold.txt", *texts)
    for wrong in (b"\n\n3-0\n", b"\n\n0-1\n"):
        with pytest.raises(UserError, match=r"gold.txt:3: link \d-\d points outside its pair of 3 source and 1 target"):
            alignments.parallel(wrong, "gold.txt", *texts)


def test_swapping_exchanges_the_sides() -> None:
    gold = Gold(frozenset({(0, 3)}), frozenset({(0, 3), (1, 2)}))
    one = Aligned(("fr", "en"), ("a b",), ("w x y z",), (gold,))
    assert one.swapped() == Aligned(
        ("en", "fr"), ("w x y z",), ("a b",), (Gold(frozenset({(3, 0)}), frozenset({(3, 0), (2, 1)})),)
    )
    assert one.swapped().swapped() == one


def test_alibi(manual_dir: Path) -> None:
    found = load("alibi", manual_dir)
    assert found.languages == ("fr", "en")
    assert len(found.sources) == len(found.targets) == len(found.links) == 522
    assert sum(len(gold.sure) for gold in found.links) == 8452
    assert sum(len(gold.possible - gold.sure) for gold in found.links) == 14147
    assert all(gold.sure <= gold.possible for gold in found.links)
    # The stories in turn: 52, 204, 68, 92 and 106 pairs.
    assert found.sources[52 + 204 + 68 + 92] == "Vision de Charles XI"
    assert found.targets[52 + 204 + 68 + 92] == "THE VISION OF CHARLES XI"
    last = found.links[52 + 204 + 68 + 92]
    assert (last.sure, last.possible - last.sure) == ({(1, 2), (2, 3), (3, 4)}, {(0, 0), (0, 1)})
    assert found.notes == ()


def test_bicici(manual_dir: Path) -> None:
    found = load("bicici", manual_dir)
    assert found.languages == ("de", "en")
    assert len(found.sources) == len(found.targets) == len(found.links) == 100
    assert all(gold.sure == gold.possible for gold in found.links)
    assert found.sources[0].startswith("herr präsident , herr kommissar !"), "the byte order mark is no part of a word"
    assert found.notes == ("link 12-16 of pair 63 points outside the pair and is left out",)
    # The other file of the same links, which nothing here reads.
    rows = (manual_dir / "bicici_de_en_align/de-en.ref.wa").read_text(encoding="utf-8").split("\n")
    listed = {(int(k) - 1, int(i), int(j)) for k, i, j, _ in (row.split() for row in rows if row)}
    assert len(listed) == 1233
    assert {(n, *link) for n, gold in enumerate(found.links) for link in gold.sure} == listed - {(62, 12, 16)}


def test_files_that_were_changed_or_are_missing(manual_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bicici_de_en_align"
    shutil.copytree(manual_dir / "bicici_de_en_align", folder)
    for path in (tmp_path, folder, *folder.iterdir()):
        path.chmod(0o755)
    text = (folder / "de-en.wa").read_text(encoding="utf-8")
    (folder / "de-en.wa").write_text(text.replace("0-0 1-1 2-2 4-3", "0-0 1-1 2-2 4-99", 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"de-en.wa:1: link 4-99 points outside its pair of 20 source and 17 target"):
        load("bicici", tmp_path)
    (folder / "de-en.wa").write_text(text.replace("11-6 12-16", "11-6 12-6", 1), encoding="utf-8")
    assert load("bicici", tmp_path).notes == ("bicici_de_en_align/de-en.wa differs from the published file",)
    (folder / "test.en").write_text("one\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"test.de has 100 lines but .*test.en has 1: "):
        load("bicici", tmp_path)
    with pytest.raises(UserError, match="unknown gold alignment 'alib': did you mean 'alibi'"):
        load("alib", tmp_path)


def test_the_words_of_symbols() -> None:
    text = " ab  c déf "
    train = ["ab ab c déf ab abc déf dé"]
    pieces = TextCodec.train(train, "bpe", bpe_size=16)
    for unit in ("characters", "bpe", "words"):
        side = pieces if unit == "bpe" else TextCodec.train(train, unit)
        tokens, numbers = side.tokens(text), side.word_numbers(text)
        assert side.word_numbers("") == []
        words = [[t for t, n in zip(tokens, numbers, strict=True) if n == k] for k in range(3)]
        assert ["".join(word).strip("▁") for word in words] == ["ab", "c", "déf"]
        spaces = [t for t, n in zip(tokens, numbers, strict=True) if n == -1]
        # A piece that is a space begins a word; after the last word it belongs to none.
        assert spaces == {"characters": [" "] * 5, "bpe": ["▁"], "words": []}[unit]
        assert unit != "bpe" or (numbers == [*sorted(numbers[:-1]), -1] and words[1][0] == "▁")
    assert len(pieces.tokens("abc déf")) < 7, "some piece holds more than a character"
    # Characters that the pieces do not know are of the word that they stand in.
    assert pieces.word_numbers("ab x☃ c")[-1] == 2
    with pytest.raises(UserError, match=r"'a▁b': its words cannot be told from its pieces"):
        pieces.word_numbers("a▁b")
