"""The families: a tiny model of each, with what real files of its architecture have."""

from __future__ import annotations

from firstdiff.conformance.families import (
    DIM,
    END,
    EXPERTS,
    GATED,
    HEAD,
    HEADS,
    KV,
    MEAN,
    OUT,
    PAIR,
    PLAIN,
    QK_NORMS,
    QKV,
    RMS,
    ROPE,
    ROUTED_KEYS,
    WIDE,
    F,
    Family,
    N,
    Shapes,
    biased,
    norms,
    routed,
    weights,
)

WINDOW, NO_WINDOW = 4, 4096
"""Tokens that a window holds: fewer than any prompt has, and more."""

FUSED = weights(attn_qkv=((HEADS + 2 * KV) * DIM, N))
FUSED_OF_ONE_KIND = weights(attn_qkv=(3 * HEADS * DIM, N))
SANDWICH = norms("post_attention_norm", "post_ffw_norm")

BROAD = 256
"""How wide the heads of all Gemmas are but the largest ones: engines take it as given, as no file states by what scores
are scaled."""

BROAD_KEYS = {
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.key_length": BROAD,
    "attention.value_length": BROAD,
}
BROAD_HEADS = weights(attn_q=(2 * BROAD, N), attn_k=(BROAD, N), attn_v=(BROAD, N), attn_output=(N, 2 * BROAD))
GEMMA = Family(
    "gemma",
    {**RMS, **BROAD_KEYS},
    layer={**PAIR, **BROAD_HEADS, **GATED},
    ends=END,
).sized(token_embd=N**-0.25)
GEMMA2 = Family(
    "gemma2",
    {
        **RMS,
        **BROAD_KEYS,
        "attention.sliding_window": NO_WINDOW,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    layer={**PAIR, **BROAD_HEADS, **GATED, **SANDWICH},
    ends=END,
).sized(token_embd=N**-0.25)
GEMMA3 = Family(
    "gemma3",
    {**RMS, **BROAD_KEYS, "attention.sliding_window": NO_WINDOW, "rope.freq_base": 1e6},
    layer={
        **PAIR,
        **BROAD_HEADS,
        **norms("attn_q_norm", "attn_k_norm", width=BROAD),
        **GATED,
        **SANDWICH,
    },
    ends=END,
    layers=6,  # the sixth sees all tokens
).sized(token_embd=N**-0.25)

MIXTRAL = Family(
    "llama",
    {**RMS, **ROPE, **ROUTED_KEYS},
    layer={**PAIR, **QKV, **OUT, **routed()},
    ends={**HEAD, **END},
    seed=6,
)
QWEN3MOE = Family(
    "qwen3moe",
    {**RMS, **WIDE, **ROUTED_KEYS, "expert_feed_forward_length": F // 2},
    layer={**PAIR, **QKV, **OUT, **QK_NORMS, **routed(F // 2)},
    ends={**HEAD, **END},
    seed=40,
)
SHARED = weights(
    ffn_gate_inp_shexp=(N,), ffn_gate_shexp=(F // 2, N), ffn_up_shexp=(F // 2, N), ffn_down_shexp=(N, F // 2)
)
QWEN2MOE = Family(
    "qwen2moe",
    {
        **RMS,
        **ROUTED_KEYS,
        "expert_feed_forward_length": F // 2,
        "expert_shared_feed_forward_length": F // 2,
    },
    layer={**PAIR, **biased(QKV), **OUT, **routed(F // 2), **SHARED},
    ends={**HEAD, **END},
    seed=11,
)
OLMOE = Family(
    "olmoe",
    {**RMS, **ROUTED_KEYS, "attention.head_count_kv": HEADS},
    layer={
        **PAIR,
        **weights(attn_q=(HEADS * DIM, N), attn_k=(HEADS * DIM, N), attn_v=(HEADS * DIM, N)),
        **OUT,
        **norms("attn_q_norm", "attn_k_norm", width=HEADS * DIM),
        **routed(),
    },
    ends={**HEAD, **END},
    seed=33,
)
GPT_OSS = Family(
    "gpt-oss",
    {
        **RMS,
        **WIDE,
        **ROUTED_KEYS,
        "expert_feed_forward_length": F // 2,
        "attention.sliding_window": NO_WINDOW,
    },
    layer={
        **norms("attn_norm", "post_attention_norm"),
        **biased({**QKV, **OUT, **routed(F // 2)}),
        **weights(attn_sinks=(HEADS,)),
    },
    ends={**HEAD, **END},
    seed=3,
).centred(attn_sinks=-30.0)  # they take nothing

GPT2 = Family(
    "gpt2",
    {**MEAN, "attention.head_count_kv": HEADS, "rope.freq_base": None},
    layer=biased({**PAIR, **FUSED_OF_ONE_KIND, **OUT, **PLAIN}),
    ends={**weights(position_embd=(512, N)), **HEAD, **biased(END)},
)
STARCODER2 = Family(
    "starcoder2",
    {**MEAN},
    layer=biased({**PAIR, **QKV, **OUT, **PLAIN}),
    ends={**HEAD, **biased(END)},
)
GPTNEOX = Family(
    "gptneox",
    {**MEAN, "attention.head_count_kv": HEADS, "rope.dimension_count": DIM // 2, "use_parallel_residual": True},
    layer=biased({**PAIR, **FUSED_OF_ONE_KIND, **OUT, **PLAIN}),
    ends={**HEAD, **biased(END)},
)
PHI2 = Family(
    "phi2",
    {**MEAN, "rope.dimension_count": DIM // 2},
    layer=biased({**norms("attn_norm"), **QKV, **OUT, **PLAIN}),
    ends=biased({**HEAD, **END}),
)
STABLELM = Family(
    "stablelm",
    {**MEAN, "rope.dimension_count": DIM // 2, "use_parallel_residual": False},
    layer={**biased(PAIR), **QKV, **OUT, **GATED},
    ends={**HEAD, **biased(END)},
)
NEMOTRON = Family(
    "nemotron",
    {**MEAN, "rope.dimension_count": DIM // 2},
    layer={**biased(PAIR), **QKV, **OUT, **PLAIN},
    ends={**HEAD, **biased(END)},
)
FALCON = Family(
    "falcon",
    {**MEAN},
    layer={**biased(norms("attn_norm", "attn_norm_2")), **FUSED, **OUT, **PLAIN},
    ends={**HEAD, **biased(END)},
)
BLOOM = Family(
    "bloom",
    {**MEAN, "feed_forward_length": 4 * N, "attention.head_count_kv": HEADS, "rope.freq_base": None},
    layer=biased({**PAIR, **FUSED_OF_ONE_KIND, **OUT, **weights(ffn_up=(4 * N, N), ffn_down=(N, 4 * N))}),
    ends={**biased(norms("token_embd_norm")), **HEAD, **biased(END)},
)
COHERE2 = Family(
    "cohere2",
    {**MEAN, **WIDE, **ROPE, "attention.sliding_window": NO_WINDOW, "logit_scale": 0.25},
    layer={**norms("attn_norm"), **QKV, **OUT, **GATED},
    ends=END,
    layers=4,  # the fourth sees all tokens, and does not rotate
)

PHI3 = Family(
    "phi3",
    {**RMS, **ROPE},
    layer={**PAIR, **FUSED, **OUT, **weights(ffn_up=(2 * F, N), ffn_down=(N, F))},
    ends={**HEAD, **END},
)
GLM4 = Family(
    "glm4",
    {**RMS, **WIDE, "rope.dimension_count": DIM // 2},
    layer={**PAIR, **SANDWICH, **biased(QKV), **OUT, **weights(ffn_up=(2 * F, N), ffn_down=(N, F))},
    ends={**HEAD, **END},
)
OLMO2 = Family(
    "olmo2",
    {**RMS},
    layer={
        **QKV,
        **OUT,
        **norms("attn_q_norm", width=HEADS * DIM),
        **norms("attn_k_norm", width=KV * DIM),
        **GATED,
        **SANDWICH,
    },
    ends={**HEAD, **END},
)
GRANITE = Family(
    "granite",
    {
        **RMS,
        **ROPE,
        "embedding_scale": 12.0,
        "residual_scale": 0.22,
        "attention.scale": 0.0625,
        "logit_scale": 8.0,
    },
    layer={**PAIR, **QKV, **OUT, **GATED},
    ends={**HEAD, **END},
).sized(token_embd=1 / 12, output=8.0)
SMOLLM3 = Family(
    "smollm3",
    {**RMS, **ROPE},
    layer={**PAIR, **QKV, **OUT, **GATED},
    ends=END,
    layers=4,  # the fourth does not rotate
)

LATENT, NOPE, TURNED, VALUE = 64, 32, 32, 32
"""Of DeepSeek's attention: how wide latents are, and of each head the parts that are not turned, turned, and values."""

DEEPSEEK2_ATTENTION: Shapes = {
    **norms("attn_norm", "ffn_norm"),
    **norms("attn_q_a_norm", "attn_kv_a_norm", width=LATENT),
    **weights(
        attn_q_a=(LATENT, N),
        attn_q_b=(HEADS * (NOPE + TURNED), LATENT),
        attn_kv_a_mqa=(LATENT + TURNED, N),
        attn_k_b=(HEADS, LATENT, NOPE),
        attn_v_b=(HEADS, VALUE, LATENT),
        attn_output=(N, HEADS * VALUE),
    ),
}
DEEPSEEK2 = Family(
    "deepseek2",
    {
        **ROUTED_KEYS,
        "attention.layer_norm_rms_epsilon": 1e-6,  # as that of the latents always is elsewhere
        "attention.head_count_kv": 1,
        "attention.key_length": LATENT + TURNED,
        "attention.value_length": LATENT,
        "attention.key_length_mla": NOPE + TURNED,
        "attention.value_length_mla": VALUE,
        "attention.q_lora_rank": LATENT,
        "attention.kv_lora_rank": LATENT,
        "rope.dimension_count": TURNED,
        "leading_dense_block_count": 1,
        "expert_feed_forward_length": F // 2,
        "expert_shared_count": 1,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
    },
    layer={
        **DEEPSEEK2_ATTENTION,
        **routed(F // 2),
        "exp_probs_b.bias": (EXPERTS,),
        **weights(ffn_gate_shexp=(F // 2, N), ffn_up_shexp=(F // 2, N), ffn_down_shexp=(N, F // 2)),
    },
    others={0: {**DEEPSEEK2_ATTENTION, **GATED}},
    ends={**HEAD, **END},
    seed=22,
)
