"""How a tensor's name, layer and step are spelled in file names and keys: the one place that knows.

========================== =================== ===========
file                       name                step
========================== =================== ===========
``Qcur-3.npy``             ``Qcur-3``          not said
``Qcur-3@1.npy``           ``Qcur-3``          1
``step1/Qcur-3.npy``       ``Qcur-3``          1
``step-001.Qcur-3.npy``    ``Qcur-3``          1
``Qcur-3_step_1.txt``      ``Qcur-3``          1
``step1/layer3/q_proj.npy`` ``layer3.q_proj``  1
========================== =================== ===========

A layer stays in the name, because tables of names say where: ``layer_{layer}_q_proj``. Where one has to be guessed,
for suggestions and for our own points under another spelling, it is the number after a word such as ``layer`` or
``blk``, or else the number at the end: ``layer_3_q_proj``, ``blk.3.attn_q``, ``q_proj.3``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from firstdiff.dumps.errors import TraceError, shown

# `(?<![a-z])` because "layerstep3" is no step; the separators go away with it.
_STEP = re.compile(r"(?:^|(?<=[._\-/ ]))steps?[._\-/ ]?([0-9]{1,9})(?=$|[._\-/ @])", re.IGNORECASE)
_AT = re.compile(r"@([0-9]{1,9})$")
_LAYER = re.compile(
    r"(?:^|(?<=[._\-/ ]))(?:layers?|blk|blocks?|h|l)[._\- ]?(?P<number>[0-9]{1,6})(?=$|[._\-/ ])", re.IGNORECASE
)
_LAST = re.compile(r"[._\- ](?P<number>[0-9]{1,6})$")
_EDGES = "._-/ "


@dataclass(frozen=True, slots=True)
class Spelled:
    """A name without its step, and the step, None where none is said."""

    name: str
    step: int | None


def spelled(path: str) -> Spelled:
    """Read a path inside a dump, with slashes and without the file's suffix: ``step1/Qcur-3``.

    Raises
    ------
    TraceError
        If it says two steps.
    """
    at = _AT.search(path)
    rest = path[: at.start()] if at else path
    said = {int(number) for number in _STEP.findall(rest)} | ({int(at[1])} if at else set())
    if len(said) > 1:
        raise TraceError(f"the name {shown(path)} says steps {' and '.join(map(str, sorted(said)))}: rename it")
    parts = (part.strip(_EDGES) for part in _STEP.sub("/", rest).split("/"))
    return Spelled(".".join(part for part in parts if part), said.pop() if said else None)


def step_of_file(path: str) -> int | None:
    """Return the step that a file of many tensors holds: ``step-001.safetensors``, ``step1.layer-7.npz``, ``1.npz``.

    None where its name says none.
    """
    found = spelled(stem(path))
    if found.step is None and re.fullmatch(r"[0-9]{1,9}", found.name):
        return int(found.name)
    return found.step


def stem(path: str) -> str:
    """Return a path without its suffix."""
    return str(PurePosixPath(path).with_suffix(""))


def layered(name: str) -> tuple[str, str, int | None]:
    """Find the layer in a name.

    Returns
    -------
    The name with ``{layer}`` in place of the number, the name without its layer, and the layer, None where none
    is said: ``("blk.{layer}.attn_q", "attn_q", 3)``.
    """
    found = _LAYER.search(name) or _LAST.search(name)
    if found is None:
        return name, name, None
    begin, end = found.span("number")
    before, after = name[: found.start()].rstrip(_EDGES), name[found.end() :].lstrip(_EDGES)
    bare = f"{before}.{after}" if before and after else before or after
    return f"{name[:begin]}{{layer}}{name[end:]}", bare, int(found["number"])
