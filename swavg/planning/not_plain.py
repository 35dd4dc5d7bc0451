"""What is no plain weight: tensors whose mean is not the mean of what they stand for.

Known from names, dtypes, shapes and paths alone: nothing is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from swavg.dtypes import DType
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import Columns, Shape
from swavg.planning.findings import EXACT, OF_FACTORS, SAID, Finding, Kind, finding_of
from swavg.planning.match import canonical
from swavg.planning.parts_of_one import parts_of_one

_CODES: Mapping[str, tuple[str, ...]] = {
    "scales": ("qweight", "weight"),  # GPTQ and AWQ; MLX
    "SCB": ("weight",),  # bitsandbytes, 8 bits
    "scale": ("W_q", "weight"),  # HQQ; DeepSeek's own
    "wscales": ("qweight",),  # Nunchaku
    "weights_scaling_factor": ("weight",),  # TensorRT-LLM
    "scales_and_zeros": ("weight",),  # gpt-fast
    "_scale": ("_data", "_data._data"),  # Quanto
    "q_scale": ("q_weight",),  # ExLlamaV2
    "suh": ("trellis",),  # ExLlamaV3
    "codebooks": ("codes",),  # AQLM
    "SU": ("Qidxs",),  # QuIP#
}
"""The last part of a scale's name, and of those that its codes may have."""

_SCALE = re.compile(r"scale_(.+)|(.+?)_(?:scales?|scale_inv|scale_2|scaling_factor)")
"""The last part of a scale's name that holds the one of its codes: ``weight_scale``."""

_OF_SCALE = ("", "_packed", "_blocks", "_qdata")
"""What follows in the name of the codes: fp8 and int8, compressed-tensors, MXFP4, torchao."""

