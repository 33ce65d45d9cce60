"""What firstdiff saves its users from writing: transformers with a forward hook on every module.

Run as a process: ``python hooked_transformers.py MODEL.gguf STEPS TOKEN...``. Prints how many outputs it holds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging


def main(path: Path, steps: int, tokens: list[int]) -> None:
    """Run a prompt and some greedy steps, and keep every module's output of each."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name)
    outputs: list[tuple[str, Any]] = []

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: outputs.append((name, copied(output)))

    for name, module in model.named_modules():
        module.register_forward_hook(keep(name))
    ids = torch.tensor([tokens])
    new = steps + 1  # the prompt's pass gives one token, each step one more
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new, max_new_tokens=new
        )
    passes = sum(name == "" for name, _ in outputs)
    assert passes == new, passes
    sys.stdout.write(f"{len(outputs)} outputs of {passes} passes\n")


def copied(output: Any) -> Any:
    """A module's output, its tensors copied: what comes later may write into them."""
    if isinstance(output, torch.Tensor):
        return output.detach().clone()
    return [copied(x) for x in output] if isinstance(output, tuple | list) else output


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), [int(token) for token in sys.argv[3:]])
