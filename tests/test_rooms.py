"""Who may import whom, what a light start leaves unloaded, and what an installation brings."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import firstdiff

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).parent.parent
FOLDERS = {
    "firstdiff": "harness",
    "firstdiff.model": "model",
    "firstdiff.dumps": "dumps",
    "firstdiff.reports": "reports",
}
RECORDS = ("firstdiff.verdict.", "firstdiff.dumps.site.")  # what reports are rendered from: verdicts carry sites
TABLE = "firstdiff.dumps.points."  # and what they know of a point: its heading, and its axes in words
ROOMS = ("model", "dumps", "reports")  # and the harness, which is the rest
GROUND = ("errors", "progress", "interruption", "blas")
DOORS = ("__init__", "__main__", "api", "cli", "plot", "pytest_plugin", "torch")
FLOORS = (
    "ground", "verdict", "engines", "judging", "hypotheses", "explaining", "preflight", "rope", "logs", "runs", "gate",
    "probing", "conformance", "commands", "doors",
)  # fmt: skip
"""The rooms of the harness from the top down: a room imports those above it."""
EDGES = ("verdict", "runs", "gate", "commands", "doors")  # load reports, inside functions
HEAVY = ("numba", "threadpoolctl", "pandas", "matplotlib", "llama_cpp", "torch", "transformers", "jinja2")
LONGEST = 300  # lines of a module: more are no sitting
LONGER: dict[str, str] = {}
"""Modules that may be longer, and why."""
TOP_LEVEL = {"model", "harness", "dumps", "reports", "tests", "notebooks", ".ci", ".github"}


@dataclass(frozen=True, slots=True)
class Import:
    """One name that a module imports: dotted, from the package's name on."""

    module: str
    name: str
    line: int
    in_function: bool

    def __str__(self) -> str:
        where = "in a function" if self.in_function else "at the top"
        return f"{self.module}:{self.line} imports {self.name} {where}"


def room(name: str) -> str:
    """Return the room that a dotted name lies in."""
    parts = [*name.split("."), "__init__"]
    if parts[1] in (*ROOMS, *FLOORS):
        return parts[1]
    return "ground" if parts[1] in GROUND else "doors"


def allowed(found: Import) -> bool:
    """Whether an import follows the arrows."""
    here, there = room(found.module), room(found.name)
    if here == there:
        return True
    if here in FLOORS and there in FLOORS:
        return FLOORS.index(there) < FLOORS.index(here)
    if here in FLOORS:
        return there != "reports" or (here in EDGES and found.in_function)
    return here == "reports" and f"{found.name}.".startswith((*RECORDS, TABLE))


def imports(module: str, source: str, *, is_package: bool = False) -> Iterator[Import]:
    """Yield every name of ours that a module imports, wherever in it."""
    package = module if is_package else module.rpartition(".")[0]

    def walk(node: ast.AST, *, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = ""
            if isinstance(node, ast.ImportFrom):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) + "."
            names = [base + alias.name for alias in node.names]
            ours = [name for name in names if name.split(".")[0] == "firstdiff"]
            yield from (Import(module, name, node.lineno, in_function) for name in ours)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, in_function=inside)

    return walk(ast.parse(source), in_function=False)


def installed_files() -> dict[Path, Path]:
    """Return the installed package's files, under the paths that they have in the checkout."""
    found = {}
    for package, folder in FOLDERS.items():
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        (root,) = map(Path, spec.submodule_search_locations)
        for file in files_under(root):
            inside = file.relative_to(root)
            if f"{package}.{inside.parts[0]}" not in FOLDERS:
                found[folder / inside] = file
    return found


def files_under(root: Path) -> Iterator[Path]:
    for file in sorted(root.rglob("*")):
        inside = file.relative_to(root)
        if file.is_file() and "__pycache__" not in inside.parts and not inside.name.startswith("."):
            yield file


