"""What a run leaves on disk."""

import json

import numpy as np
import sacrebleu
import tiny

from attn_jax import config as configs
from attn_jax import outcome
from attn_jax.data.corpus import encode
from attn_jax.evaluation import Evaluated
from attn_jax.outcome import Outcome
from attn_jax.results import Output


def test_a_result_says_how_its_metrics_were_made(tmp_path):
    config = tiny.config()
    corpus = encode(tiny.dataset(metric="bleu", tokenize="13a"), config)
    texts = [example.target for example in corpus.dataset.splits["test"]]
    evaluated = {"test": Evaluated({"bleu": 100.0}, texts)}
    output = Output(str(tmp_path))
    output.begin(configs.run_id(config, corpus.fingerprint), config, {}).close()
    outcome.write(output, Outcome(config, {"w": np.zeros(2)}, evaluated, [], 1, 1, None), corpus, "program")
    (path,) = tmp_path.glob("runs/*/result.json")
    scorer = sacrebleu.BLEU(tokenize="13a")
    scorer.corpus_score(texts, [texts])
    assert json.loads(path.read_text())["signatures"]["bleu"] == f"bleu|{scorer.get_signature()}"
