"""Data sets of text pairs, by name, and the way from text to numbers."""

from attn_jax.data.datasets import Dataset, Example, Info
from attn_jax.data.loading import load, names
from attn_jax.data.text import BOS, EOS, PAD, UNK, TextCodec, Vocabulary

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "UNK",
    "Dataset",
    "Example",
    "Info",
    "TextCodec",
    "Vocabulary",
    "load",
    "names",
]
