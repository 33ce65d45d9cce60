"""Engines of other people that pip installs, as commands that give logits: the adapters that drive them.

``python public_engine.py ENGINE --model M --tokens 1,2,3 --logits FILE`` is run by the Python that has the engine; it
needs numpy beside it, and nothing of ours. An adapter calls the engine's own loader and forward pass; what else it
does stands at it. It ends with exit code 1 where the engine raises an error.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def of_tinygrad(model: Path, tokens: Sequence[int]) -> Any:
    """tinygrad.llm: its forward pass but for the last two lines, which take the last token only and draw a token.

    Weights are left as they are (``HALF=0``), not rounded to float16 as they are by default. The cache is float16.
    """
    os.environ.setdefault("HALF", "0")
    from tinygrad import Tensor
    from tinygrad.llm.model import Transformer

    engine, _ = Transformer.from_gguf(model)
    x = engine.token_embd(Tensor([list(tokens)])).float()
    for block in engine.blk:
        x = block(x, 0)
    return engine.output(engine.output_norm(x))[0].float().numpy()


def of_transformers(model: Path, tokens: Sequence[int]) -> Any:
    """transformers' own loader of GGUF files."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    engine = AutoModelForCausalLM.from_pretrained(str(model.parent), gguf_file=model.name, dtype=torch.float32)
    with torch.no_grad():
        return engine.eval()(torch.tensor([list(tokens)])).logits[0].float().numpy()


def of_ctransformers(model: Path, tokens: Sequence[int]) -> Any:
    """ctransformers, whose llama.cpp is of September 2023: the logits of the last token."""
    from ctransformers import LLM, Config

    engine = LLM(str(model), model_type="gguf", config=Config(context_length=256, batch_size=256, threads=1))
    engine.eval(list(tokens))
    return np.array(engine.logits)[None]


def of_convlit(model: Path, tokens: Sequence[int]) -> Any:
    """convlit: one token after another, in float32.

    Its loader wants the merges and special tokens of Llama 3's tokeniser, which the suite's files do not have and no
    logits need: these look-ups are replaced.
    """
    import torch
    from gguf_chat import gguf_reader, loader, tokenizer
    from gguf_chat.model import KVCache

    torch.set_num_threads(1)
    get_meta = gguf_reader.GGUFReader.get_meta
    loader._find_special_id = lambda *_: 0
    tokenizer.LlamaBPETokenizer = lambda **_: None
    gguf_reader.GGUFReader.get_meta = lambda self, key, *default: (
        [] if key == "tokenizer.ggml.merges" else get_meta(self, key, *default)
    )
    engine, _ = loader.load_llama_from_gguf(model, dtype=torch.float32)
    cache = KVCache(engine.cfg, len(tokens), dtype=torch.float32, device=torch.device("cpu"))
    return torch.stack([engine.forward_one(token, cache) for token in tokens]).numpy()


ENGINES: dict[str, Callable[[Path, Sequence[int]], Any]] = {
    "tinygrad": of_tinygrad,
    "transformers": of_transformers,
    "ctransformers": of_ctransformers,
    "convlit": of_convlit,
}


def main() -> None:
    """Run an engine, and write its logits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--logits", type=Path, required=True)
    options = parser.parse_args()
    logits = ENGINES[options.engine](options.model, [int(token) for token in options.tokens.split(",")])
    np.save(options.logits, np.asarray(logits, np.float32))


if __name__ == "__main__":
    main()
