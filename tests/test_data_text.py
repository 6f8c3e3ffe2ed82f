import gzip
import io
import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from attn_jax.data import BOS, EOS, PAD, UNK, TextCodec, Vocabulary
from attn_jax.errors import UserError


def codec(texts: list[str], unit: str, **options: int | bool) -> TextCodec:
    return TextCodec.train(texts, unit, **({"min_count": 1, "bpe_size": 8000, "lowercase": False} | options))


def again(side: TextCodec) -> TextCodec:
    return TextCodec.from_json(json.loads(json.dumps(side.to_json())))


def test_vocabulary_order_is_frequency_then_text() -> None:
    vocabulary = Vocabulary.train([["b", "a", "c"], ["c", "a", "d"], ["c", "é"]], 1)
    assert vocabulary.symbols == ("<pad>", "<s>", "</s>", "<unk>", "c", "a", "b", "d", "é")
    assert (PAD, BOS, EOS, UNK) == (0, 1, 2, 3)
    assert [vocabulary.id(s) for s in ["c", "a", "x"]] == [4, 5, UNK]
    assert ("a" in vocabulary, "x" in vocabulary, len(vocabulary)) == (True, False, 9)
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


def test_min_count() -> None:
    assert codec(["a a b", "b c"], "words", min_count=2).encode("a b c") == [4, 5, UNK]


def test_special_symbols_in_text_are_ordinary_unknown_words() -> None:
    side = codec(["x </s> <pad> <s> <unk> y"], "words")
    assert side.encode("x </s> <pad> <s> <unk> y") == [4, UNK, UNK, UNK, UNK, 5]


def test_decode_stops_at_the_end_and_drops_padding() -> None:
    side = codec(["a b"], "words")
    assert side.decode([BOS, 4, UNK, 5, EOS, 4, PAD]) == "a <unk> b"
    assert side.decode([4, PAD, 5]) == "a b"
    with pytest.raises(IndexError, match="6"):
        side.decode([6])


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_characters_round_trip(text: str) -> None:
    side = codec([text], "characters")
    assert side.decode(side.encode(text)) == text
    assert len(side.encode(text)) == len(text)


def test_decomposed_and_composed_text_stay_different() -> None:
    composed, decomposed = "é가", "e\u0301\u1100\u1161"
    side = codec([composed, decomposed], "characters")
    assert side.decode(side.encode(composed)) == composed
    assert side.decode(side.encode(decomposed)) == decomposed


tags = st.lists(st.text(st.characters(exclude_characters=";\t", exclude_categories=["Cs"]), min_size=1), min_size=1)


@given(st.text(st.characters(exclude_characters="\t", exclude_categories=["Cs"])), tags)
def test_tagged_characters_round_trip(lemma: str, tags: list[str]) -> None:
    text = lemma + "\t" + ";".join(tags)
    side = codec([text], "tagged_characters")
    assert side.decode(side.encode(text)) == text
    assert len(side.encode(text)) == len(lemma) + len(tags)


def test_a_tag_is_not_the_letter_of_its_name() -> None:
    side = codec(["VN\tV;N;PST"], "tagged_characters")
    assert side.tokens("VN\tV;N;PST") == ["V", "N", "+V", "+N", "+PST"]
    assert len(set(side.encode("VN\tV;N;PST"))) == 5


def test_lowercase_leaves_tags_alone() -> None:
    side = codec(["Aal\tN;ACC"], "tagged_characters", lowercase=True)
    assert side.tokens("AAL\tN;ACC") == ["a", "a", "l", "+N", "+ACC"]
    assert codec(["Ein Haus"], "words", lowercase=True).encode("EIN haus") == [4, 5]
    assert codec(["A\tB"], "characters", lowercase=True).tokens("A\tB") == ["a", "\t", "b"]


BPE_TEXT = ["le  chat dort\u00a0!", "le chien court\u00a0?", " trois  espaces", "공부 하다", "tiếng Việt"] * 4


@pytest.mark.parametrize("text", BPE_TEXT[:5])
def test_bpe_round_trip_is_exact(text: str) -> None:
    side = codec(BPE_TEXT, "bpe", bpe_size=60)
    for one in (side, again(side)):
        assert one.decode(one.encode(text)) == text
        assert UNK not in one.encode(text)
    assert len(side.vocabulary) == 60


def test_bpe_numbers_are_sentencepieces_own() -> None:
    side = codec(BPE_TEXT, "bpe", bpe_size=60)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(BPE_TEXT),
        model_writer=written,
        model_type="bpe",
        vocab_size=60,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=3,
    )
    own = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    for text in BPE_TEXT[:5]:
        assert side.encode(text) == own.encode(text)


def test_bpe_knows_training_characters_only_and_is_deterministic() -> None:
    side = codec(BPE_TEXT, "bpe", bpe_size=60)
    assert UNK in side.encode("zebra")
    assert side.to_json() == codec(BPE_TEXT, "bpe", bpe_size=60).to_json()


def test_special_symbols_in_bpe_text_are_text() -> None:
    side = codec(["a < b / s > p d", "</s> <s>", "<pad> <unk>"] * 3, "bpe", bpe_size=20)
    numbers = side.encode("</s> <pad>")
    assert EOS not in numbers
    assert PAD not in numbers
    assert side.decode(numbers) == "</s> <pad>"


@pytest.mark.parametrize("size", [5, 5000])
def test_impossible_bpe_size_tells_a_possible_one(size: int) -> None:
    with pytest.raises(
        UserError, match=rf"data\.bpe_size={size}: the training text allows at (least|most) \d+"
    ) as error:
        codec(BPE_TEXT, "bpe", bpe_size=size)
    bound = int(str(error.value).split()[-1])
    assert len(codec(BPE_TEXT, "bpe", bpe_size=bound).vocabulary) == bound
    with pytest.raises(UserError):
        codec(BPE_TEXT, "bpe", bpe_size=bound - 1 if size < bound else bound + 1)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_bpe_size_leaves_room_for_the_special_symbols(size: int) -> None:
    with pytest.raises(UserError) as error:
        codec(BPE_TEXT, "bpe", bpe_size=size)
    assert str(error.value) == f"data.bpe_size={size}: must be above 4, the number of special symbols"


def test_unknown_unit_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'characters'"):
        codec(["a"], "character")


PUBLISHED = {
    "ko": ("sigmorphon2020_g2p/train/kor_train.tsv", 3600),
    "vi": ("sigmorphon2020_g2p/train/vie_train.tsv", 3600),
    "fr": ("multi30k/raw/val.fr.gz", 1014),
    "cs": ("multi30k/raw/val.cs.gz", 1014),
    "ja": ("small_parallel_enja/dev.ja.gz", 500),
}


@pytest.mark.parametrize("unit", ["words", "characters", "bpe"])
@pytest.mark.parametrize("language", PUBLISHED)
def test_published_text_round_trips(manual_dir: Path, language: str, unit: str) -> None:
    path, count = PUBLISHED[language]
    data = (manual_dir / path).read_bytes()
    rows = (gzip.decompress(data) if path.endswith(".gz") else data).decode().split("\n")[:count]
    texts = [column.rstrip(" ") for row in rows for column in row.split("\t")]
    side = again(codec(texts, unit, bpe_size=2500))
    for text in texts:
        expected = " ".join(w for w in text.split(" ") if w) if unit == "words" else text
        assert side.decode(side.encode(text)) == expected
        assert UNK not in side.encode(text)
