"""Text to symbol numbers and back: vocabularies, and one codec for each side of a data set."""

import base64
import binascii
import collections
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from attn_jax.data.reading import words
from attn_jax.errors import UserError, unknown

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")


class Vocabulary:
    """Symbols and their numbers: 0 to 3 are `<pad>`, `<s>`, `</s>`, `<unk>`, then the given symbols in order.

    Text that happens to read "</s>" is not the special symbol: looking it up gives `<unk>`, unless it is a
    symbol of its own.
    """

    def __init__(self, symbols: Iterable[str]):
        self.symbols = (*SPECIALS, *symbols)
        self._ids = {symbol: number for number, symbol in enumerate(self.symbols) if number > UNK}
        if len(self._ids) != len(self.symbols) - len(SPECIALS):
            repeated = next(s for s, n in collections.Counter(self.symbols[4:]).items() if n > 1)
            raise UserError(f"vocabulary: the symbol {repeated!r} occurs twice")

    @classmethod
    def train(cls, sequences: Iterable[Iterable[str]], min_count: int = 1) -> "Vocabulary":
        """The symbols seen at least `min_count` times, the most frequent first, ties in code point order."""
        counts: collections.Counter[str] = collections.Counter()
        for sequence in sequences:
            counts.update(sequence)
        kept = [symbol for symbol, count in counts.items() if count >= min_count and symbol not in SPECIALS]
        return cls(sorted(kept, key=lambda symbol: (-counts[symbol], symbol)))

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.symbols == other.symbols

    def __hash__(self) -> int:
        return hash(self.symbols)

    def id(self, symbol: str) -> int:
        """The number of a symbol; `UNK` for one that is not in the vocabulary."""
        return self._ids.get(symbol, UNK)

    def symbol(self, number: int) -> str:
        """The symbol of a number. Raises IndexError on one outside the vocabulary."""
        if not 0 <= number < len(self.symbols):
            raise IndexError(f"symbol number {number} is outside a vocabulary of {len(self.symbols)}")
        return self.symbols[number]

    def to_json(self) -> list[str]:
        """The symbols after the specials."""
        return list(self.symbols[len(SPECIALS) :])

    @classmethod
    def from_json(cls, value: Sequence[str]) -> "Vocabulary":
        """The inverse of `to_json`."""
        return cls(value)


class Unit(Protocol):
    """A way of cutting text into symbols; `join(split(text)) == text` but for what the unit says."""

    def split(self, text: str) -> list[str]:
        """The symbols of a text."""

    def join(self, symbols: Sequence[str]) -> str:
        """The text of symbols."""


class Words:
    """Words between ASCII spaces; runs of spaces become one."""

    def split(self, text: str) -> list[str]:
        """The words."""
        return words(text)

    def join(self, symbols: Sequence[str]) -> str:
        """The words with one space between them."""
        return " ".join(symbols)


class Characters:
    """Code points, spaces included: Hangul, IPA and combining marks come back as they were."""

    def split(self, text: str) -> list[str]:
        """The code points."""
        return list(text)

    def join(self, symbols: Sequence[str]) -> str:
        """The code points in a row."""
        return "".join(symbols)


class TaggedCharacters:
    """A lemma's characters, then each tag as one symbol: "gehen<TAB>V;PST" is g, e, h, e, n, +V, +PST.

    The plus keeps a tag of one letter apart from that letter.
    """

    def split(self, text: str) -> list[str]:
        """The characters and the tags."""
        lemma, _, tags = text.partition("\t")
        return [*lemma, *(f"+{tag}" for tag in tags.split(";") if tag)]

    def join(self, symbols: Sequence[str]) -> str:
        """The lemma, a tab, the tags."""
        tags = [symbol[1:] for symbol in symbols if len(symbol) > 1 and symbol[0] == "+"]
        lemma = "".join(symbol for symbol in symbols if len(symbol) == 1 or symbol[0] != "+")
        return "\t".join([lemma, ";".join(tags)]) if tags else lemma


class Pieces:
    """BPE pieces of a sentencepiece model, not normalised (Sennrich et al. 2016; Kudo and Richardson 2018).

    Text of characters seen in training comes back byte for byte, repeated and no-break spaces too; only
    U+2581, which sentencepiece writes for a space, becomes one.
    """

    def __init__(self, model: bytes):
        import sentencepiece

        self.model = model
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "Pieces":
        """Learns the merges. Raises UserError when the text does not allow that many pieces."""
        import sentencepiece

        if size <= len(SPECIALS):
            raise UserError(f"data.bpe_size={size}: must be above {len(SPECIALS)}, the number of special symbols")
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=written,
                model_type="bpe",
                vocab_size=size,
                character_coverage=1.0,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                max_sentence_length=1 << 20,
                num_threads=1,
                pad_id=PAD,
                bos_id=BOS,
                eos_id=EOS,
                unk_id=UNK,
                minloglevel=3,
            )
        except RuntimeError as error:
            message = str(error)
            most = re.search(r"<= *(\d+)", message)
            least = re.search(r"smaller than required_chars[^\d]*\d+ vs (\d+)", message)
            bound = f"at most {most[1]}" if most else f"at least {least[1]}" if least else " ".join(message.split())
            raise UserError(f"data.bpe_size={size}: the training text allows {bound}") from None
        return cls(written.getvalue())

    def symbols(self) -> list[str]:
        """All pieces after the specials."""
        return [self.processor.id_to_piece(number) for number in range(len(SPECIALS), len(self.processor))]

    def split(self, text: str) -> list[str]:
        """The pieces; characters not seen in training come out as pieces that no vocabulary holds."""
        return self.processor.encode(text, out_type=str)

    def join(self, symbols: Sequence[str]) -> str:
        """The text of the pieces."""
        text = "".join(symbols).replace("▁", " ")
        return text.removeprefix(" ")


