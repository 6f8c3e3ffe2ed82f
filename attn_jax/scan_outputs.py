"""Scans without outputs that are there already.

The transposed scan that JAX makes of a loop stacks a cotangent for every input of a step, each in memory of its own:
where several inputs are added, the same numbers several times, and what a step only passes on once more.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Var, jaxpr_as_fun
from jax.extend.core.primitives import scan_p


def without_copies(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, whose scans stack no output twice and none that is one of their stacked inputs.

    Scans inside of other calls or loops stay as they are.
    """
    traced, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    flat = jaxpr_as_fun(_lean(traced))(*jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shape), flat)


def _lean(traced: ClosedJaxpr) -> ClosedJaxpr:
    instead: dict[Any, Any] = {}

    def now(atom: Any) -> Any:
        return instead.get(atom, atom) if isinstance(atom, Var) else atom

    equations = []
    for equation in traced.jaxpr.eqns:
        equation = equation.replace(invars=[now(atom) for atom in equation.invars])
        if equation.primitive is scan_p:
            equation, found = _lean_scan(equation)
            instead |= found
        equations.append(equation)
    outputs = [now(atom) for atom in traced.jaxpr.outvars]
    return traced.replace(jaxpr=traced.jaxpr.replace(eqns=equations, outvars=outputs))


def _lean_scan(equation: JaxprEqn) -> tuple[JaxprEqn, dict[Any, Any]]:
    """The scan with the outputs that it needs, and what stands for each of the others."""
    body, carries = equation.params["jaxpr"], equation.params["num_carry"]
    first = equation.params["num_consts"] + carries
    # What is the same in every step is the same when stacked; a step's input stacked is the scan's.
    known = dict(zip(body.jaxpr.invars[first:], equation.invars[first:], strict=True))
    inner, outer = list(body.jaxpr.outvars[:carries]), list(equation.outvars[:carries])
    instead: dict[Any, Any] = {}
    for made, stacked in zip(body.jaxpr.outvars[carries:], equation.outvars[carries:], strict=True):
        if isinstance(made, Var) and made in known:
            instead[stacked] = known[made]
            continue
        inner.append(made)
        outer.append(stacked)
        if isinstance(made, Var):
            known[made] = stacked
    about = body.jaxpr.debug_info._replace(result_paths=None)
    lean = body.replace(jaxpr=body.jaxpr.replace(outvars=inner, debug_info=about))
    return equation.replace(outvars=outer, params={**equation.params, "jaxpr": lean}), instead
