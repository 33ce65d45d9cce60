"""Why public engines fail tests of the suite: what was found by reading or running them, without the suite."""

from __future__ import annotations

NEW = "confirmed by its own report on loading: {} are missing, and newly initialised at random"

TABLES = (
    "no error: ggml of 2023 rounds SiLU, and the exponential in the softmax, to float16 by tables, and no arithmetic "
    "of the suite does so. On the plain model a llama of numpy with both in float16, and K, V, Q and the weights of "
    "attention too, is 3.5e-7 from its logits"
)

CONFIRMED: dict[str, dict[str, str]] = {
    "tinygrad": {
        "rope scaling|yarn scaling|angles.*": "confirmed by llm/model.py: from_gguf reads no rope.scaling.*",
        "rope factors": "confirmed by llm/model.py: a comment in from_gguf says that rope_freqs.weight is unused",
        "biases": "confirmed by llm/model.py: Q, K and V have biases, other products have bias=False",
        "mixtral.*": "confirmed by llm/model.py: norm_topk_prob is the file's expert_weights_norm, which a llama "
        "lacks, or else whether the architecture is qwen3moe or qwen35moe",
        "gemma.*|granite.*": "confirmed by llm/model.py: from_gguf refuses no architecture, and computes what has its "
        "tensors as a llama",
    },
    "transformers": {
        "rope scaling|yarn scaling|angles.*": "confirmed by integrations/ggml.py: rope.scaling.* is not taken",
        "rope factors": "confirmed by modeling_gguf_pytorch_utils.py: rope_freqs.weight goes to no tensor",
        "biases": "confirmed by modeling_gguf_pytorch_utils.py: attention_bias and mlp_bias are not set from the file",
        "split files": NEW.format("the tensors of the second file"),
        "mixtral.*": NEW.format("gate, up and down of a LlamaForCausalLM without experts"),
        "gpt-oss.*": NEW.format("experts and sinks"),
        "stablelm.*": "confirmed by integrations/ggml.py: rope.dimension_count is not taken, and a quarter is turned",
        "gemma2: cap.*": "confirmed by integrations/ggml.py: of gemma2 neither cap is taken",
        "gemma3: rope scaling": "confirmed by integrations/ggml.py: of gemma3 no rope.scaling.* is taken",
    },
    "convlit": {
        ".*": "confirmed by gguf_chat/model.py: forward_one multiplies with tok_emb, whatever output.weight is",
    },
    "ctransformers": {
        "plain|two layers|type F16": TABLES,
        "type Q4_0": "no error: judged in float32, as its arithmetic is not known yet; in ggml-cpu+kv=f16, as all that "
        "follow, its error is 5.0e-3, and the floor 5.2e-2",
        "rope scaling|yarn scaling|angles.*": "confirmed by its library, which has only the key rope.scale_linear of "
        "2023, and by its logits, right for the same file without scaling (1.1e-4 and 7.4e-5 off, floor 4e-3)",
    },
}
"""For each engine patterns of tests' names, and why they fail."""