LORA = (
    ("lora_A", "lora_B"),
    ("lora_embedding_A", "lora_embedding_B"),
    ("lora_down", "lora_up"),
    ("lora.down", "lora.up"),
    ("lora_linear_layer.down", "lora_linear_layer.up"),
)
"""What the names of two factors have in place of each other; the first is applied first."""
NOT_LORA = ("lora_magnitude_vector", "dora_scale", "hada_w", "lokr_w", "lora_mid", "lora_E")
"""In the names of what is no product of two factors: DoRA, LoHa, LoKr, Tucker, AdaLoRA."""
_FACTORS = (
    *LORA, ("hada_w1_a", "hada_w1_b"), ("lokr_w1", "lokr_w2"), ("lokr_w1_a", "lokr_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"), ("lora1.down", "lora1.up"), ("lora2.down", "lora2.up"),
    ("lora_a", "lora_b"), ("lora.A", "lora.B"), ("adapter.linear_in", "adapter.linear_out"),
    ("vera_lambda_b", "vera_lambda_d"), ("randlora_lambda", "randlora_gamma"),
)  # fmt: skip
_GLORA = (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight")
_ROTATIONS = re.compile(r"(?:^|\.)(?:oft_(?:r|R|blocks|diag)|boft_R|hra_u)(?:\.|$)")
_ADAPTED = (
    "lora", "hada_w", "lokr_w", "adapter.linear_in", "vera_lambda", _GLORA[0], "oft_", "hra_u",
)  # fmt: skip
"""What is in the names of some tensors of each adapter."""
_SCALED_BY_ALPHA = ("lora_down.weight", "lora_A.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a")


class _Suspect(NamedTuple):
    """A tensor (and its shape, of factors), and what decides whether it matters: the values of
    whole tensors, and how others begin."""

    kind: Kind
    name: str
    whole: tuple[str, ...] = ()
    begun: tuple[str, ...] = ()
    shape: Shape = ()


@dataclass(slots=True)
class _Collected:
    """Of all suspects of a kind: canonical names, in order."""

    names: dict[str, None] = field(default_factory=dict)
    whole: dict[str, None] = field(default_factory=dict)
    begun: dict[str, None] = field(default_factory=dict)

    def add(self, suspect: _Suspect) -> None:
        self.names[canonical(suspect.name)] = None
        self.whole.update(dict.fromkeys(map(canonical, suspect.whole)))
        self.begun.update(dict.fromkeys(map(canonical, suspect.begun)))


def not_plain(
    checkpoints: Sequence[Checkpoint],
    shown: Sequence[str],
    averaged: Callable[[str], bool] = lambda name: True,
) -> list[Finding]:
    """What of the checkpoints, which are called ``shown``, is no plain weight. Nothing is read.

    ``averaged`` tells whether a tensor is to be averaged, by its canonical name.
    """
    if len(checkpoints) < 2:
        return [*filter(None, map(spread_over_ranks, checkpoints))]
    collected: dict[Kind, _Collected] = {}
    shapes: dict[str, Shape] = {}
    for checkpoint in {id(each.tensors.columns): each for each in checkpoints}.values():
        for suspect in _suspects(checkpoint):
            touched = (suspect.name, *suspect.whole, *suspect.begun)
            if not any(averaged(canonical(name)) for name in touched):
                continue
            collected.setdefault(suspect.kind, _Collected()).add(suspect)
            if shapes.setdefault(canonical(suspect.name), suspect.shape) != suspect.shape:
                collected.setdefault("rank", _Collected()).add(suspect)
    findings = [
        finding_of(kind, [*of.names], whole=[*of.whole], begun=[*of.begun])
        for kind in SAID
        if (of := collected.get(kind)) is not None
    ]
    if "factors" in collected and all(_may_be_exact(each) for each in checkpoints):
        findings = [replace(f, hint=EXACT) if f.kind in OF_FACTORS else f for f in findings]
    return [*parts_of_one(checkpoints, shown), *findings]


def spread_over_ranks(checkpoint: Checkpoint) -> Finding | None:
    """The refusal of a file of ZeRO-3, which says that the weights are those of all ranks."""
    names = [suspect.name for suspect in _empty(checkpoint) if suspect.kind == "empty"]
    told = names and "param_shapes" in checkpoint.extras.others
    return finding_of("empty", names) if told else None


def holds_codes(checkpoint: Checkpoint) -> bool:
    """Whether some tensors are codes, whose scales are other tensors, going by names and dtypes."""
    return any(suspect.kind == "codes" for suspect in _suspects(checkpoint))


def _may_be_exact(checkpoint: Checkpoint) -> bool:
    """Whether all factors are those of plain LoRA, going by their names."""
    text = "\n".join(checkpoint.tensors.columns.names)
    others = (one for one, _ in _FACTORS[len(LORA) :])
    return not any(each in text for each in (*NOT_LORA, *others, _GLORA[0]))


def _suspects(checkpoint: Checkpoint) -> Iterator[_Suspect]:
    columns = checkpoint.tensors.columns
    small: dict[str, str] = {}
    has_small_floats = any(is_code(dtype) and dtype.floating for dtype, _, _ in columns.forms)
    yield from _empty(checkpoint)
    text = "\n".join(columns.names)
    adapted = any(each in text for each in _ADAPTED)
    for name in columns.names:
        stem, dot, last = name.rpartition(".")
        stem += dot
        if not (
            has_small_floats
            or "scal" in last
            or last in _CODES
            or last in ("absmax", "alpha")
            or last.endswith(SET_APART)
            or "mask" in name
            or adapted
        ):
            continue
        numbers = checkpoint.tensors.index
        for code in _codes_of(stem, last):
            if code in numbers:
                dtype, shape, _ = columns.forms[columns.form[numbers[code]]]
                if is_code(dtype) and math.prod(shape) > 1:
                    begun = (code,) if dtype.kind == "integer" else ()
                    yield _Suspect("codes", code, (name,), begun)
        if has_small_floats:
            small = small or _small_floats(columns)
            if (scaled := _behind(columns, numbers, small, name)) is not None:
                yield _Suspect("codes", scaled, (name,))
        for one, other in _FACTORS:
            if one in name and partner(name, one, other) in numbers:
                shape = columns.forms[columns.form[numbers[name]]][1]
                yield _Suspect("factors", name, shape=shape)
        if name.endswith(_GLORA[0]) and ("lora_" in name or "lycoris_" in name):
            stem = name.removesuffix(_GLORA[0])
            if all(stem + each in numbers for each in _GLORA):
                yield _Suspect("factors", name)
        if _ROTATIONS.search(name):
            yield _Suspect("rotations", name)
        yield from _other_suspects(name, stem, last, numbers)
        # One with the original weights beside it is another kind.
        if _MASK.search(name) and set_apart(name, numbers) is None:
            dtype, shape, _ = columns.forms[columns.form[numbers[name]]]
            if dtype.kind == "float" and dtype.bits > 8 and math.prod(shape) > 1:
                yield _Suspect("binary", name, (name,))


def partner(name: str, one: str, other: str) -> str:
    """The name of the other factor. Modules may be called like a factor, too."""
    return other.join(name.rsplit(one, 1))


def is_code(dtype: DType) -> bool:
    """Whether quantised weights may be of this dtype."""
    return dtype.kind == "integer" or (dtype.kind == "float" and dtype.bits <= 8)


_MASK = re.compile(r"(?:^|[._])masks?(?:\.|_\d+$|$)")
_MODULE = re.compile(r"(?s)(.*[.:])?(.*)")


def _small_floats(columns: Columns) -> dict[str, str]:
    """The small floats of each module, by the name of that up to its end: one of each."""
    return {
        _module(name)[0]: name
        for name, form in zip(columns.names, columns.form, strict=True)
        if columns.forms[form][0].floating and is_code(columns.forms[form][0])
    }


def _module(name: str) -> tuple[str, str]:
    """What a name says of the module, and the rest."""
    found = _MODULE.fullmatch(name)
    assert found is not None
    return found[1] or "", found[2]


def _behind(
    columns: Columns, numbers: Mapping[str, int], small: Mapping[str, str], name: str
) -> str | None:
    """The small floats that a tensor of fewer floats says something of, going by its name:
    ``weight_amax``, ``weight.scales``, or a scale of the same module."""
    dtype, shape, _ = columns.forms[columns.form[numbers[name]]]
    if not dtype.floating or is_code(dtype) or name.endswith(("_bias", ".bias")):
        return None
    module, last = _module(name)
    codes = [name[:at] for at, letter in enumerate(name) if letter in "._"]
    if "scal" in last and module in small:
        codes.append(small[module])
    for each in codes:
        if (number := numbers.get(each)) is not None:
            code, of, _ = columns.forms[columns.form[number]]
            if code.floating and is_code(code) and math.prod(shape) < math.prod(of):
                return each
    return None


def _codes_of(stem: str, last: str) -> Iterator[str]:
    """Names that the codes may have, of which ``stem + last`` may be the scale."""
    yield from (stem + code for code in _CODES.get(last, ()))
    if last in ("absmax", "scale", "_scale"):
        yield stem[:-1]  # bitsandbytes, 4 bits
    if (scale := _SCALE.fullmatch(last)) is not None:
        base = stem + (scale[1] or scale[2])
        yield from (base + ending for ending in _OF_SCALE)


def _other_suspects(name: str, stem: str, last: str, names: Collection[str]) -> Iterator[_Suspect]:
    if last == "alpha" and any(stem + each in names for each in _SCALED_BY_ALPHA):
        yield _Suspect("alpha", name, (name,))
    apart = set_apart(name, names)
    if apart == "spectral":
        yield _Suspect("spectral", name, (name,))
    if apart == "mask":
        yield _Suspect("mask", name, (), (name,))


SET_APART = ("_u", "_v", "mask", "u0", "sv0")
"""How the names end that :func:`set_apart` knows."""


def set_apart(name: str, names: Collection[str]) -> Literal["spectral", "mask"] | None:
    """Whether a float tensor among others of these names is a vector of spectral norm (which goes
    with one weight) or a pruning mask (which is the same in all, or nothing is averaged)."""
    stem, dot, last = name.rpartition(".")
    stem += dot
    base, _, ending = last.rpartition("_")
    parametrized = not base and ".parametrizations." in name
    of = any(f"{stem}{base}{tail}" in names for tail in ("_orig", "_bar"))
    if ending in ("u", "v") and (of or parametrized):
        return "spectral"
    if last in ("u0", "sv0") and all(f"{stem}{each}" in names for each in ("u0", "sv0", "weight")):
        return "spectral"
    return "mask" if ending == "mask" and (of or parametrized) else None


def _empty(checkpoint: Checkpoint) -> Iterator[_Suspect]:
    """Weights of no element, if that cannot be meant."""
    columns = checkpoint.tensors.columns
    floats = [dtype.floating and dtype.bits > 8 for dtype, _, _ in columns.forms]
    nothing = [
        is_float and 0 in form[1] for is_float, form in zip(floats, columns.forms, strict=True)
    ]
    if not any(nothing):
        return
    empty = [name for name, form in zip(columns.names, columns.form, strict=True) if nothing[form]]
    weights = sum(
        floats[form] and name.endswith("weight")
        for name, form in zip(columns.names, columns.form, strict=True)
    )
    spread = [name for name in empty if checkpoint.tensors[name].spec.shape == (0,)]
    gone = sum(name.endswith("weight") for name in spread)
    # Of a model in one piece a buffer may be empty.
    is_spread = "param_shapes" in checkpoint.extras.others and weights == gone
    if is_spread or (gone > 1 and 2 * gone >= weights):
        yield from (_Suspect("empty", name) for name in spread)
        return
    kinds = {_kind(name) for name in {*columns.names}.difference(empty)}
    for name in empty:
        stem, _, last = name.rpartition(".")
        partner = f"{stem}.{'bias' if last == 'weight' else 'weight'}"
        if _kind(name) in kinds or (last in ("weight", "bias") and _kind(partner) in kinds):
            yield _Suspect("hollow", name)


def _kind(name: str) -> str:
    """A name without its numbers: the same for tensors of one kind in all layers."""
    return re.sub(r"\d+", "#", name)