def modules() -> Iterator[tuple[str, Path, bool]]:
    """Yield every installed module: its dotted name, its file, and whether it is a package."""
    packages = {folder: package for package, folder in FOLDERS.items()}
    for path, file in installed_files().items():
        if path.suffix == ".py":
            parts = [packages[path.parts[0]], *path.with_suffix("").parts[1:]]
            is_package = parts[-1] == "__init__"
            yield ".".join(parts[:-1] if is_package else parts), file, is_package


def distribution() -> importlib.metadata.Distribution:
    """Return what is installed, whatever lies in the working directory."""
    (found,) = importlib.metadata.distributions(name="firstdiff", path=[sysconfig.get_path("purelib")])
    return found


def is_editable() -> bool:
    origin = json.loads(distribution().read_text("direct_url.json") or "{}")
    return bool(origin.get("dir_info", {}).get("editable"))


def same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def run(*arguments: str) -> str:
    """Run Python without the working directory on its path, and return what it prints."""
    command = [sys.executable, "-P", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_import_follows_the_arrows() -> None:
    found: list[Import] = []
    for name, file, is_package in modules():
        found += imports(name, file.read_text("utf-8"), is_package=is_package)
    assert {room(i.module) for i in found} == {*FLOORS, *ROOMS}
    assert [str(i) for i in found if not allowed(i)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("firstdiff.model.gguf", "import firstdiff"),
        ("firstdiff.model.gguf", "from firstdiff.verdict import Verdict"),
        ("firstdiff.model.gguf", "def f():\n    from firstdiff import dumps"),
        ("firstdiff.model.gguf", "from .. import measure"),
        ("firstdiff.dumps.trace", "import numpy, firstdiff.model.gguf as gguf"),
        ("firstdiff.dumps.trace", "if TYPE_CHECKING:\n    from ..model.gguf import GGUF"),
        ("firstdiff.reports.html", "from firstdiff.judging.replay import Replay"),
        ("firstdiff.reports.html", "from firstdiff.verdicts import Verdict"),
        ("firstdiff.reports.html", "from firstdiff import dumps"),
        ("firstdiff.reports.html", "from firstdiff.dumps import Trace, points"),
        ("firstdiff.verdict.sites", "from firstdiff.judging.measure import measure"),
        ("firstdiff.engines.reference", "def f():\n    from firstdiff.hypotheses import TABLE"),
        ("firstdiff.judging.replay", "from firstdiff.hypotheses import TABLE"),
        ("firstdiff.judging.measure", "def f():\n    from firstdiff.reports import words"),
        ("firstdiff.runs.judge", "from firstdiff import cli"),
        ("firstdiff.errors", "from firstdiff.verdict import Verdict"),
        ("firstdiff.commands.run", "import firstdiff"),
        ("firstdiff.cli", "from firstdiff.reports import terminal"),
        ("firstdiff.engines.pytorch", "import firstdiff.torch"),
        ("firstdiff.cli", "from . import reports"),
        ("firstdiff.cli", "class C:\n    import firstdiff.reports.html"),
    ],
)
def test_an_import_against_the_arrows_is_seen(module: str, source: str) -> None:
    assert [i for i in imports(module, source) if not allowed(i)]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("firstdiff.model.gguf", "import numpy\nfrom firstdiff.model import fields"),
        ("firstdiff.model.gguf", "from .cursor import Cursor"),
        ("firstdiff.dumps.trace", "from firstdiff.dumps.errors import TraceError"),
        ("firstdiff.reports.html", "from firstdiff.verdict import Verdict\nfrom firstdiff import verdict"),
        ("firstdiff.reports.html", "from firstdiff.reports import markdown"),
        ("firstdiff.reports.html", "from firstdiff.dumps.points import POINTS"),
        ("firstdiff.cli", "from firstdiff.model import gguf\nfrom firstdiff.dumps import Trace"),
        ("firstdiff.cli", "def f():\n    from firstdiff.reports import terminal"),
        ("firstdiff.cli", "import firstdifference.reports"),
        ("firstdiff.judging.replay", "from firstdiff.verdict import Status\nfrom firstdiff.errors import UsageError"),
        ("firstdiff.commands.run", "from firstdiff.runs import candidates\nfrom firstdiff.commands import options"),
        ("firstdiff.api", "from firstdiff.cli import main"),
    ],
)
def test_an_import_along_the_arrows_is_allowed(module: str, source: str) -> None:
    assert [str(i) for i in imports(module, source) if not allowed(i)] == []


