"""firstdiff.toml: the matrix that it stands for, and every mistake in it named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from builders.command_line import Command, assert_refused
from firstdiff.errors import UsageError
from firstdiff.gate.config import GateCase, Limits, Prompt, read_config

WHOLE = """
decode = [0, 4]
baseline = "kept"
names = "hf"
timeout = 20

[models]
small = "models/small.gguf"
big = "/models/big.gguf"

[prompts]
ids = [1, 2]
text = "Hello"
asked = {text = "Who?", chat = true}

[engines]
mine = "./mine {dump}"
"llama.cpp" = "llama.cpp:cpu"

[traces]
old = {path = "old", model = "big", prompt = "text"}

[limits]
floors = 2
coverage = 0.9
kl = 0.01
allowed = ["norm-eps"]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "firstdiff.toml"
    path.write_text(text)
    return path


def test_the_matrix_is_models_by_prompts_by_engines_by_steps_and_the_stored_traces(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, WHOLE))
    cases = {case.name: case for case in config.cases}
    assert len(cases) == len(config.cases) == 2 * 3 * 2 * 2 + 1
    assert cases["small/ids/mine/decode-4"] == GateCase(
        "small/ids/mine/decode-4", tmp_path / "models/small.gguf", Prompt(tokens=(1, 2)), 4, "./mine {dump}"
    )
    assert cases["big/asked/llama.cpp/decode-0"].prompt == Prompt("Who?", chat=True)
    assert cases["big/old"] == GateCase("big/old", Path("/models/big.gguf"), Prompt("Hello"), trace=tmp_path / "old")
    assert config.limits == Limits(2.0, 0.9, 0.01, ("norm-eps",))
    assert (config.baseline, config.names, config.timeout) == (tmp_path / "kept", "hf", 20.0)


def test_little_is_needed(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, '[models]\nm = "m.gguf"\n[traces]\nt = "t"\n[engines]\ne = "e {dump}"\n'))
    assert [case.name for case in config.cases] == ["m/default/e", "m/t"]
    assert config.cases[0].prompt == Prompt()
    assert config.limits == Limits()
    assert config.baseline == tmp_path / "firstdiff-baseline"


def test_the_example_of_the_readme_is_read(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    config = read_config(written(tmp_path, example))
    assert [case.name for case in config.cases] == ["tiny/digits/mine", "tiny/bytes/mine", "tiny/metal"]
    assert config.limits == Limits(1.0, 0.9, 0.01, ("norm-eps",))


MODEL = '[models]\nm = "m.gguf"\n'
TRACE = MODEL + '[traces]\nt = "t"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[modles]\n", ("unknown key 'modles'", "did you mean 'models'?", "there are models, prompts")),
        ("zzz = 1\n", ("unknown key 'zzz':", "there are")),
        (TRACE + "[limits]\nflors = 2\n", ("unknown key 'limits.flors'", "did you mean 'floors'?")),
        (MODEL + '[traces]\nt = {path = "t", modle = "m"}\n', ("'traces.t.modle'", "did you mean 'model'?")),
        (TRACE + '[prompts]\np = {text = "x", cat = true}\n', ("'prompts.p.cat'", "did you mean 'chat'?")),
        ("", ("names no model",)),
        (MODEL, ("names no case", "[engines]", "[traces]")),
        ('models = "m.gguf"\n', ("models is 'm.gguf'", "give a table, [models]")),
        ("[models]\nm = 3\n", ("models.m is 3", "a text in quotes")),
        ('[models]\n"../m" = "m.gguf"\n', ("'../m'", "is no name of a case")),
        ('[models]\n"" = "m.gguf"\n', ("is no name of a case",)),
        (MODEL + '[engines]\n"a/b" = "x"\n', ("'a/b'", "is no name of a case")),
        (MODEL + '[engines]\ne = ""\n', ("engines.e", "a text in quotes")),
        (MODEL + "[traces]\nt = 1\n", ("traces.t is 1", "give a path, or a table")),
        (MODEL + "[traces]\nt = {}\n", ("traces.t.path is None",)),
        (MODEL + '[traces]\nt = {path = "t", model = "mm"}\n', ("traces.t.model is 'mm'", "did you mean 'm'?")),
        (MODEL + 'n = "n.gguf"\n[traces]\nt = "t"\n', ("traces.t.model is missing", "m, n")),
        (MODEL + '[traces]\nt = {path = "t", prompt = "p"}\n', ("traces.t.prompt is 'p'", "there are none")),
        (TRACE + "[prompts]\np = []\n", ("prompts.p is []", "token ids")),
        (TRACE + "[prompts]\np = [1, -1]\n", ("token ids",)),
        (TRACE + "[prompts]\np = [1, true]\n", ("token ids",)),
        (TRACE + "[prompts]\np = 7\n", ("prompts.p is 7",)),
        (TRACE + "[prompts]\np = {}\n", ("either text or tokens",)),
        (TRACE + '[prompts]\np = {text = "x", tokens = [1]}\n', ("either text or tokens",)),
        (TRACE + '[prompts]\np = {text = "x", chat = 1}\n', ("prompts.p.chat is 1", "true or false")),
        (TRACE + "[prompts]\np = {tokens = [1], chat = true}\n", ("chat and special are for a text",)),
        ("decode = -1\n" + MODEL + '[engines]\ne = "e"\n', ("decode is -1",)),
        ("decode = []\n" + MODEL + '[engines]\ne = "e"\n', ("decode is []",)),
        ("timeout = 0\n" + TRACE, ("timeout is 0",)),
        (TRACE + "[limits]\nfloors = 0.5\n", ("limits.floors is 0.5", "from 1 on")),
        (TRACE + "[limits]\nfloors = nan\n", ("limits.floors is nan",)),
        (TRACE + "[limits]\ncoverage = 1.5\n", ("limits.coverage is 1.5", "from 0 to 1")),
        (TRACE + '[limits]\nkl = "x"\n', ("limits.kl is 'x'",)),
        (TRACE + "[limits]\nkl = true\n", ("limits.kl is True",)),
        (TRACE + '[limits]\nallowed = "norm-eps"\n', ("limits.allowed is 'norm-eps'", "a list")),
        (
            TRACE + '[limits]\nallowed = ["norm-epz"]\n',
            ("limits.allowed is 'norm-epz'", "did you mean norm-eps?", "demo --list"),
        ),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        read_config(written(tmp_path, text))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'firstdiff.toml'}: ")
    assert [word for word in words if word not in said] == [], said


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"[modles]\n", 2, ("unknown key 'modles' (did you mean 'models'?)",)),
        (b"[models\n", 3, ("firstdiff.toml: is no TOML",)),
        (b"\xff\xfe", 3, ("firstdiff.toml: is no TOML",)),
        (b"a = " + b"[" * 5000, 3, ("firstdiff.toml: is no TOML",)),
        (None, 3, ("firstdiff.toml: No such file or directory",)),
    ],
)
def test_the_command_refuses_it_in_one_line(
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    code: int,
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("firstdiff.toml").write_bytes(content)
    assert_refused(Command(capfd)("gate"), code, *words)
    assert not Path("firstdiff-runs").exists()
