"""A cell over a sequence."""

import jax
import jax.numpy as jnp
from flax import nnx

from attn_jax import products
from attn_jax.cells import Carry, Cell
from attn_jax.shapes import Array, Bool, Float


def recur(
    cell: Cell,
    projected_TBG: Float[Array, "T B G"],
    carry: Carry,
    *,
    mask_BT: Bool[Array, "B T"] | None = None,
    dropout_BH: Float[Array, "B H"] | None = None,
    reverse: bool = False,
) -> tuple[Float[Array, "T B H"], Carry]:
    """All states h of a cell over its projected inputs, and the last carry.

    Time comes first: a step reads one block of memory.

    mask_BT: false on padding; there the carry is frozen and the output is zero. So `reverse` reads the sequence from
        its true end: padding comes first and leaves the initial carry as it is. Outputs stay in source order.
    dropout_BH: one mask on the recurrent state for all steps (Gal and Ghahramani 2016).
    """
    graph, parameters = nnx.split(cell)

    def step(operands: dict, carry: Carry, x: tuple[Array, Array | None]) -> tuple[Carry, Array]:
        projected_BG, mask_B1 = x
        new = nnx.merge(graph, operands["cell"]).step(carry, projected_BG, operands["dropout"])
        if mask_B1 is None:
            return new, new[0]
        frozen = jax.tree.map(lambda n, o: jnp.where(mask_B1, n, o), new, carry)
        return frozen, jnp.where(mask_B1, new[0], 0)

    mask_TB1 = None if mask_BT is None else mask_BT.T[:, :, None]
    operands = {"cell": parameters, "dropout": dropout_BH}
    inputs = (projected_TBG, mask_TB1)
    carry, outputs_TBH = products.scan(step, reverse, operands, carry, inputs, cell.keep_every, cell.unroll)
    return outputs_TBH, carry
