"""Recurrent encoder-decoders with attention in JAX: compare, reproduce, reuse.

From Python::

    dataset = attn_jax.load("synthetic/reverse")
    config = attn_jax.configure(dataset, {"score": "general", "train.steps": 500})
    run = attn_jax.fit(config, dataset)
    run.evaluate("test")["exact_match"]
    run.decode(["03 01 02"])[0].weights

The names below are imported when they are used, so that a command line can tell its help without loading the rest.
"""

import importlib
from typing import Any

_HOMES = {
    "Config": "config",
    "override": "config",
    "UserError": "errors",
    "load": "data",
    "configure": "reuse",
    "fit": "reuse",
    "Run": "reuse",
    "load_run": "reuse",
    "import_run": "reuse",
    "build": "seq2seq",
    "ensemble": "reuse",
    "greedy": "decoding",
    "sample": "decoding",
    "beam": "beam_search",
    "Score": "scores",
    "SCORES": "scores",
    "CELLS": "cells",
    "NORMALIZERS": "normalizers",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attn_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(f"attn_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
