"""Verdicts made by hand, for what is rendered and read: every field can be seen, and none takes a model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from firstdiff.dumps import Site
from firstdiff.dumps.points import axes_of
from firstdiff.judging.closeup import BRIEF, FULL, measure_detail
from firstdiff.verdict import (
    CounterCheck,
    Detail,
    DumpFinding,
    Element,
    Explanation,
    Failed,
    Fault,
    Logits,
    Sensitivity,
    SiteVerdict,
    Smallest,
    Status,
    Tried,
    Verdict,
    Witness,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

LLAMA = tuple(
    """attn_norm Qcur Kcur Vcur Qcur_rope Kcur_rope k_cache v_cache kq kq_soft_max kqv_out attn_out ffn_inp ffn_norm
    ffn_gate ffn_up ffn_swiglu ffn_out l_out""".split()  # noqa: SIM905 - a list of words
)
WRONG = ("Qcur_rope", "Kcur_rope")
DRIFT = 3e-3
HOSTILE = "<script>window.pwned=1</script>\"'><img src=x onerror=window.pwned=1>&lt;{{7*7}}\u202e\x00\n</title>"

NAME = "".join(c for c in HOSTILE if c.isprintable() and c not in "/\\")
"""As hostile as the name of a tensor can be."""


def site(point: str, layer: int | None = None, step: int = 0, **rest: Any) -> SiteVerdict:
    measured: dict[str, Any] = {"status": Status.AGREES, "local_error": 2e-7, "floor": 1e-6}
    return SiteVerdict(Site(step, layer, point), "linear", **(measured | rest))


def wrong(good: SiteVerdict, **rest: Any) -> SiteVerdict:
    error: dict[str, Any] = {
        "status": Status.DIVERGES,
        "local_error": 0.83,
        "worst": Element((1, 0, 2), 0.41, -0.42),
        "where": {"token": "all but 0", "head": "all", "head_dim": "all"},
    }
    return replace(good, **(error | rest))


def unrecorded(s: SiteVerdict) -> SiteVerdict:
    return replace(s, status=Status.NOT_RECORDED, local_error=None, floor=None)


def sites(
    *,
    layers: int = 2,
    steps: int = 1,
    bug: int | None = None,
    points: Sequence[str] = LLAMA,
    drift: float | None = None,
) -> list[SiteVerdict]:
    """Clean, or with a wrong rope at layer `bug` of every step, which all later sites inherit from."""
    told: list[SiteVerdict] = []
    for step in range(steps):
        own = [
            site("embd", step=step, drift=drift and 0.0),
            *(site(p, layer, step, drift=drift) for layer in range(layers) for p in points),
            site("result_norm", step=step, drift=drift),
            site("result_output", step=step, drift=drift),
        ]
        after = False
        for s in own:
            if s.layer == bug and s.point in WRONG and bug is not None:
                told.append(wrong(s, op="rope"))
                after = True
            else:
                told.append(replace(s, status=Status.INHERITS, inputs_right=False) if after else s)
    return told


def detail(s: SiteVerdict, seed: int) -> Detail:
    """Of random numbers, of a shape that the point could have; as large as a detail gets."""
    heads = s.point[0] in "QKVk" and s.point != "kqv_out"
    return _detail(s.local_error or 0.0, seed % 50, heads=heads, full=s.status is Status.DIVERGES)


@cache
def _detail(error: float, seed: int, *, heads: bool, full: bool) -> Detail:
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((40, 9, 64) if heads else (40, 576))
    candidate = reference * (1 + error * rng.standard_normal(reference.shape))
    axes = axes_of("Qcur" if heads else "l_out")
    return measure_detail(candidate, reference, axes=axes, size=FULL if full else BRIEF)


def explanation(bug: int) -> Explanation:
    fits = Tried("rope-pairing", "half-split pairs in place of interleaved ones", 2e-7)
    other = Tried("rope-base", "a rope base of 500000 in place of the file's", 0.41)
    return Explanation(
        site=Site(0, bug, "Qcur_rope"),
        sites=(Site(0, bug, "Qcur_rope"), Site(0, bug, "Kcur_rope")),
        extent=f"Qcur_rope and Kcur_rope at layer {bug}",
        hypothesis=fits.hypothesis,
        says=fits.says,
        fix="turn neighbours, (0, 1), (2, 3) and so on",
        attributes={"pairing": "half"},
        error=0.83,
        residual=fits.residual,
        floor=1e-6,
        next_best=other,
        tried=(fits, other),
    )


def verdict_of(told: Sequence[SiteVerdict], **rest: Any) -> Verdict:
    """A verdict of these sites, which says nothing more than it must."""
    record: dict[str, Any] = {
        "candidate": "rustorch 0.6.27 (metal)",
        "against": "llama.cpp:cpu",
        "model": {"file": "tiny.gguf"},
        "tokens": ((1, 2, 3), (4,)),
        "arithmetic": {"linear": "ggml-cpu"},
        "sites": tuple(told),
    }
    return Verdict(**(record | rest))


def verdict(*, layers: int = 2, steps: int = 2, bug: int | None = None, details: bool = False, **rest: Any) -> Verdict:
    """A verdict that says all that one can: witness, logits, drift, and with a bug its explanation."""
    told = sites(layers=layers, steps=steps, bug=bug, drift=DRIFT)
    record: dict[str, Any] = {
        "model": {"file": "tiny.gguf", "architecture": "llama", "layers": layers, "sha256": "ab" * 32},
        "tokens": (tuple(range(1, 41)), *((n,) for n in range(1, steps))),
        "pieces": tuple(f" w{n}" for n in range(40)),
        "arithmetic": {"linear": "ggml-cpu", "attention": "ggml-cpu"},
        "preflight": {"tokens": "agrees", "positions": "agrees", "weights": "not recorded"},
        "logits": (Logits(0, 5, 5, 1.0, 1e-3, 1e-2),),
        "witness": Witness("llama.cpp:cpu", len(told), ()),
        "run": {"command": ["firstdiff", "run", "a b.gguf"], "versions": {"firstdiff": "0.1.0"}, "machine": "x86_64"},
    }
    if bug is not None:
        record["explanations"] = (explanation(bug),)
        record["counter_check"] = CounterCheck(("rope-pairing",), (), judged=len(told))
    if details:
        record["details"] = {s.site: detail(s, n) for n, s in enumerate(told) if s.local_error is not None}
    return verdict_of(told, **(record | rest))


def unexplained() -> Verdict:
    """Nothing explains it; some sites were not recorded, one is not comparable, and numbers turned infinite."""
    told = list(verdict(bug=1).sites)
    places = {str(s.site): i for i, s in enumerate(told)}
    for point in ("Qcur-1", "Kcur-1"):
        told[places[point]] = replace(unrecorded(told[places[point]]), drift=None)
    told[places["Qcur_rope-1"]] = replace(
        told[places["Qcur_rope-1"]],
        local_error=float("inf"),
        not_finite=7,
        worst=Element((1, 0, 2), float("nan"), 0.5),
        segment=(Site(0, 1, "Qcur"),),
    )
    told[places["v_cache-0"]] = replace(
        told[places["v_cache-0"]], status=Status.NOT_COMPARABLE, local_error=None, floor=None, reason="its shape is 3"
    )
    says = "not explained, because none of 2 hypotheses that apply gives these numbers"
    why = replace(explanation(1), hypothesis=None, says=says, fix="", attributes={}, residual=None, findings=("odd",))
    check = CounterCheck(("rope-base",), (Site(0, 1, "Kcur_rope"),))
    failed = tuple(
        Failed(id_, Site(0, 1, "Kcur_rope"), "KeyError: 'x'") for id_ in ("rope-sign", "norm-eps + rope-sign")
    )
    return verdict(sites=tuple(told), explanations=(why,), counter_check=check, failed=failed)


def wrong_dump(**rest: Any) -> Verdict:
    """A dump that does not hold a point; the engine is right, or as `rest` has it."""
    told = verdict(**rest)
    covered = [s.site for s in told.sites if s.point == "l_out"]
    finding = DumpFinding(
        "branch-as-sum", "l_out at every layer: your dump holds the branch", "dump the sum", (*covered,)
    )
    gone = {"status": Status.NOT_COMPARABLE, "local_error": None, "floor": None, "reason": finding.reason}
    return replace(
        told, dump=(finding,), sites=tuple(replace(s, **gone) if s.site in covered else s for s in told.sites)
    )


def hostile() -> Verdict:
    """Every text that a trace or a file can bring."""
    told = (
        site("embd", drift=DRIFT),
        wrong(site(NAME, 0, drift=DRIFT), op="rope"),
        replace(site("l_out", 0, drift=DRIFT), op=HOSTILE),
        site("[red]" + "名" * 80, 0, drift=DRIFT),
    )
    why = replace(
        explanation(0),
        site=told[1].site,
        sites=(told[1].site,),
        extent=HOSTILE,
        says=HOSTILE,
        fix=HOSTILE,
        note=HOSTILE,
        separate=HOSTILE,
        findings=(HOSTILE,),
        attributes={HOSTILE: [HOSTILE, 1, None]},
        equals=(Tried(HOSTILE, HOSTILE, 0.0),),
        tried=(Tried(HOSTILE, HOSTILE, 0.0),),
    )
    return verdict(
        sites=told,
        candidate=HOSTILE,
        against=HOSTILE,
        model={"file": HOSTILE, HOSTILE: HOSTILE},
        pieces=(HOSTILE,) * 40,
        notes=(HOSTILE, "w" * 500),
        preflight={"tokens": HOSTILE},
        layouts={"embd": HOSTILE},
        arithmetic={HOSTILE: HOSTILE},
        explanations=(why,),
        counter_check=CounterCheck((HOSTILE,), (told[1].site,)),
        run={"command": ["firstdiff", HOSTILE], "versions": {HOSTILE: HOSTILE}, "machine": HOSTILE},
        witness=None,
        dump=(DumpFinding(HOSTILE, HOSTILE, HOSTILE, (told[1].site,), judged=True),),
        failed=(Failed(HOSTILE, told[1].site, HOSTILE),),
    )


def at(name: str, share: float, seen: str = "", element: tuple[int, int] | None = None) -> Smallest:
    """The smallest change at a site, seen there or at another one."""
    return Smallest(Site.parse(name), share, Site.parse(seen or name), element)


SENSITIVITY = (
    Sensitivity(Fault.NORM_EPSILON, at("attn_norm-0", 0.1843), at("ffn_norm-1", 211.0), 5),
    Sensitivity(Fault.ROPE_BASE, at("Qcur_rope-0", 4.87e-6), at("Kcur_rope-1", 5.2e-6), 4),
    Sensitivity(Fault.SOFTMAX_SCALE, None, None, 0),
    Sensitivity(Fault.MATRIX, at("Qcur-0", 0.0273, "l_out-0"), None, 1),
    Sensitivity(Fault.WEIGHT, at("Qcur-1", 0.17, element=(3, 4)), at("ffn_out-1", 14.2, element=(3, 5)), 2),
    Sensitivity(Fault.EMBEDDING, at("embd", float("inf")), None, 1),
)
"""How small faults may be: large and small, at one place and at several, seen elsewhere, not at all, unknown."""


EVERY_KIND = {
    "clean": verdict(),
    "clean, with what would have shown": verdict(sensitivity=SENSITIVITY),
    "detailed": verdict(details=True, layers=3, bug=1),
    "wrong": verdict(bug=1),
    "later": verdict(
        steps=3,
        sites=tuple(wrong(s, op="rope") if str(s.site) == "k_cache-1@2" else s for s in sites(steps=3, drift=DRIFT)),
    ),
    "reads rows that the dump lacks": verdict(
        sites=tuple(
            replace(wrong(s, op="scores"), leans=True) if str(s.site) == "kq-1" else s for s in sites(drift=DRIFT)
        )
    ),
    "unexplained": unexplained(),
    "beside": verdict(witness=Witness("mine", 80, (Site(0, 1, "Qcur_rope"), Site(0, 1, "Kcur_rope")), judged_too=True)),
    "incomparable": verdict(sites=tuple(map(unrecorded, sites(drift=DRIFT)))),
    "empty": verdict(sites=(), tokens=(), pieces=(), logits=(), witness=None, run={}, model={}),
    "hostile": hostile(),
    "wrong dump": wrong_dump(),
    "wrong dump and engine": wrong_dump(bug=1),
}