UNITS = ("words", "characters", "bpe", "tagged_characters")


class TextCodec:
    """One side of a data set: its unit, its vocabulary, and the way there and back.

    Unknown symbols are numbered `UNK`; beginning and end of sentence are the caller's to add.
    """

    def __init__(self, unit: str, vocabulary: Vocabulary, *, lowercase: bool = False, model: bytes | None = None):
        self.unit = unit
        self.vocabulary = vocabulary
        self.lowercase = lowercase
        self._unit = _unit(unit, model)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        unit: str,
        *,
        min_count: int = 1,
        bpe_size: int = 8000,
        lowercase: bool = False,
    ) -> "TextCodec":
        """The codec of training texts.

        Args:
            texts: the training side's texts; nothing else, or the vocabulary would have seen the test set.
            unit: words, characters, bpe or tagged_characters.
            min_count: symbols seen less often are unknown; BPE, which has no rare pieces to drop, ignores it.
            bpe_size: pieces of a BPE vocabulary, the four specials included.
            lowercase: lower-case before everything else; tags of tagged_characters stay as they are.

        Raises:
            UserError: on an unknown unit, and on a `bpe_size` that the text does not allow.
        """
        texts = [_lower(text, unit) if lowercase else text for text in texts]
        if unit == "bpe":
            pieces = Pieces.train(texts, bpe_size)
            return cls(unit, Vocabulary(pieces.symbols()), lowercase=lowercase, model=pieces.model)
        vocabulary = Vocabulary.train(map(_unit(unit, None).split, texts), min_count)
        return cls(unit, vocabulary, lowercase=lowercase)

    def tokens(self, text: str) -> list[str]:
        """The symbols of a text, as text; unknown ones as they are written."""
        return self._unit.split(_lower(text, self.unit) if self.lowercase else text)

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's symbols, without beginning and end of sentence."""
        return [self.vocabulary.id(token) for token in self.tokens(text)]

    def word_numbers(self, text: str) -> list[int]:
        """For every symbol of a text the word that it is a part of, counted from 0; -1 for a space.

        Words are what stands between ASCII spaces; a BPE piece that is only a space begins the word after it. Raises
        UserError where the symbols do not show words.
        """
        if self.unit == "tagged_characters":
            raise UserError("tagged_characters: a lemma and its tags are no words of a sentence")
        if self.unit == "words":
            return list(range(len(self.tokens(text))))
        numbers, word, inside = [], -1, False
        for symbol in self.tokens(text):
            own = -1
            for character in symbol.replace("▁", " ") if self.unit == "bpe" else symbol:
                word += character != " " and not inside
                inside = character != " "
                own = word if inside else own
            numbers.append(own)
        if self.unit == "bpe":
            for place in range(len(numbers) - 2, -1, -1):
                if numbers[place] == -1:
                    numbers[place] = numbers[place + 1]
        if {*numbers} - {-1} != {*range(len(words(text)))}:
            raise UserError(f"'{text}': its words cannot be told from its pieces; U+2581 stands for a space there")
        return numbers

    def decode(self, ids: Iterable[int]) -> str:
        """The text before the first end of sentence, without padding and beginnings; `<unk>` is shown."""
        symbols = []
        for number in ids:
            if number == EOS:
                break
            if number not in (PAD, BOS):
                symbols.append(self.vocabulary.symbol(int(number)))
        return self.join(symbols)

    def join(self, symbols: Sequence[str]) -> str:
        """The text of symbols, none of them special."""
        return self._unit.join(symbols)

    def to_json(self) -> dict[str, Any]:
        """A JSON value; a BPE model is inside, in base64."""
        value: dict[str, Any] = {"unit": self.unit, "lowercase": self.lowercase}
        if isinstance(self._unit, Pieces):
            return value | {"model": base64.b64encode(self._unit.model).decode("ascii")}
        return value | {"symbols": self.vocabulary.to_json()}

    @classmethod
    def from_json(cls, value: Any) -> "TextCodec":
        """The inverse of `to_json`. Raises UserError on anything else."""
        value = value if isinstance(value, Mapping) else {}
        unit, lowercase = value.get("unit"), value.get("lowercase")
        if not isinstance(lowercase, bool):
            raise UserError("vocabulary: expected 'lowercase', true or false")
        if unit not in UNITS:
            raise unknown("unit", str(unit), UNITS)
        if unit == "bpe":
            try:
                model = base64.b64decode(value.get("model", None), validate=True)
                symbols = Pieces(model).symbols()
            except (TypeError, binascii.Error, ValueError, RuntimeError):
                raise UserError("vocabulary: expected 'model', a sentencepiece model in base64") from None
            return cls(unit, Vocabulary(symbols), lowercase=lowercase, model=model)
        symbols = value.get("symbols")
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
            raise UserError("vocabulary: expected 'symbols', a list of texts")
        return cls(unit, Vocabulary.from_json(symbols), lowercase=lowercase)


def _unit(name: str, model: bytes | None) -> Unit:
    table: dict[str, Unit] = {
        "words": Words(),
        "characters": Characters(),
        "tagged_characters": TaggedCharacters(),
    }
    if name == "bpe" and model is not None:
        return Pieces(model)
    if name not in table:
        raise unknown("unit", name, UNITS)
    return table[name]


def _lower(text: str, unit: str) -> str:
    if unit != "tagged_characters":
        return text.lower()
    lemma, tab, tags = text.partition("\t")
    return lemma.lower() + tab + tags
