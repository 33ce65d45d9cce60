"""Other people's engines as commands that give nothing but logits, for the tests of probes.

``python black_box.py ENGINE --model M --tokens 1,2,3 --logits FILE [--parts 2,1]``; ENGINE is ``llama.cpp``,
``transformers``, ``transformers-bf16`` or ``last``, which is transformers with the last token's logits only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # for builders


def of_llama_cpp(model: Path, parts: Sequence[Sequence[int]]) -> Any:
    import llama_cpp

    engine = llama_cpp.Llama(str(model), n_ctx=256, n_batch=256, logits_all=True, verbose=False, n_threads=1)
    for tokens in parts:
        engine.eval(tokens)
    return np.array(engine.scores[: engine.n_tokens], np.float32)


def of_transformers(model: Path, parts: Sequence[Sequence[int]], dtype: str) -> Any:
    import torch

    from builders.family_files import family_of_file, is_family
    from builders.hugging_face import hugging_face_model

    torch.set_num_threads(1)
    make = family_of_file if is_family(model) else hugging_face_model
    engine, cached, logits = make(model, getattr(torch, dtype)), {}, []
    with torch.no_grad():
        for tokens in parts:
            out = engine(torch.tensor([list(tokens)]), **cached)
            if len(parts) > 1:
                cached = {"past_key_values": out.past_key_values, "use_cache": True}
            logits.append(out.logits[0].float().numpy())
    return np.concatenate(logits)


def main() -> None:
    """Run an engine, and write its logits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--logits", type=Path, required=True)
    parser.add_argument("--parts")
    options = parser.parse_args()
    tokens = [int(token) for token in options.tokens.split(",")]
    ends = list(accumulate(map(int, options.parts.split(",")))) if options.parts else [len(tokens)]
    parts = [tokens[a:b] for a, b in pairwise([0, *ends])]
    if options.engine == "llama.cpp":
        logits = of_llama_cpp(options.model, parts)
    else:
        logits = of_transformers(options.model, parts, "bfloat16" if options.engine.endswith("bf16") else "float32")
    np.save(options.logits, logits[-1:] if options.engine == "last" else logits)


if __name__ == "__main__":
    main()
