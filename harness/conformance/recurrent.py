"""Families that carry a state from token to token instead of keys and values, or beside them."""

from __future__ import annotations

from firstdiff.conformance.families import (
    END,
    GATED,
    HEAD,
    HEADS,
    KV,
    OUT,
    PAIR,
    QK_NORMS,
    QKV,
    RMS,
    Family,
    N,
    biased,
    norms,
    weights,
)

INNER, STATE, RANK, KERNEL = 512, 16, 16, 4
NO_ATTENTION = {"attention.head_count": 0, "attention.head_count_kv": None, "rope.freq_base": None}
SSM_KEYS = {"ssm.conv_kernel": KERNEL, "ssm.inner_size": INNER, "ssm.state_size": STATE}
MAMBA = Family(
    "mamba",
    {**RMS, **NO_ATTENTION, **SSM_KEYS, "feed_forward_length": 0, "ssm.time_step_rank": RANK},
    layer={
        **norms("attn_norm"),
        **weights(ssm_in=(2 * INNER, N)),
        **biased(weights(ssm_conv1d=(INNER, KERNEL))),
        **weights(ssm_x=(RANK + 2 * STATE, INNER)),
        **biased(weights(ssm_dt=(INNER, RANK))),
        "ssm_a": (INNER, STATE),
        "ssm_d": (INNER,),
        **weights(ssm_out=(N, INNER)),
    },
    ends={**HEAD, **END},
)
MAMBA2 = Family(
    "mamba2",
    {
        **RMS,
        **NO_ATTENTION,
        **SSM_KEYS,
        "feed_forward_length": 0,
        "ssm.time_step_rank": 2 * HEADS,
        "ssm.group_count": 2,
    },
    layer={
        **norms("attn_norm"),
        **weights(ssm_in=(2 * INNER + 4 * STATE + 2 * HEADS, N)),
        **biased(weights(ssm_conv1d=(INNER + 4 * STATE, KERNEL))),
        "ssm_dt.bias": (2 * HEADS,),
        "ssm_a": (2 * HEADS, 1),
        "ssm_d": (2 * HEADS, 1),
        **weights(ssm_norm=(2, INNER // 2), ssm_out=(N, INNER)),
    },
    ends={**HEAD, **END},
)
LFM2 = Family(
    "lfm2",
    {**RMS, "attention.head_count_kv": [0, KV], "shortconv.l_cache": 3},
    layer={
        **PAIR,
        **weights(**{"shortconv.conv": (N, 3), "shortconv.in_proj": (3 * N, N), "shortconv.out_proj": (N, N)}),
        **GATED,
    },
    others={1: {**PAIR, **QKV, **OUT, **QK_NORMS, **GATED}},
    ends=norms("token_embd_norm"),
)
