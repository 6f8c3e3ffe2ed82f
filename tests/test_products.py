"""`products.scan` against `lax.scan`."""

import concurrent.futures
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from attn_jax import products

BATCH, SIZE, STEPS = 2, 3, 5


def problem():
    """Operands, carry and inputs. `w` is used in two products and raw, `u` in one product, `keys` have a batch axis."""
    rng = np.random.default_rng(0)
    operands = {
        "w": rng.normal(size=(SIZE, SIZE)),
        "u": rng.normal(size=(4, SIZE)),
        "keys": rng.normal(size=(BATCH, 6, SIZE)),
        "scale": rng.normal(size=SIZE),
        "unused": rng.normal(size=2),
        "column": np.array([2, 0, 1], np.int32),
        "chosen": np.array([True, False, True]),
        "absent": None,
    }
    return operands, rng.normal(size=(BATCH, SIZE)), (rng.normal(size=(STEPS, BATCH, 4)), np.arange(STEPS))


def body(operands, h, x):
    x, number = x
    y = products.contract("bi,io->bo", x, operands["u"]) + products.contract("bh,ho->bo", h, operands["w"])
    h = jnp.tanh(y * operands["scale"][None])
    h = h + products.contract("bh,oh->bo", jnp.where(operands["chosen"][None], h, 0), operands["w"])
    scores = products.contract("bh,bsh->bs", h, operands["keys"])
    context = products.contract("bs,bsh->bh", jax.nn.softmax(scores), operands["keys"])
    h = jnp.tanh(context + h[:, operands["column"]] + operands["w"][0][None] * number)
    return h, (scores, h)


def plain(body, reverse, operands, carry, xs):
    return jax.lax.scan(lambda c, x: body(operands, c, x), carry, xs, reverse=reverse)


def split(operands):
    floating = {k: v for k, v in operands.items() if v is not None and v.dtype == float}
    return floating, {k: v for k, v in operands.items() if k not in floating}


def objective(scan, reverse, floating, rest, carry, xs):
    last, (scores, states) = scan(body, reverse, {**floating, **rest}, carry, xs)
    weights = jnp.arange(1.0, STEPS + 1).reshape(STEPS, 1, 1)
    return jnp.sum(jnp.sin(last)) + jnp.sum(weights * scores) + jnp.sum(weights * states**2)


def assert_close(found, expected, rtol=1e-9):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * 1e-3), found, expected)


def test_outputs_are_those_of_lax_scan_without_differentiation(x64):
    operands, carry, xs = problem()
    assert_close(products.scan(body, False, operands, carry, xs), plain(body, False, operands, carry, xs))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("keep_every", "unroll"), [(0, 1), (1, 1), (2, 1), (4, 3), (STEPS, 1), (0, 2), (0, STEPS)])
def test_values_and_gradients_are_those_of_lax_scan(x64, reverse, keep_every, unroll):
    """Also computed again or unrolled, and where the number of steps is no multiple."""
    operands, carry, (xs, numbers) = problem()
    floating, rest = split(operands)

    @functools.partial(reference.jit, static_argnums=0)
    def both(scan, floating, carry, xs):
        f = functools.partial(objective, scan, reverse)
        return jax.value_and_grad(lambda o, c, x: f(o, rest, c, (x, numbers)), (0, 1, 2))(floating, carry, xs)

    assert_close(
        both(functools.partial(products.scan, keep_every=keep_every, unroll=unroll), floating, carry, xs),
        both(plain, floating, carry, xs),
    )


def test_what_is_computed_again_needs_no_memory():
    w, xs = jnp.ones((SIZE, SIZE)), jnp.ones((400, 64, SIZE))

    def loss(keep_every, w, xs):
        def step(w, h, x):
            return jnp.tanh(products.contract("bh,ho->bo", h, w) + x), None

        return jnp.sum(products.scan(step, False, w, xs[0], xs, keep_every)[0])

    def temporary(keep_every):
        return (
            jax.jit(jax.grad(functools.partial(loss, keep_every)))
            .lower(w, xs)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    assert temporary(20) < temporary(0) / 4


def test_under_vmap_gradients_are_those_of_each_run(x64):
    operands, carry, (xs, numbers) = problem()
    floating, rest = split(operands)
    runs = jax.tree.map(lambda a: np.stack([a, a * 0.5, a + 0.1]), floating)

    def gradients(scan, floating):
        return jax.grad(lambda o: objective(scan, False, o, rest, carry, (xs, numbers)))(floating)

    together = reference.jit(jax.vmap(functools.partial(gradients, products.scan)))(runs)
    alone = reference.jit(functools.partial(gradients, plain))
    for run in range(3):
        assert_close(
            jax.tree.map(lambda a, run=run: a[run], together), alone(jax.tree.map(lambda a, run=run: a[run], runs))
        )


def test_nested_scopes_find_their_own_operands(x64):
    """A scan inside the body of a scan, as a recurrent layer under a run axis that is itself a loop."""
    rng = np.random.default_rng(1)
    w, xs = rng.normal(size=(SIZE, SIZE)), rng.normal(size=(STEPS, 2, BATCH, SIZE))

    def loss(scan, w, xs):
        def inner(w, h, x):
            h = jnp.tanh(products.contract("bh,ho->bo", h, w) + x)
            return h, None

        def outer(w, h, x):
            h, _ = scan(inner, False, w, h, x)
            return products.contract("bh,ho->bo", h, w), None

        return jnp.sum(scan(outer, False, w, jnp.zeros((BATCH, SIZE)), xs)[0] ** 2)

    both = reference.jit(jax.grad(loss, (1, 2)), static_argnums=0)
    assert_close(both(products.scan, w, xs), both(plain, w, xs))


def inner_jaxprs(jaxpr):
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(value, "eqns"):
                inner = getattr(value, "jaxpr", value)
                yield equation, inner
                yield from inner_jaxprs(inner)


def made_in_loops(scan, shape):
    """How many arrays of a shape are computed inside the loops of a gradient."""

    def body(w, h, x):
        h = jnp.tanh(products.contract("bh,ho->bo", h, w) + x)
        return h, h

    def loss(w, carry, xs):
        return jnp.sum(scan(body, False, w, carry, xs)[1] ** 2)

    arguments = (jnp.ones(shape), jnp.ones((2, shape[0])), jnp.ones((4, 2, shape[1])))
    jaxpr = jax.make_jaxpr(jax.grad(loss))(*arguments).jaxpr
    loops = [inner for equation, inner in inner_jaxprs(jaxpr) if equation.primitive.name == "scan"]
    assert len(loops) >= 2, "a forward and a backward loop"
    return sum(
        v.aval.shape == shape and e.primitive.name in ("dot_general", "add_any", "add")
        for loop in loops
        for e in loop.eqns
        for v in e.outvars
    )


def test_no_weight_gradient_is_accumulated_inside_the_backward_loop():
    """The reason why `products.scan` exists. The plain scan shows that the check would see it."""
    assert made_in_loops(plain, (7, 7)) >= 2
    assert made_in_loops(products.scan, (7, 7)) == 0


def test_bfloat16_rounds_the_operands_and_accumulates_in_float32():
    rng = np.random.default_rng(0)
    a, w = rng.normal(size=(2, 300)).astype(np.float32), rng.normal(size=(300, 4)).astype(np.float32)

    def rounded(x):
        return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32), np.float64)

    out = products.contract("bi,io->bo", jnp.asarray(a), jnp.asarray(w), jnp.bfloat16)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, rounded(a) @ rounded(w), rtol=1e-4, atol=1e-5)
    assert np.abs(out - a.astype(np.float64) @ w).max() > 1e-3, "nothing was rounded"


