"""The ways in which an engine may lay a point out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from firstdiff.dumps.points import axes_of, carrying
from firstdiff.judging.layouts import LOGITS, OTHER_ORDERS, PLAIN, ROTATED, Layout
from firstdiff.judging.readers import (
    Read,
    by_head,
    columns_of,
    merged_last,
    moved,
    padded,
    per_group,
    plain,
    repeated,
    turned,
    wider,
    wider_turned,
)
from firstdiff.model.engine import Model


def candidates(point: str, model: Model) -> Iterator[Layout]:
    """Ways in which a point may be laid out, the likeliest first."""
    yield PLAIN
    axes = axes_of(point)
    if "head_dim" in axes:
        yield from _of_heads(point, model)
    elif "query" in axes:
        yield Layout("[query, head, key]", moved(1, 0, 2))
        yield Layout("[key, query, head]", moved(2, 1, 0))
        for says, order in (("", (0, 1, 2)), ("[query, head, key], ", (1, 0, 2)), ("[key, query, head], ", (2, 1, 0))):
            yield Layout(f"{says}padded to more keys than there are", padded(order))
    else:
        yield Layout("[feature, token]", merged_last)
    if point in ("ffn_gate", "ffn_up"):
        first, hp = point == "ffn_gate", model.hp
        half = columns_of(0, hp.n_ff) if first else columns_of(hp.n_ff, 2 * hp.n_ff)
        other = columns_of(hp.n_ff, 2 * hp.n_ff) if first else columns_of(0, hp.n_ff)
        for says, columns in (("gate first", half), ("up first", other)):
            for lies, read in (("", columns), (" [feature, token]", turned(columns))):
                words = f"from the fused gate and up{lies}, {says}"
                yield Layout(words, read, "ffn_gate_up", 2 * hp.n_ff, parts=words)
    if point == "wqkv":
        hp = model.hp
        for says, sizes in (("KV head", (hp.n_head // hp.n_head_kv, 1, 1)), ("head", (1, 1, 1))):
            read = by_head(hp.n_head_kv if says == "KV head" else hp.n_head, sizes, hp.head_dim)
            yield Layout(f"Q, K and V of one {says} after another", read)
    if point in LOGITS:
        says = "more columns than the vocabulary has tokens: the first are the tokens'"
        yield Layout(says, wider)
        yield Layout(f"[feature, token], {says}", wider_turned)


def _of_heads(point: str, model: Model) -> Iterator[Layout]:
    orders: tuple[tuple[str, Read], ...] = (
        ("[token, head, head_dim]", plain),
        ("[head, token, head_dim]", moved(1, 0, 2)),
        ("[head_dim, head, token]", moved(2, 1, 0)),
        ("[feature, token]", merged_last),
    )
    made = [Layout(says, read) for says, read in orders]
    if point in carrying("K", "V"):
        width = model.hp.n_head * model.hp.head_dim
        made += [
            Layout(f"{says}, KV heads repeated", repeated(read, model.hp.n_head), width=width)
            for says, read in orders[:2]
        ]
    yield from made[1:]
    if point in ROTATED and model.rotation is not None:
        yield from (_reordered(layout, model.rotation.pairing, plain=layout.read is plain) for layout in made)
    if point in ("Qcur", "Kcur", "Vcur"):
        yield from _fused(point, model)


def _fused(point: str, model: Model) -> Iterator[Layout]:
    hp = model.hp
    q, kv, d, group = hp.n_head * hp.head_dim, hp.n_head_kv * hp.head_dim, hp.head_dim, hp.n_head // hp.n_head_kv
    blocks = {"Qcur": (0, q), "Kcur": (q, q + kv), "Vcur": (q + kv, q + 2 * kv)}[point]
    part = {
        "Qcur": slice(0, group * d),
        "Kcur": slice(group * d, (group + 1) * d),
        "Vcur": slice((group + 1) * d, None),
    }
    for says, read in (
        ("from the fused product, blocks of Q, K and V", columns_of(*blocks)),
        ("from the fused product, interleaved by KV head", per_group(part[point], (group + 2) * d)),
    ):
        for words, columns in ((says, read), (f"[feature, token], {says}", turned(read))):
            layout = Layout(words, columns, "wqkv", q + 2 * kv, parts=words)
            yield layout
            if point in ROTATED and model.rotation is not None:
                yield _reordered(layout, model.rotation.pairing)


def _reordered(layout: Layout, pairing: str, *, plain: bool = False) -> Layout:
    """The same layout with the dimensions of each head in the order of the other pairing."""
    says, reorder = OTHER_ORDERS[pairing]
    return replace(layout, says=says if plain else f"{layout.says}, {says}", read=reorder(layout.read), pairing=pairing)
