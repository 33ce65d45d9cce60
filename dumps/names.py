"""From an engine's own names to points: the built-in conventions, and the choice between them.

Our own names are understood in every convention, so that what an engine has no name for can be dumped under ours.

``firstdiff``
    The points themselves: ``Kcur_rope-3``, ``result_norm``.
``llama.cpp``
    Names of graph nodes: ``kqv_out-3``, ``inp_embd``. llama.cpp gives one name to several nodes; see `llama_cpp`.
``hf``
    Module paths of transformers: ``model.layers.3.self_attn.q_proj``; see `hugging_face`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstdiff.dumps.errors import TraceError, shown
from firstdiff.dumps.points import POINTS, as_point
from firstdiff.dumps.tables import Place, Table, checked, read_table

Names = str | Mapping[str, str] | Path


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a name means. `place` is None for what is known to be no point.

    Where two names of a step mean the same site, the one of higher `rank` holds and the other is left aside; two
    of the same rank are an error.
    """

    place: Place | None
    rank: int = 1


Reader = Callable[[Sequence[str]], dict[str, Meaning]]
"""Reads the names of one step together, and returns those that it understands."""


@dataclass(frozen=True, slots=True)
class Convention:
    """A way of naming: what a trace says of it, how it is read, and what the reader of a report should know.

    `note` applies to a trace that has none of the points of `lacks`, and no name with the end `unless`. `step_of` says
    the step that a name holds, where names do and files do not.
    """

    label: str | dict[str, str]
    read: Reader
    note: str = ""
    lacks: tuple[str, ...] = ()
    unless: str = ""
    step_of: Callable[[str], int | None] | None = None

    def noted(self, points: Iterable[str], names: Iterable[str]) -> bool:
        """Whether the note applies to a trace with some points and names."""
        ended = self.unless != "" and any(name.endswith(self.unless) for name in names)
        return self.note != "" and not ended and not {*self.lacks} & {*points}


def firstdiff(names: Iterable[str]) -> dict[str, Meaning]:
    """Read the points' own names."""
    found = ((name, as_point(name)) for name in names)
    return {name: Meaning(Place(*point)) for name, point in found if point is not None}


# llama.cpp's name -> point, where it is not the point's own; None for nodes that are no point.
_LLAMA: dict[str, str | None] = {
    **{node: point.name for point in POINTS.values() for node in point.nodes},
    "norm": None, "kqv": None, "kqv_merged": None, "ffn_silu": None, "ffn_gelu": None, "inp_tokens": None,
    "inp_pos": None, "inp_out_ids": None, "KQ_mask": None, "kq_mask": None, "attn_inp_kq_mask": None, "q": None,
    "k": None, "v": None, "inp_scaled": None, "cache_k": None, "cache_v": None, "kq_scaled": None,
}  # fmt: skip
_NODE = re.compile(
    r"(?P<base>[A-Za-z_]+?)(?:-(?P<layer>0|[1-9][0-9]{0,5})|_l[0-9]{1,6})?"
    r"(?:[ .#_-]\(?(?P<number>[0-9]{1,3})\)?)?(?:[ .#]\(?(?P<op>[A-Z_]{3,})\)?)?"
    r"(?P<view>(?: \((?:view|reshaped|permuted|transposed|cont|copy)\))*)"
)
_ROTATED = {"Qcur": "Qcur_rope", "Kcur": "Kcur_rope"}
_AFTER = {"MUL_MAT": 1, "RESHAPE": 2, "ADD": 3, "ROPE": 4}  # which of the nodes of a name holds its point


def llama_cpp(names: Sequence[str]) -> dict[str, Meaning]:
    """Read names of llama.cpp's graph.

    ``Qcur-0`` is a product, its bias sum, a reshape and a rotation in turn. Told apart by operation (``Qcur-0.ROPE``)
    or by number (``Qcur-0``, ``Qcur-0#1``, ``Qcur-0#2``), the last is taken for ``Qcur_rope``, the one before it
    for ``Qcur``. Alone, it is taken for ``Qcur``.
    """
    read = firstdiff(names)
    repeated: dict[tuple[str, int | None], list[tuple[int, str]]] = {}
    for name in names:
        found = _NODE.fullmatch(name)
        if found is None:
            continue
        base, layer = found["base"], None if found["layer"] is None else int(found["layer"])
        point = _LLAMA.get(base, base)
        if point is None:
            read[name] = Meaning(None)
            continue
        if (place := as_point(point if layer is None else f"{point}-{layer}")) is None:
            continue
        rank = 0 if found["view"] else _AFTER.get(found["op"] or "", 1)
        read[name] = Meaning(Place(*place), rank)
        if found["op"] == "ROPE" and point in _ROTATED:
            read[name] = Meaning(Place(_ROTATED[point], layer))
        elif not found["op"] and not found["view"]:
            repeated.setdefault((point, layer), []).append((int(found["number"] or 0), name))
    for (point, layer), nodes in repeated.items():
        _number(read, point, layer, [name for _, name in sorted(nodes)])
    return read


def _number(read: dict[str, Meaning], point: str, layer: int | None, nodes: list[str]) -> None:
    """Rank the nodes of one name, numbered in execution order."""
    for rank, name in enumerate(nodes):
        read[name] = Meaning(Place(point, layer), 1 + rank)
    if point in _ROTATED and len(nodes) > 1:
        read[nodes[-1]] = Meaning(Place(_ROTATED[point], layer))


