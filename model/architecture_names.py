"""Names of architectures: what others call an architecture that a GGUF file names in its own way."""

from __future__ import annotations

OTHER_NAMES = {
    # Hugging Face's model types.
    "cohere": "command-r",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "ernie4_5_moe": "ernie4_5-moe",
    "falcon_h1": "falcon-h1",
    "gemma3_text": "gemma3",
    "gemma3n_text": "gemma3n",
    "glm4_moe": "glm4moe",
    "glm4_moe_lite": "deepseek2",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
    "granitemoehybrid": "granitehybrid",
    "hunyuan_v1_dense": "hunyuan-dense",
    "hunyuan_v1_moe": "hunyuan-moe",
    "lfm2_moe": "lfm2moe",
    "llama4_text": "llama4",
    "mistral": "llama",
    "mixtral": "llama",
    "olmo3": "olmo2",
    "phi": "phi2",
    "qwen2_5_vl": "qwen2vl",
    "qwen2_5_vl_text": "qwen2vl",
    "qwen2_moe": "qwen2moe",
    "qwen2_vl": "qwen2vl",
    "qwen2_vl_text": "qwen2vl",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
    "qwen3_vl": "qwen3vl",
    "qwen3_vl_moe": "qwen3vlmoe",
    "qwen3_vl_moe_text": "qwen3vlmoe",
    "qwen3_vl_text": "qwen3vl",
    # What Ollama writes into files of its own.
    "glm4moelite": "deepseek2",
    "gptoss": "gpt-oss",
    "qwen25vl": "qwen2vl",
}
"""Other names of an architecture, and the one that GGUF files have for it (``general.architecture``).

A model type is mapped as llama.cpp's ``convert_hf_to_gguf.py`` maps its class. One that is spelt alike is not listed.
"""


def architecture_named(name: str) -> str:
    """Give the name that GGUF files have for an architecture; a name that is not in the table stays as it is.

    Examples
    --------
    >>> architecture_named("mistral"), architecture_named("gemma3_text"), architecture_named("qwen2")
    ('llama', 'gemma3', 'qwen2')
    """
    return OTHER_NAMES.get(name, name)