def test_every_module_lies_in_a_room() -> None:
    paths = [path for path in installed_files() if path.parts[0] == "harness" and path.suffix == ".py"]
    held = {path.parts[1].removesuffix(".py") for path in paths}
    assert held == {*GROUND, *DOORS, *FLOORS} - {"ground", "doors"}


def test_no_module_is_longer_than_a_sitting() -> None:
    lines = {str(path): len(file.read_text("utf-8").splitlines()) for path, file in installed_files().items()}
    long = {path for path, count in lines.items() if path.endswith(".py") and count > LONGEST}
    assert long - set(LONGER) == set(), f"more than {LONGEST} lines: divide each by its ideas"
    assert set(LONGER) - long == set(), "no longer long: strike them from the list"


def test_relative_imports_of_a_package_start_at_itself() -> None:
    (found,) = imports("firstdiff.dumps", "from .errors import TraceError", is_package=True)
    assert found.name == "firstdiff.dumps.errors.TraceError"


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = run("-c", "import sys, firstdiff; print(*sys.modules)").split()
    assert "firstdiff" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_no_door_but_its_own_needs_pytorch() -> None:
    doors = [f"firstdiff.{name}" for name in DOORS if name not in ("__init__", "__main__", "torch")]
    script = f"import sys; sys.modules['torch'] = None; import firstdiff, {', '.join(doors)}; print(*sys.modules)"
    loaded = run("-c", script).split()
    assert set(doors) <= set(loaded)
    assert [name for name in loaded if name.startswith("firstdiff.engines.pytorch")] == []


def test_asking_for_help_loads_nothing_heavy() -> None:
    script = (
        "import contextlib, sys\n"
        "from firstdiff.cli import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "print()\n"
        "print(*sys.modules)"
    )
    loaded = run("-c", script).splitlines()[-1].split()
    assert "firstdiff.cli" in loaded
    assert [name for name in (*HEAVY, "numpy") if name in loaded] == []


def test_the_package_runs_as_a_module() -> None:
    assert "usage: firstdiff" in run("-m", "firstdiff", "--help")


def test_the_command_is_called_firstdiff() -> None:
    (command,) = distribution().entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("firstdiff", "firstdiff.cli:main")


def test_pytest_finds_the_plugin() -> None:
    (plugin,) = distribution().entry_points.select(group="pytest11")
    assert (plugin.name, plugin.value) == ("firstdiff", "firstdiff.pytest_plugin")


def test_installing_brings_no_name_but_firstdiff() -> None:
    files = distribution().files
    assert files
    names = {file.parts[0] for file in files if not file.parts[0].startswith(("..", "firstdiff-"))}
    if is_editable():
        names = {name for name in names if "__editable__" not in name} | {"firstdiff"}
    assert names - {"__pycache__"} == {"firstdiff"}


def test_tests_see_the_installed_package() -> None:
    if is_editable():
        pytest.skip("the package is installed as editable")
    assert firstdiff.__file__ is not None
    assert Path(firstdiff.__file__).is_relative_to(sysconfig.get_path("purelib"))


def test_what_is_installed_is_what_the_checkout_holds() -> None:
    installed = installed_files()
    held: set[Path] = set()
    for folder in FOLDERS.values():
        held |= {file.relative_to(CHECKOUT) for file in files_under(CHECKOUT / folder)}
    assert set(installed) == held
    changed = [path for path, file in installed.items() if not same(file, CHECKOUT / path)]
    assert changed == [], "changed since they were installed: run `make test`"


def test_the_top_level_has_no_other_folder() -> None:
    git = shutil.which("git")
    if git is None or not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout")
    command = [git, "-C", str(CHECKOUT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    folders = {path.split("/")[0] for path in listed.split("\0") if "/" in path}
    assert folders <= TOP_LEVEL
