"""A foreign engine, in C, that shares no code with ours: judged clean when it is, and every bug where it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from builders.engines import compile_engine, run_engine
from builders.judging import judge
from builders.models import FILE_TYPES, SMOLLM2, quantised, synthetic
from firstdiff.dumps import Site, Trace, open_trace
from firstdiff.model.engine import open_model
from firstdiff.model.gguf import open_gguf
from firstdiff.verdict import Verdict

PROMPT = [1, 72, 104, 300, 45, 300, 17, 260, 301, 99, 45, 8]
QUICK = ("-O0",)  # small models need no fast code, and compile in half the time

# Bug, the model that it shows on, and the first site that goes wrong.
BUGS = (
    ("token-of-before", "F32", "embd"),
    ("rope-position", "F32", "Qcur_rope-0@1"),
    ("weight-reinterpreted", "F32", "Qcur-0"),
    ("weight-of-other-layer", "F16", "ffn_out-0"),
    ("head-transposed", "F32", "result_output"),
    ("bias-missing", "F32", "Qcur-0"),
    ("nibble-order", "Q4_1", "embd"),
    ("nibble-order", "Q4_0", "embd"),
    ("min-missing", "Q4_1", "embd"),
    ("f16-subnormal", "small values", "Vcur-1"),
    ("norm-eps", "F32", "attn_norm-0"),
    ("norm-eps-outside", "F32", "attn_norm-0"),
    ("norm-weight-missing", "F32", "attn_norm-0"),
    ("final-norm-missing", "F32", "result_norm"),
    ("rope-pairing", "F32", "Qcur_rope-0"),
    ("rope-base", "F32", "Qcur_rope-0"),
    ("rope-factors", "F32", "Qcur_rope-0"),
    ("gqa-map", "F32", "kq-0"),
    ("scale-missing", "F32", "kq_soft_max-0"),
    ("mask-missing", "F32", "kq_soft_max-0"),
    ("head-merge", "F32", "kqv_out-0"),
    ("cache-stale", "F32", "k_cache-0@1"),
    ("cache-overwritten", "F32", "v_cache-0@1"),
    ("gate-up-swapped", "F32", "ffn_swiglu-0"),
    ("gelu-for-silu", "F32", "ffn_swiglu-0"),
    ("residual-missing", "F32", "ffn_inp-0"),
    ("residual-clipped", "F32", "ffn_inp-0"),
    ("logits-of-wrong-row", "F32", "result_output"),
)
ONE_LAYER = (
    ("rope-pairing", "F16", "Qcur_rope-1"),
    ("norm-eps", "F32", "attn_norm-1"),
    ("nibble-order", "Q4_1", "Qcur-1"),
    ("mask-missing", "Q8_0", "kq_soft_max-1"),
)


@pytest.fixture(scope="module")
def bench(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c-engine")


@pytest.fixture(scope="module")
def models(llama: None, bench: Path) -> Mapping[str, Path]:
    """Two layers with everything that the engine reads: biases, rope factors, another base, an output of its own."""
    shape = {
        "n_layer": 2, "n_embd": 128, "n_head": 8, "n_head_kv": 4, "head_dim": 16, "n_ff": 192, "n_vocab": 320,
        "rope_base": 50000.0, "rope_factors": True, "rope_scale": 0.5, "biases": True,
    }  # fmt: skip
    for name in ("F32", "F16", "small"):
        (bench / name).mkdir()
    made = {"F32": synthetic(bench / "F32", **shape), "F16": synthetic(bench / "F16", dtype=np.float16, **shape)}
    small = synthetic(bench / "small", **shape)
    info = open_gguf(small).tensors["blk.1.attn_v.weight"]
    values = np.memmap(small, np.float32, "r+", info.offset, info.shape)
    values /= 64  # scales of its Q8_0 blocks: some 2e-5, and the least normal f16 is 6e-5
    values.flush()
    for name in ("Q8_0", "Q4_1", "Q4_0"):
        made[name] = quantised(made["F32"], FILE_TYPES[name], bench / f"{name}.gguf")
    made["small values"] = quantised(small, FILE_TYPES["Q8_0"], bench / "small.gguf")
    return made


def judged(model: Path, trace: Trace) -> Verdict:
    return judge(open_model(model), trace)


def worst(verdict: Verdict) -> str:
    return "; ".join(f"{s.site} {s.local_error:.2g}" for s in verdict.diverging[:3])


def check_clean(engine: Path, model: Path, out: Path, prompt: list[int]) -> None:
    run_engine(engine, model, prompt, out)
    trace = open_trace(out)
    assert trace.engine == {"name": "llama.c", "arithmetic": "f32"}
    assert [len(step.tokens) for step in trace.steps] == [len(prompt), 1, 1]
    verdict = judged(model, trace)
    coverage = verdict.coverage
    assert verdict.verdict == "agrees", worst(verdict)
    assert coverage["agrees"] == coverage["recorded"] == coverage["sites"]
    assert all(step.top1_agrees for step in verdict.logits)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1", "Q4_0", "small values"])
def test_the_clean_engine_agrees_everywhere(kind: str, bench: Path, models: Mapping[str, Path], tmp_path: Path) -> None:
    check_clean(compile_engine(bench), models[kind], tmp_path, PROMPT)


@pytest.mark.smollm2
def test_the_clean_engine_agrees_on_a_real_model(bench: Path, tmp_path: Path) -> None:
    prompt = [1, 504, 314, 260, 3575, 282, 4649, 47, 198, 2, 1, 9690]
    check_clean(compile_engine(bench), SMOLLM2, tmp_path, prompt)


@pytest.mark.sweep
@pytest.mark.parametrize(("bug", "kind", "first"), BUGS)
def test_a_bug_is_found_where_it_is(
    bug: str, kind: str, first: str, bench: Path, models: Mapping[str, Path], tmp_path: Path
) -> None:
    run_engine(compile_engine(bench, bug, flags=QUICK), models[kind], PROMPT, tmp_path)
    verdict = judged(models[kind], open_trace(tmp_path))
    assert verdict.first is not None
    assert str(verdict.first.site) == first


@pytest.mark.parametrize(("bug", "kind", "first"), ONE_LAYER)
def test_a_bug_of_one_layer_is_found_there(
    bug: str, kind: str, first: str, bench: Path, models: Mapping[str, Path], tmp_path: Path
) -> None:
    run_engine(compile_engine(bench, bug, 1, flags=QUICK), models[kind], PROMPT, tmp_path)
    verdict = judged(models[kind], open_trace(tmp_path))
    assert verdict.first is not None
    assert str(verdict.first.site) == first
    assert {site.layer for site in verdict.diverging} == {1}


def test_every_bug_of_the_engine_is_planted_here_and_in_its_table() -> None:
    source = (Path(__file__).parents[1] / "engines" / "c" / "llama.c").read_text()
    listed = re.findall(r"\bbug_(\w+)", source[source.index("enum {\n    bug_none") : source.index("#define JOINED")])
    table = re.findall(r"^ \*     (\w+) {2,}\S", source[: source.index("*/")], re.MULTILINE)
    assert {name.replace("_", "-") for name in listed} - {"none"} == {bug for bug, _, _ in BUGS}
    assert {name.replace("_", "-") for name in table} - {"name"} == {bug for bug, _, _ in BUGS}


@cache
def _dumped(engine: Path, model: Path, out: Path, more: str) -> tuple[Trace, str]:
    printed = run_engine(engine, model, PROMPT, out, more=more)
    return open_trace(out), printed


def test_the_order_feature_token_turns_every_axis_round(bench: Path, models: Mapping[str, Path]) -> None:
    engine = compile_engine(bench)
    plain, _ = _dumped(engine, models["F32"], bench / "plain", "")
    turned, _ = _dumped(engine, models["F32"], bench / "turned", "--order feature-token")
    assert plain.sites() == turned.sites()
    assert not turned.layouts
    for site in plain:
        assert (turned[site] == plain[site].T).all(), site
        assert turned.shape(site) == plain.shape(site)[::-1]


def test_printed_lines_are_statistics_of_the_tensors(bench: Path, models: Mapping[str, Path]) -> None:
    trace, printed = _dumped(compile_engine(bench), models["F32"], bench / "printed", "--print")
    line = re.compile(
        r"(?:\[layer (\d+)\] )?(\w+) rms=(\S+) min=(\S+) max=(\S+) mean=(\S+) first 10: \[(.+)\]", re.ASCII
    )
    lines = printed.splitlines()
    assert len(lines) == len(trace.sites())
    for text, site in zip(lines, trace, strict=True):
        found = line.fullmatch(text)
        assert found is not None, text
        layer, point = found[1], found[2]
        assert Site(site.step, None if layer is None else int(layer), point) == site
        x = trace[site].astype(np.float64)
        statistics = [np.sqrt((x**2).mean()), x.min(), x.max(), x.mean(), *x.ravel()[:10]]
        said = [float(word) for word in (*found.groups()[2:6], *found[7].split(", "))]
        np.testing.assert_allclose(said, statistics, rtol=1e-5, atol=1e-6)  # six digits are printed


def test_the_engine_computes_nothing_that_c_leaves_undefined(
    bench: Path, models: Mapping[str, Path], tmp_path: Path
) -> None:
    flags = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    engine = compile_engine(bench, flags=flags)
    for kind in ("F16", "Q8_0", "Q4_1", "Q4_0"):
        run_engine(engine, models[kind], PROMPT, tmp_path / kind)
        assert open_trace(tmp_path / kind).complete
