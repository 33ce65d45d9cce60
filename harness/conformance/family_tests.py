"""The tests of families: a model of each architecture, and others in which one thing of it stands out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from firstdiff.conformance import architectures as of
from firstdiff.conformance import recurrent
from firstdiff.conformance.definition import LONG, Level, Test
from firstdiff.conformance.families import F, Family, N, norms, weights
from firstdiff.conformance.families import biased as with_biases

CORE: Mapping[str, tuple[Family, str]] = {
    "gemma": (of.GEMMA, "the embedding times the root of its width, GELU for the gate, and no output matrix"),
    "gemma2": (of.GEMMA2, "norms before and after each branch, and caps of 50 and 30"),
    "gemma3": (of.GEMMA3, "norms of Q and K, and another base of the rotation in five of six layers"),
    "mixtral": (of.MIXTRAL, "a llama with experts: 2 of 4, whose weights sum up to 1"),
    "qwen3moe": (of.QWEN3MOE, "experts of a width of their own, whose weights sum up to 1"),
    "gpt-oss": (of.GPT_OSS, "biases everywhere, weights of the chosen experts only, and a gate that is clamped"),
    "gpt2": (of.GPT2, "LayerNorm, learned positions, Q, K and V in one matrix, and GELU without a gate"),
    "starcoder2": (of.STARCODER2, "LayerNorm and biases, with rotation, and GELU without a gate"),
    "phi3": (of.PHI3, "Q, K and V in one matrix, and gate and up in one matrix"),
    "olmo2": (of.OLMO2, "norms after each branch and none before, and norms of all heads of Q and of K at once"),
    "granite": (of.GRANITE, "factors of the embedding, of both branches, of the scores and of the logits"),
    "deepseek2": (of.DEEPSEEK2, "keys and values of one latent, a shared expert, and a first layer without experts"),
    "stablelm": (of.STABLELM, "a rotation of half the dimensions of each head, and LayerNorm"),
    "mamba": (recurrent.MAMBA, "a state space in the place of attention"),
}
FULL: Mapping[str, tuple[Family, str]] = {
    "qwen2moe": (of.QWEN2MOE, "weights of experts that do not sum up to 1, and a shared expert with a gate"),
    "olmoe": (of.OLMOE, "weights of experts that do not sum up to 1, and norms of all heads of Q and of K at once"),
    "gptneox": (of.GPTNEOX, "both branches from one input, and a rotation of half the dimensions of each head"),
    "phi2": (of.PHI2, "both branches from one norm, biases everywhere, and a rotation of half the dimensions"),
    "nemotron": (of.NEMOTRON, "the square of ReLU, and LayerNorm"),
    "falcon": (of.FALCON, "both branches from one input, each with a norm of its own"),
    "bloom": (of.BLOOM, "ALiBi in the place of positions, and a norm of the embedding"),
    "cohere2": (of.COHERE2, "both branches from one norm, no rotation in the fourth layer, and a factor of the logits"),
    "glm4": (of.GLM4, "norms before and after each branch, and pairs of neighbours in half the dimensions turned"),
    "smollm3": (of.SMOLLM3, "no rotation in the fourth layer"),
    "mamba2": (recurrent.MAMBA2, "a state space with heads"),
    "lfm2": (recurrent.LFM2, "a layer of short convolutions, and one of attention"),
}


def family_tests() -> Iterator[Test]:
    """The tests of all families."""
    for level, table in (("core", CORE), ("full", FULL)):
        for name, (family, isolates) in table.items():
            yield Test(name, f"what the architecture has: {isolates}", family=family, level=level)  # type: ignore[arg-type]
    for name, (family, isolates, level) in _changed().items():
        yield Test(name, isolates, family=family, level=level, base=name.partition(": ")[0])
    scaled = of.GEMMA3.but(rope__scaling__type="linear", rope__scaling__factor=8.0)
    says = "linear scaling of positions, in the layer without a window only"
    yield Test("gemma3: rope scaling", says, family=scaled, tokens=LONG, base="gemma3")
    yield Test("gpt2: long prompt", "learned positions up to 99", family=of.GPT2, tokens=LONG, base="gpt2")
    yield Test("bloom: long prompt", "ALiBi over 100 tokens", family=of.BLOOM, tokens=LONG, base="bloom", level="full")


def _changed() -> dict[str, tuple[Family, str, Level]]:
    windowed = "attention__sliding_window"
    one_kv = {**weights(attn_qkv=(6 * 64, N)), **weights(attn_output=(N, N), ffn_up=(F, N), ffn_down=(N, F))}
    return {
        "gemma2: window": (of.GEMMA2.but(**{windowed: of.WINDOW}), "a window of 4 tokens in the first layer", "core"),
        "gemma2: cap of scores": (of.GEMMA2.but(attn_logit_softcapping=1.0), "a cap of 1 of the scores", "core"),
        "gemma2: cap of logits": (of.GEMMA2.but(final_logit_softcapping=1.0), "a cap of 1 of the logits", "core"),
        "gemma3: window": (
            of.GEMMA3.but(**{windowed: of.WINDOW}),
            "a window of 4 tokens in five of six layers",
            "core",
        ),
        "mixtral: one expert": (
            of.MIXTRAL.but(expert_used_count=1).seeded(27),
            "one expert for each token, of weight 1",
            "core",
        ),
        "mixtral: all experts": (of.MIXTRAL.but(expert_used_count=4), "all experts for each token", "core"),
        "qwen3moe: one expert": (of.QWEN3MOE.but(expert_used_count=1).seeded(59), "one expert for each token", "full"),
        "qwen3moe: all experts": (of.QWEN3MOE.but(expert_used_count=4), "all experts for each token", "core"),
        "gpt-oss: sinks": (
            of.GPT_OSS.centred(attn_sinks=1.0).seeded(7),
            "sinks that take a part of each head's attention",
            "core",
        ),
        "gpt-oss: window": (
            of.GPT_OSS.but(**{windowed: of.WINDOW}).seeded(6),
            "a window of 4 tokens in the first layer",
            "core",
        ),
        "gpt-oss: clamped gate": (
            of.GPT_OSS.sized(ffn_gate_exps=6.0, ffn_up_exps=6.0).seeded(5),
            "gates above 7, and products beyond -7 and 7, which are clamped",
            "core",
        ),
        "gpt-oss: MXFP4 experts": (
            replace(of.GPT_OSS, kinds={f"ffn_{part}_exps.weight": "MXFP4" for part in ("gate", "up", "down")}, seed=46),
            "experts in MXFP4",
            "core",
        ),
        "phi3: partial rotation": (
            of.PHI3.but(rope__dimension_count=48),
            "a rotation of 48 of the 64 dimensions of each head",
            "core",
        ),
        "granite: factor of the embedding": (_granite(embedding_scale=12.0), "a factor of the embedding", "full"),
        "granite: factor of branches": (_granite(residual_scale=0.22), "a factor of both branches", "full"),
        "granite: factor of scores": (_granite(attention__scale=0.0625), "a factor of the scores", "full"),
        "granite: factor of logits": (_granite(logit_scale=8.0), "what the logits are divided by", "full"),
        "deepseek2: softmax": (
            of.DEEPSEEK2.but(expert_gating_func=1).seeded(46),
            "experts chosen by a softmax",
            "full",
        ),
        "deepseek2: weights of experts": (
            of.DEEPSEEK2.but(expert_weights_norm=False),
            "weights of experts that do not sum up to 1",
            "full",
        ),
        "deepseek2: bias of the choice": (
            replace(of.DEEPSEEK2, sizes={"exp_probs_b.bias": 2.0}, seed=4),
            "a bias by which experts are chosen, and which their weights do not have",
            "core",
        ),
        "gptneox: one after another": (
            of.GPTNEOX.but(use_parallel_residual=False),
            "the feed-forward network behind attention, not beside it",
            "full",
        ),
        "falcon: one norm": (
            replace(
                of.FALCON.but(attention__head_count_kv=1),
                layer={**with_biases(norms("attn_norm")), **one_kv},
            ),
            "one KV head, and one norm for both branches",
            "full",
        ),
        "cohere2: window": (
            of.COHERE2.but(**{windowed: of.WINDOW}),
            "a window of 4 tokens in three of four layers",
            "full",
        ),
        "stablelm: whole rotation": (of.STABLELM.but(rope__dimension_count=64), "a rotation of whole heads", "full"),
    }


def _granite(**keys: object) -> Family:
    """A granite of which all factors but one do nothing; scores are divided by the root of the width of heads."""
    return replace(
        of.GRANITE.but(embedding_scale=1.0, residual_scale=1.0, attention__scale=0.125, logit_scale=1.0).but(**keys),
        sizes={},
    )
