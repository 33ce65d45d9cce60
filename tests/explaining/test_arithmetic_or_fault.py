"""Whether an arithmetic that explains some sites is the engine's own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders.verdicts import explanation, site, wrong
from firstdiff.explaining.arithmetic_or_fault import ARITHMETIC, engines_own
from firstdiff.hypotheses import TABLE
from firstdiff.judging.arithmetic import HANDFUL, STRONG, Evidence, Fingerprint
from firstdiff.model.arithmetic import BF16, F32
from firstdiff.verdict import SiteVerdict

ERROR = 3e-3


def norm(layer: int, error: float) -> SiteVerdict:
    return replace(site("attn_norm", layer, local_error=error), op="rms_norm")


def reconsidered(*, hypothesis: str, others: float, strength: float, same: tuple[str, ...] = ()) -> Fingerprint | None:
    """What is made of an explanation of layer 1's norm, `others` being the error at the other layers."""
    evidence = Evidence("f32", others, "bf16", strength, HANDFUL, fits=True, same=same)
    faulty = wrong(norm(1, ERROR), local_error=ERROR)
    told = replace(
        explanation(1), site=faulty.site, sites=(faulty.site,), hypothesis=hypothesis, attributes={"arithmetic": "bf16"}
    )
    sites = [norm(0, others), faulty, norm(2, others)]
    return engines_own(Fingerprint(F32, {"norm": evidence}), sites, [told], [1])


def test_the_hypothesis_is_in_the_table() -> None:
    assert TABLE[ARITHMETIC].everywhere == "arithmetic"


@pytest.mark.parametrize(
    ("hypothesis", "others", "strength", "taken"),
    [
        (ARITHMETIC, 2e-3, 1.1, True),
        (ARITHMETIC, ERROR / STRONG / 2, 1.1, False),  # the other norms are far more exact
        (ARITHMETIC, 2e-3, 2 * STRONG, False),  # what norms are computed in is known
        (f"norm-eps + {ARITHMETIC}", ERROR / STRONG / 2, 1.1, True),  # the other fault stays one
        ("norm-eps", 2e-3, 1.1, False),
    ],
)
def test_an_arithmetic_is_the_engines_own_where_its_group_allows_it(
    hypothesis: str, others: float, strength: float, *, taken: bool
) -> None:
    found = reconsidered(hypothesis=hypothesis, others=others, strength=strength)
    assert (found is not None) == taken
    if found is not None:
        assert found.groups["norm"].name == "bf16"
        assert found.levels.groups == {"norm": BF16.floor}
        assert found.arithmetic == F32  # products are what they were


def test_of_two_arithmetics_that_fit_alike_the_engines_own_is_the_one_that_explains() -> None:
    told = reconsidered(hypothesis=ARITHMETIC, others=2e-3, strength=2 * STRONG, same=("bf16",))
    assert told is not None
    assert told.groups["norm"].name == "bf16"


def test_an_arithmetic_is_the_engines_own_in_the_steps_that_it_explains() -> None:
    def phase(strength: float) -> Fingerprint:
        return Fingerprint(F32, {"norm": Evidence("f32", 2e-3, "bf16", strength, HANDFUL, fits=True)})

    many, one = phase(1.1), phase(1.2)
    found = replace(many, phases=((8, many), (1, one)))
    right, later = norm(0, 2e-3), wrong(norm(1, ERROR), local_error=ERROR)
    later = replace(later, site=replace(later.site, step=1))
    told = replace(
        explanation(1), site=later.site, sites=(later.site,), hypothesis=ARITHMETIC, attributes={"arithmetic": "bf16"}
    )
    own = engines_own(found, [right, later], [told], [8, 1])
    assert own is not None
    assert [(tokens, of.groups["norm"].name) for tokens, of in own.phases] == [(8, "f32"), (1, "bf16")]
    assert own.groups["norm"].name == "f32"
