"""The axis legend, and array types for public signatures.

Capital letters name axes, in signatures (`Float[Array, "B S K"]`) and as suffixes of variables (`keys_BSH`):

| axis | meaning |
|---|---|
| R | runs of a program |
| B | examples of a batch |
| S | source positions |
| T | target positions, or decoder steps |
| H | hidden size, or the width that query and keys share |
| K | width of the memory (the encoder's states) |
| Q | width of the query (the decoder's state) |
| E | embedding size |
| N | heads |
| V | vocabulary size |
"""

from jax import Array
from jaxtyping import Bool, Float, Int, Key, PyTree

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Params", "PyTree"]

Params = PyTree[Array]
"""A pure nested dict of parameters."""