WRAPPERS = re.compile(
    r"(?:(?:base_model|module|_orig_mod|language_model|text_model|model|transformer|backbone|gpt_neox|decoder)\.)+"
)
OUTPUT_ENDS = re.compile(r"\.output(?:\.0)?$")
_HF_OUTSIDE = {"embed_tokens": "embd", "norm": "result_norm"}
_HF_LAYER = re.compile(r"layers\.(?P<layer>0|[1-9][0-9]{0,5})(?:\.(?P<module>.+))?")
_HF_INSIDE: dict[str, str | None] = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "Qcur", "self_attn.k_proj": "Kcur", "self_attn.v_proj": "Vcur",
    "self_attn.q_norm": "Qcur_normed", "self_attn.k_norm": "Kcur_normed", "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_out", "mlp.act_fn": None,
    "post_feedforward_layernorm": "ffn_post_norm", "pre_feedforward_layernorm": "ffn_norm",
}  # fmt: skip
_HF_WHOLE = {"self_attn": "attn_out", "mlp": "ffn_out"}  # a whole block's output is its last projection's


def hugging_face(names: Sequence[str]) -> dict[str, Meaning]:
    """Read module paths of transformers, for llama, mistral, qwen2, qwen3 and gemma3.

    ``post_attention_layernorm`` is the norm before the feed-forward block, but in gemma3, which has a
    ``pre_feedforward_layernorm`` for that, it follows attention. The residual sum ``ffn_inp``, the rotation and the
    attention scores are no modules, so no path names them.
    """
    read = firstdiff(names)
    gemma = any("feedforward_layernorm" in name for name in names)
    for name in names:
        inner = OUTPUT_ENDS.sub("", name)
        wrapped = WRAPPERS.match(inner)
        rest = inner[wrapped.end() :] if wrapped else inner
        if rest == "lm_head" or (wrapped and rest in _HF_OUTSIDE):
            read[name] = Meaning(Place(_HF_OUTSIDE.get(rest, "result_output"), None))
        elif (wrapped and rest == "rotary_emb") or rest == "model":
            read[name] = Meaning(None)
        elif found := _HF_LAYER.fullmatch(rest):
            meant = _hf_inside(found["module"], int(found["layer"]), gemma=gemma)
            read |= {} if meant is None else {name: meant}
    return read


def _hf_inside(module: str | None, layer: int, *, gemma: bool) -> Meaning | None:
    if module is None:
        return Meaning(Place("l_out", layer))
    if module in _HF_WHOLE:
        return Meaning(Place(_HF_WHOLE[module], layer), rank=0)
    if module not in _HF_INSIDE:
        return None
    point = "attn_post_norm" if gemma and module == "post_attention_layernorm" else _HF_INSIDE[module]
    return Meaning(None if point is None else Place(point, layer))


def of_table(table: Table) -> Convention:
    """Return the convention that a table describes."""

    def read(names: Sequence[str]) -> dict[str, Meaning]:
        places = ((name, table.place(name)) for name in names)
        return firstdiff(names) | {name: Meaning(place) for name, place in places if place is not None}

    def step_of(name: str) -> int | None:
        place = table.place(name)
        return None if place is None else place.step

    has_steps = any("{step}" in name for name in table.entries)
    return Convention(dict(table.entries), read, step_of=step_of if has_steps else None)


CONVENTIONS = {
    "firstdiff": Convention("firstdiff", firstdiff),
    "llama.cpp": Convention(
        "llama.cpp",
        llama_cpp,
        "llama.cpp calls a product and its rotation alike: a lone 'Qcur' or 'Kcur' is taken for what it is before "
        "the rotation; name the rotated one 'Qcur_rope' or 'Kcur_rope'",
        lacks=("Qcur_rope", "Kcur_rope"),
    ),
    "hf": Convention(
        "hf",
        hugging_face,
        "transformers has no module for 'ffn_inp', 'Qcur_rope', 'Kcur_rope', 'kq_soft_max' and 'kqv_out': "
        "dump them under these names, with '-' and the layer, to have them judged on their own",
        lacks=("ffn_inp",),
        unless=".input",
    ),
}


def convention(said: object, where: str, *, path_allowed: bool) -> Convention:
    """Return the convention that is asked for: a built-in one's name, a table, or (not in a manifest) a table's path.

    Raises
    ------
    TraceError
        If there is no such convention, or the table is not sound.
    """
    if isinstance(said, Mapping):
        return of_table(checked(said, where))
    if isinstance(said, str) and said in CONVENTIONS:
        return CONVENTIONS[said]
    if path_allowed and isinstance(said, str | Path):
        path = Path(said)
        if path.suffix in (".toml", ".json") or path.is_file():
            return of_table(read_table(path))
    tables = " or a table in a .toml or .json file" if path_allowed else ", or a table of names"
    raise TraceError(f"{where}: names {shown(said)} are not known: give {', '.join(CONVENTIONS)}{tables}")


def choose(steps: Sequence[Sequence[str]]) -> Convention | None:
    """Return the built-in convention that understands most names, the first of equals; None if none understands any."""
    counts = {label: sum(len(known.read(names)) for names in steps) for label, known in CONVENTIONS.items()}
    best = max(counts, key=counts.__getitem__)
    return CONVENTIONS[best] if counts[best] else None
