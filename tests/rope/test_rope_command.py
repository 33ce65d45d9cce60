"""The rope command: expected tables, and what angles fitted from a trace say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from builders.models import synthetic
from builders.tiny_models import tiny
from builders.traces import MemoryWriter
from firstdiff.cli import main
from firstdiff.commands.rope import rope_command
from firstdiff.dumps import Trace, TraceError, TraceWriter
from firstdiff.errors import UsageError
from firstdiff.hypotheses import TABLE, Hypothesis, Scene
from firstdiff.hypotheses.planting import Planted, record_planted
from firstdiff.hypotheses.where import ROTATIONS
from firstdiff.model.architectures import llama
from firstdiff.model.arithmetic import F32, GGML_CPU, Arithmetic
from firstdiff.model.engine import ARCHITECTURES, Model, open_model
from firstdiff.model.probe import Call
from firstdiff.rope.fit import FittedAngles, describe, fitted_angles
from firstdiff.rope.says import Finding
from firstdiff.rope.table import rope_table

SHAPE = {"n_layer": 2, "n_embd": 128, "n_head": 4, "n_head_kv": 2, "head_dim": 32, "n_ff": 64}
TOKENS = [1, *range(260, 280)]

Change = Callable[[Call], Call]


def attribute(name: str, wrong: Callable[[Any], Any]) -> Change:
    return lambda call: replace(call, attributes=call.attributes | {name: wrong(call.attributes[name])})


def positions(wrong: Callable[[Call, int], int]) -> Change:
    def change(call: Call) -> Call:
        x, at, factors = call.inputs
        return replace(call, inputs=(x, [wrong(call, p) for p in at], factors))

    return change


def output(wrong: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Change:
    def change(call: Call) -> Call:
        return replace(call, op=lambda *inputs, **rest: wrong(call.op(*inputs, **rest)))

    return change


def frequencies(of: Callable[[np.ndarray[Any, Any], int, float], np.ndarray[Any, Any]]) -> Change:
    """Rotation by other frequencies, a function of pairs, head_dim and base."""

    def change(call: Call) -> Call:
        def op(x: Any, at: Any, _: object, *, base: float, arithmetic: Arithmetic, **__: object) -> Any:
            theta = np.outer(at, of(np.arange(x.shape[-1] // 2), x.shape[-1], base))[:, None, :]
            z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * theta)
            return arithmetic.widen(np.stack([z.real, z.imag], -1).reshape(x.shape))

        return replace(call, op=op)

    return change


def traced(
    model: Model, change: Change | None, arithmetic: Arithmetic = GGML_CPU, decode: int = 2, layer: int | None = None
) -> Trace:
    writer = MemoryWriter()
    wrong = Hypothesis("wrong", ROTATIONS, "wrong", "right it", lambda call, *_: change and change(call))
    planted = [Planted(wrong, layer)] if change else []
    record_planted(model, TOKENS, writer, arithmetic=arithmetic, decode=decode, planted=planted)
    return writer.trace()


def fitted(model: Model, change: Change | None, **rest: Any) -> FittedAngles:
    trace = traced(model, change, **rest)
    found = [fitted_angles(model, trace, 1, point) for point in ("Qcur_rope", "Kcur_rope")]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].finding.id == found[1].finding.id
    return found[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("rope"), **SHAPE))


@pytest.fixture(scope="module")
def tinyllama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    shape = {"n_layer": 1, "n_embd": 64, "n_head": 1, "n_head_kv": 1, "head_dim": 64, "n_ff": 32}
    return open_model(synthetic(tmp_path_factory.mktemp("tiny"), **shape))


def test_the_table_is_the_case_study_s(tinyllama: Model) -> None:
    table = rope_table(tinyllama, (0, 1, 2))
    np.testing.assert_allclose(table.frequencies[:3], [1, 0.7498942, 0.5623413], rtol=1e-6)
    np.testing.assert_allclose(np.cos(table.theta[1, :3]), [0.5403023, 0.731761, 0.84600914], rtol=1e-6)
    np.testing.assert_allclose(np.sin(table.theta[1, :3]), [0.84147096, 0.6815613, 0.53316844], rtol=1e-6)
    np.testing.assert_allclose(np.cos(table.theta[2, :3]), [-0.41614684, 0.07094827, 0.43146282], rtol=1e-6)
    assert (table.theta[0] == 0).all()


def test_the_command_prints_chosen_pairs_and_positions(tinyllama: Model) -> None:
    text, plain, code = rope_command(model=tinyllama.gguf.path, positions=(1,), pairs=(0, 2))
    assert code == 0
    assert "0.84147098" in text
    assert text.count("\n") == 4
    assert plain["pairs"] == [0, 2]
    np.testing.assert_allclose(plain["cos"], [[0.5403023, 0.84600914]], rtol=1e-6)


@pytest.mark.parametrize("arithmetic", [GGML_CPU, F32])
def test_a_right_rotation_agrees(model: Model, arithmetic: Arithmetic) -> None:
    fit = fitted(model, None, arithmetic=arithmetic)
    assert fit.agrees
    assert fit.pairing == "interleaved"
    assert fit.residuals["interleaved"] < 1e-6
    assert fit.residuals["half"] > 0.1
    np.testing.assert_allclose(np.exp(1j * fit.theta), np.exp(1j * fit.expected), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("id_", "change"),
    [
        ("rope-scale", attribute("scale", lambda s: s / 4)),
        ("rope-scale", attribute("scale", lambda s: s * 8)),
        ("rope-sign", attribute("scale", lambda s: -s)),
        ("rope-twice", attribute("scale", lambda s: 2 * s)),
        ("rope-none", attribute("scale", lambda _: 0.0)),
        ("rope-base", attribute("base", lambda _: 500000.0)),
        ("rope-pairing", attribute("pairing", lambda _: "half")),
        ("rope-offset", positions(lambda _, p: p + 1)),
        ("rope-offset", positions(lambda call, p: p - 20 if call.step else p)),
        ("rope-yarn-magnitude", output(lambda x: x * x.dtype.type(1.261))),
        ("rope-denominator", frequencies(lambda i, d, base: base ** (-4 * i / d))),
        ("rope-denominator", frequencies(lambda i, _, base: base ** (-2 * i / 128))),
        ("rope-factors", frequencies(lambda i, d, base: base ** (-2 * i / d) / np.where(i > 8, 8, 1))),
        ("unexplained", output(lambda x: x[..., ::-1].copy())),
        ("unexplained", output(lambda x: x * x.dtype.type("nan"))),
    ],
)
def test_a_wrong_rotation_is_named(model: Model, id_: str, change: Change) -> None:
    fit = fitted(model, change)
    assert fit.finding.id == id_, fit.finding.says
    assert not fit.agrees


def found(model: Model, change: Change) -> Finding:
    return fitted(model, change).finding


def test_the_numbers_of_a_wrong_rotation_are_given(model: Model) -> None:
    assert found(model, attribute("base", lambda _: 500000.0)).values["base"] == pytest.approx(500000, rel=1e-3)
    assert found(model, attribute("scale", lambda s: s / 4)).values["factor"] == pytest.approx(0.25, rel=1e-4)
    assert found(model, positions(lambda _, p: p + 3)).values["offset"] == 3
    assert found(model, output(lambda x: x * x.dtype.type(1.261))).values["magnitude"] == pytest.approx(1.261)


def test_positions_that_start_again_are_said_to(model: Model) -> None:
    restarted = TABLE["rope-position"].change
    finding = found(model, lambda call: restarted(call, Scene(model, GGML_CPU, lambda _: None), {}) or call)
    assert finding.id == "rope-position"
    assert finding.says == f"{TABLE['rope-position'].says}, from step 1 on"


def test_a_single_token_elsewhere_is_said_to_be_there_and_not_to_be_scaled(model: Model) -> None:
    finding = fitted(model, positions(lambda call, p: p - 20 if call.step else p), decode=1).finding
    assert finding.id == "rope-position"
    assert finding.says == "step 1 at position 21 is turned as if at 1"


def test_a_fault_of_some_steps_is_said_to_be_one(model: Model) -> None:
    finding = found(model, lambda call: attribute("base", lambda _: 500000.0)(call) if call.step == 0 else call)
    assert (finding.id, finding.says.partition(", in ")[2]) == ("rope-base", "step 0")


def test_two_faults_of_one_rotation_are_both_named(model: Model) -> None:
    finding = found(model, lambda call: attribute("pairing", lambda _: "half")(positions(lambda _, p: p + 2)(call)))
    assert finding.id == "rope-pairing + rope-offset"
    assert finding.values == {"offset": 2}


def test_frequency_factors_that_are_ignored_are_named(tmp_path: Path) -> None:
    model = open_model(synthetic(tmp_path, rope_factors=True, **SHAPE))
    assert fitted(model, None).agrees
    finding = found(model, lambda call: replace(call, inputs=(*call.inputs[:2], None)))
    assert finding.id == "rope-factors"
    assert finding.values == {"factor": 1}  # which is none


@pytest.mark.parametrize("bug", [None, "rope-pairing"])
def test_one_kv_head_is_enough_to_tell_the_pairing(tmp_path: Path, bug: str | None) -> None:
    model = open_model(synthetic(tmp_path, **SHAPE | {"n_head_kv": 1}))
    fit = fitted(model, attribute("pairing", lambda _: "half") if bug else None)
    assert fit.finding.id == (bug or "agrees")


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def half_split(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(tiny(request.param, tmp_path_factory.mktemp("half")))


@pytest.mark.parametrize("bug", [None, "rope-pairing", "rope-base", "rope-offset"])
def test_architectures_that_pair_half_split_are_judged_by_their_own_rotation(
    half_split: Model, tmp_path: Path, bug: str | None
) -> None:
    with TraceWriter(tmp_path / "trace", engine={}, model={}) as writer:
        planted = [Planted(TABLE[bug], 2)] if bug else []
        record_planted(half_split, TOKENS, writer, arithmetic=F32, decode=1, planted=planted)
    before = "Qcur_normed" if half_split.architecture == "qwen3" else "Qcur"
    for layer in (1, 2):
        text, plain, code = rope_command(model=half_split.gguf.path, trace=tmp_path / "trace", layer=layer)
        says = bug if bug and layer == 2 else "agrees"
        assert {point: fit["id"] for point, fit in plain.items()} == {"Qcur_rope": says, "Kcur_rope": says}
        assert code == (says != "agrees")
        assert text.startswith(f"{before}-{layer} -> Qcur_rope-{layer}: ")
        instead = says == "rope-pairing"
        assert ("Pairing interleaved fits, where the model pairs half," in text) == instead
        assert ("Pairing half fits" in text) != instead


def test_an_architecture_without_rotation_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "llama", SimpleNamespace(**vars(llama) | {"rotation": lambda _: None}))
    with pytest.raises(UsageError, match="the architecture llama does not rotate queries and keys"):
        rope_command(model=model.gguf.path)


def test_values_dumped_in_half_precision_still_agree(model: Model) -> None:
    fit = fitted(model, output(lambda x: x.astype(np.float16).astype(x.dtype)))
    assert fit.agrees, fit.finding.says


def test_the_description_puts_fitted_beside_expected(model: Model) -> None:
    text = describe(fitted(model, attribute("scale", lambda s: s / 4)), [3], [0])
    assert "multiplied by 0.25 (rope-scale)" in text
    assert "3.00000000" in text
    assert "0.7500000" in text
    assert "interleaved" in text


def test_the_command_judges_a_trace(model: Model, tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "trace", engine={}, model={}) as writer:
        record_planted(model, TOKENS, writer, arithmetic=F32)
    text, plain, code = rope_command(model=model.gguf.path, trace=tmp_path / "trace")
    assert code == 0
    assert set(plain) == {"Qcur_rope", "Kcur_rope"}
    assert "the model's file asks for" in text


def relaid(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x.transpose(1, 0, 2)  # [head, token, head_dim]


def halved(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([x[..., 0::2], x[..., 1::2]], -1)  # as before GGUF's conversion


DUMPS: dict[str, tuple[Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], bool, str]] = {
    "stated": (relaid, True, "{}-{layer}"),
    "found": (relaid, False, "{}-{layer}"),
    "in Hugging Face's order": (halved, False, "{}-{layer}"),
    "by other names": (lambda x: x, False, "mine.{layer}.{}"),
    "all of it": (lambda x: relaid(halved(x)), False, "mine.{layer}.{}"),
}


def dumped(
    folder: Path,
    trace: Trace,
    relay: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
    name: str,
    *,
    stated: bool,
) -> Path:
    """A dump of queries and keys around the rotation, laid out and named in another way."""
    points = ("Qcur", "Kcur", "Qcur_rope", "Kcur_rope")
    manifest: dict[str, Any] = {"steps": [{"tokens": step.tokens, "positions": step.positions} for step in trace.steps]}
    if stated:
        manifest["layouts"] = dict.fromkeys(points, ("head", "token", "head_dim"))
    folder.mkdir()
    (folder / "trace.json").write_text(json.dumps(manifest))
    for index in range(len(trace.steps)):
        held = {s: np.ascontiguousarray(relay(trace[s])) for s in trace if s.step == index and s.point in points}
        tensors = {name.format(s.point, layer=s.layer): x for s, x in held.items()}
        save_file(tensors, folder / f"step-{index:03}.safetensors")
    (folder.parent / "names.json").write_text(json.dumps({name.format(p, layer="{layer}"): p for p in points}))
    return folder


@pytest.mark.parametrize("kind", DUMPS)
def test_the_command_understands_a_trace_as_judging_does(tmp_path: Path, kind: str) -> None:
    model = open_model(synthetic(tmp_path, **SHAPE | {"n_layer": 3}))  # layouts are found where most layers are right
    relay, stated, name = DUMPS[kind]
    names = str(tmp_path / "names.json") if name.startswith("mine") else None
    for folder, change, code, says in (
        ("right", None, 0, "agrees"),
        ("wrong", attribute("base", lambda _: 500000.0), 1, "rope-base"),
    ):
        trace = dumped(tmp_path / folder, traced(model, change, F32, layer=1), relay, name, stated=stated)
        _, plain, exit_code = rope_command(model=model.gguf.path, trace=trace, names=names, layer=1)
        assert {point: fit["id"] for point, fit in plain.items()} == {"Qcur_rope": says, "Kcur_rope": says}
        assert exit_code == code


def test_the_command_takes_names_as_the_others_do(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = dumped(tmp_path / "dump", traced(model, None, F32), relaid, "mine.{layer}.{}", stated=False)
    command = ["rope", str(model.gguf.path), "--trace", str(trace)]
    assert main([*command, "--names", str(tmp_path / "names.json")]) == 0
    assert "Qcur-0 -> Qcur_rope-0: the angles are those" in capsys.readouterr().out


def test_tokens_may_be_given_for_a_dump_that_does_not_say_them(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = dumped(tmp_path / "dump", traced(model, None, F32), relaid, "{}-{layer}", stated=False)
    (trace / "trace.json").unlink()
    command = ["rope", str(model.gguf.path), "--trace", str(trace)]
    assert main(command) == 3
    assert "--tokens" in capsys.readouterr().err
    assert main([*command, "--tokens", ",".join(map(str, [*TOKENS, 5, 6]))]) == 0


def test_a_trace_of_another_model_is_refused(model: Model, tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "trace", engine={}, model={"file": "other.gguf", "sha256": "0" * 64}) as writer:
        record_planted(model, TOKENS, writer, arithmetic=F32)
    with pytest.raises(TraceError, match=r"is a trace of another model \(other\.gguf"):
        rope_command(model=model.gguf.path, trace=tmp_path / "trace")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": [1]}, "give --trace too"),
        ({"pairs": [16]}, "pairs 0 to 15"),
        ({"positions": [-1]}, "a position is"),
        ({"layer": 2, "trace": True}, "layers 0 to 1"),
        ({"trace": True}, "record them before and after"),
    ],
)
def test_what_cannot_be_is_refused(model: Model, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    if "trace" in options:
        with TraceWriter(tmp_path / "trace", engine={}, model={}) as writer:
            from firstdiff.dumps import Step

            writer.step(Step((1,), (0,)), {"embd": np.zeros((1, 128), np.float32)})
        options = options | {"trace": tmp_path / "trace"}
    with pytest.raises(UsageError, match=words):
        rope_command(model=model.gguf.path, **options)
