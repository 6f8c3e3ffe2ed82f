"""Programs lower ahead of time for TPU and for CUDA; no such device is needed, and nothing is compiled or run."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import export

from attn_jax import products
from attn_jax.beam_search import beam, stages
from attn_jax.data.corpus import encode
from attn_jax.data.text import PAD
from attn_jax.evaluation import Evaluator
from attn_jax.seq2seq import build
from attn_jax.training import Trainer

PLATFORMS = ("tpu", "cuda")

FOREIGN = re.compile(r'"?(lapack|blas|__onednn|xla_python|xla_ffi_python|ducc|hip)\w*"?')
"""Custom calls that only another platform has, or the Python process that traced the program."""

WIDE = re.compile(r"(?:tensor<|x)(?:f64|complex<f64>)")
"""Double precision, which a TPU emulates slowly and nobody asked for."""


def lowered(function, platform, *arguments):
    """The text of a jitted function's program. Raises where a primitive has no rule for the platform."""
    found = export.export(function, platforms=[platform])(*arguments)
    assert found.platforms == (platform,)
    return found.mlir_module()


def check(text):
    targets = set(re.findall(r"stablehlo\.custom_call @(\w+)", text))
    foreign = {target for target in targets if FOREIGN.fullmatch(target)}
    assert not foreign, f"custom calls of another platform: {foreign}"
    assert not WIDE.search(text), "double precision"
    unsaid = [
        line for line in text.splitlines() if re.search(r"dot_general.*f32.*,.*f32.*->", line) and "HIGH" not in line
    ]
    assert not unsaid, f"float32 that an accelerator would round: {unsaid[0]}"


FEEDING = {"cell": "lstm", "score": "additive", "input_feeding": "attentional", "dropout.recurrent": 0.1}
LOCAL = {"cell": "gru", "score": "general", "window": "local_p", "train.buckets": 2, "init": "glorot"}
HEADS = {"cell": "lstm", "score": "multihead", "precision": "bfloat16", "normalizer": "entmax15"}
OWN_INPUTS = {"score": "none", "train.teacher_forcing": 0.5, "optim": "adadelta", "placement": "after"}
TRANSFORMER = {"model": "transformer", "transformer.encoder_layers": 1, "dropout.attention": 0.1}
BEAM = {"decode": "beam", "decode.beam_size": 2, "decode.length_penalty": "gnmt"}
SAMPLE = {"decode": "sample"}


@pytest.mark.parametrize(
    "changes",
    [FEEDING | BEAM, LOCAL | BEAM, HEADS, OWN_INPUTS | SAMPLE, TRANSFORMER | BEAM],
    ids=["feeding", "local_p", "multihead", "own_inputs", "transformer"],
)
def test_training_and_search_lower_without_the_device(changes):
    config = tiny.changed(tiny.config(), changes)
    members = [config, tiny.changed(config, {"seed": 1, "optim.learning_rate": 0.01})]
    corpus = encode(tiny.dataset(train=23), config)
    trainer = Trainer(members, corpus)
    states = jax.eval_shape(trainer.start)
    rows = np.zeros((4, len(members), config.train.batch_size), np.int32)
    chunk = (states, trainer._data, trainer.numbers, trainer.keys, 0, 4, np.zeros(4, np.int32), rows)
    evaluator = Evaluator(trainer.model, corpus, max_output=5, seeds=[0, 1])
    # The search of evaluations during training, and the configured one.
    greedily = tiny.changed(config, {"decode": "greedy"}).decode
    batch = (states.params, evaluator._seeds, *evaluator.batches("dev")[0][1:])
    programs = [(trainer._chunk, chunk), (jax.jit(trainer.start), ())]
    programs += [(evaluator._program(s), batch) for s in {greedily, config.decode}]
    for function, arguments in programs:
        for platform in PLATFORMS:  # traced once for both
            check(lowered(function, platform, *arguments))


@pytest.mark.parametrize("changes", [FEEDING, HEADS, TRANSFORMER], ids=["feeding", "multihead", "transformer"])
def test_a_beam_in_parts_lowers_without_the_device(changes):
    model = build(tiny.changed(tiny.config(), changes), 9, 9)
    source = jax.ShapeDtypeStruct((33, 5), jnp.int32)
    assert len(stages(33)) > 1

    def search(params, source):
        return beam(model.bind(params), source, source != PAD, 6, beam_size=2, in_parts=True)

    for platform in PLATFORMS:
        check(lowered(jax.jit(search), platform, jax.eval_shape(model.init, jax.random.key(0)), source))


def test_the_check_sees_what_a_platform_lacks():
    with pytest.raises(NotImplementedError, match="tpu"):
        lowered(jax.jit(jnp.linalg.eigvals), "tpu", np.eye(3, dtype=np.float32))


def test_the_check_sees_foreign_calls_and_double_precision(x64):
    with pytest.raises(AssertionError, match="double precision"):
        check(lowered(jax.jit(jnp.sin), "tpu", np.eye(3)))
    with pytest.raises(AssertionError, match="lapack_sgeqrf"):
        check(lowered(jax.jit(jnp.linalg.qr), "cpu", np.eye(3, dtype=np.float32)))


@pytest.mark.parametrize(("name", "said"), [("float32", "HIGHEST"), ("tensorfloat32", "HIGH")])
def test_float32_says_how_precise_it_is(name, said):
    a = np.ones((3, 3), np.float32)
    text = lowered(jax.jit(lambda a: products.contract("ab,bc->ac", a, a, products.PRECISIONS[name])), "cuda", a)
    assert f"precision = [{said}, {said}]" in text