def test_bfloat16_gradient_of_a_weight_is_the_product_of_rounded_operands():
    rng = np.random.default_rng(0)
    xs, w = rng.normal(size=(STEPS, 2, 4)).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    g = rng.normal(size=(STEPS, 2, 3)).astype(np.float32)

    def loss(w):
        def body(w, carry, x):
            return carry, products.contract("bi,io->bo", x, w, jnp.bfloat16)

        return jnp.sum(g * products.scan(body, False, w, jnp.zeros(()), xs)[1])

    gradient = reference.jit(jax.grad(loss))(w)
    x16, g16 = (np.asarray(jnp.asarray(v).astype(jnp.bfloat16).astype(jnp.float32)) for v in (xs, g))
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, np.einsum("tbi,tbo->io", x16, g16), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "summed", "columns"), [(3, 2500, 5), (200, 1100, 2), (1, 7, 1), (0, 3, 2), (3, 0, 2)])
@pytest.mark.parametrize("spec", ["ab,bc->ac", "ab,cb->ac", "xab,bc->xac", "ab,bc->ca"])
def test_bfloat16_in_every_form_with_its_gradients(rows, summed, columns, spec):
    """Long sums with few rows are made in parts on a CPU, and operands are brought into order."""
    rng = np.random.default_rng(0)
    a_shape = (2, rows, summed) if "x" in spec else (rows, summed)
    a = rng.normal(size=a_shape).astype(np.float32)
    w = rng.normal(size=(columns, summed) if "cb" in spec else (summed, columns)).astype(np.float32)

    def rounded(x):
        return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32), np.float64)

    out, pullback = jax.vjp(lambda a, w: products.contract(spec, a, w, jnp.bfloat16), jnp.asarray(a), jnp.asarray(w))
    g = rng.normal(size=out.shape).astype(np.float32)
    operands, result = spec.split("->")
    a_axes, w_axes = operands.split(",")
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(out, np.einsum(spec, rounded(a), rounded(w)))
    d_a, d_w = pullback(jnp.asarray(g))
    close(d_a, np.einsum(f"{result},{w_axes}->{a_axes}", rounded(g), rounded(w)))
    close(d_w, np.einsum(f"{a_axes},{result}->{w_axes}", rounded(a), rounded(g)), atol=1e-3)


def test_the_gradient_of_an_operand_comes_in_its_own_order():
    """Not as a product in another order and a transposition, of which an optimiser would read the columns."""

    def loss(w):
        return products.contract("abi,io->abo", jnp.ones((2, 3, 4)), w).sum()

    names = [str(equation.primitive) for equation in jax.make_jaxpr(jax.grad(loss))(jnp.ones((4, 5))).jaxpr.eqns]
    assert "dot_general" in names
    assert names[-1] != "transpose"


def test_threads_that_trace_at_once_do_not_see_each_other():
    """Two threads are inside of their bodies at the same time; each has the gradients that it has alone."""
    operands, carry, (xs, numbers) = problem()
    floating, rest = split(operands)
    floating = {name: np.float32(value) for name, value in floating.items()}
    given = rest, np.float32(carry), (np.float32(xs), numbers)

    def gradient(meet):
        def meeting(operands, h, x):
            meet()
            return body(operands, h, x)

        def scan(_, *arguments):
            return products.scan(meeting, *arguments)

        return jax.grad(functools.partial(objective, scan, False))(floating, *given)

    alone, barrier = gradient(lambda: None), threading.Barrier(2)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        both = [threads.submit(gradient, lambda: barrier.wait(60)) for _ in range(2)]
    for found in both:
        assert_close(found.result(), alone, rtol=1e-6)
