"""Steps and metrics from the names of files and folders."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from swavg.series.model import Unit, is_generic

Span = tuple[int, int]

SUFFIXES = (
    ".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".th", ".pkl", ".model", ".zip",
)  # fmt: skip
"""Suffixes that hold no part of a step; a name may end in several (``.pth.tar``)."""

_UNITS: Mapping[str, Unit] = {
    "step": "step", "steps": "step", "globalstep": "step", "iter": "step", "iters": "step",
    "iteration": "step", "iterations": "step", "itr": "step", "update": "step", "updates": "step",
    "numupdates": "step", "epoch": "epoch", "ep": "epoch",
}  # fmt: skip

_NUMBER = r"(?P<number>\d{1,12})(?P<thousands>[kKmM])?(?![A-Za-z\d])(?!\.\d)"
# 'step' behind a letter is another word: timestep, nstep.
_WORD_THEN_NUMBER = re.compile(
    r"(?<![A-Za-z])(?P<word>global[_-]?step|num[_-]?updates|steps?|iterations?|iters?|itr"
    rf"|updates?|epoch|ep)[=_.:\s-]?{_NUMBER}",
    re.IGNORECASE,
)
_NUMBER_THEN_WORD = re.compile(
    r"(?<![A-Za-z\d.])(?P<number>\d{1,12})(?P<thousands>[kKmM])?[_-]?"
    r"(?P<word>steps?|iters?|iterations?|updates?|epoch)(?![A-Za-z\d])",
    re.IGNORECASE,
)
_TAG = r"(?:[-_.](?:best|last|latest|final|ema|swa|avg|average|averaged|unsharded|hf|shard0|v\d+))*"
_BATCH = re.compile(r"[_-]batch[=_-]?(?P<number>\d{1,12})(?![A-Za-z\d])", re.IGNORECASE)
# Composer counts batches from the start; others from that of their epoch.
_COMPOSER = re.compile(rf"(?:.*[._-])?ep(\d{{1,9}})-ba(\d{{1,12}})(?:-rank\d+)?{_TAG}")
_FAIRSEQ = re.compile(rf"checkpoint_(\d{{1,9}})_(\d{{1,9}}){_TAG}")
_CHECKPOINT = re.compile(
    rf"(?:.*[._-])?(?:checkpoint|chkpt|ckpt|chk|cp)(?P<gap>[-_=.]?)(?P<number>\d{{1,9}}){_TAG}",
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    r"(?:(?:.*[._-])?(?:model|net|network|weights|params|state|snapshot|save|iterate"
    r"|ema_0?\.\d+)[-_=.]|model(?=\d{6}))?"
    rf"(?P<number>\d{{1,9}}){_TAG}",
    re.IGNORECASE,
)
DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_SHARD = re.compile(r"-\d+-of-\d+$")

_COPY = re.compile(
    r"(?:.*[-_.])?(best|last|latest|final)(?:[-_.](?:ckpt|checkpoint|model|v\d+|ema))*"
    r"|checkpoint|ckpt|latest_checkpoint",
    re.IGNORECASE,
)
"""Names of what is a copy of another snapshot, or the state from which training resumes."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_MARKS = {
    "avg", "ave", "average", "averages", "averaged", "swa", "ema", "soup", "merged", "best",
    "final", "pretrained", "init",
}  # fmt: skip
"""Words for what is an average, a copy, or where training began: no step of it."""

_ASSIGNED = re.compile(
    r"(?<![A-Za-z\d])(?P<name>[A-Za-z][A-Za-z\d_/.@]*?)="
    r"(?P<value>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|nan|-?inf)(?![A-Za-z\d])",
    re.IGNORECASE,
)
_SCORED = re.compile(
    r"(?<![A-Za-z\d])(?P<name>(?:(?:val|valid|validation|eval|dev|test|train|cv)[_.-])?"
    r"(?:loss|acc|accuracy|bleu|wer|cer|ppl|perplexity|f1|auc|map|miou|psnr|ssim|fid))"
    r"[_-](?P<value>-?\d+\.\d+)(?![A-Za-z\d])",
    re.IGNORECASE,
)
_NO_METRIC = {
    *_UNITS, "global_step", "num_updates", "lr", "seed", "bs", "batch", "batch_size", "fold", "v",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NameFacts:
    """What a name says: counts by unit, metrics, whether it is a copy by its name, and the words
    in it for averages and the like (``avg``), as they are spelled."""

    counts: Mapping[Unit, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    is_copy: bool = False
    marks: frozenset[str] = frozenset()
    family: str | None = None
    """A glob for names that differ in their steps and metrics alone; None without any step."""


@lru_cache(maxsize=4096)
def read_name(name: str) -> NameFacts:
    """The facts in the last part of a path: ``epoch=3-step=1200-val_loss=0.5.ckpt``.

    Hashes, dates, version numbers and sizes (v0.1, resnet50, 7b, 00001-of-00002) are no steps.
    """
    stem, suffixes = split_suffixes(name)
    counts: dict[Unit, int] = {}
    spans: list[Span] = []
    for unit, count, span in _counts(stem, suffixes):
        counts.setdefault(unit, count)
        spans.append(span)
    metrics: dict[str, float] = {}
    for metric, value, span in () if _SHARD.search(stem) else _metrics(stem):
        metrics[metric] = value
        spans.append(span)
    is_copy = not counts and _COPY.fullmatch(stem) is not None
    family = with_stars(name, spans) if counts else None
    return NameFacts(counts, metrics, is_copy, marks_in(stem), family)


def with_stars(name: str, spans: Sequence[Span]) -> str:
    """A glob for a name in which what lies in the spans is any."""
    pieces, start = [], 0
    for first, last in sorted(spans):
        if first >= start:
            pieces.append(glob.escape(name[start:first]))
            start = last
    return "*".join([*pieces, glob.escape(name[start:])])


def marks_in(text: str) -> frozenset[str]:
    """The whole words for averages and the like: ``epochAvg_5`` has one, ``swarm`` has none."""
    return frozenset(word for word in _WORD.findall(text) if word.lower() in _MARKS)


def counts_of(path: str) -> Mapping[Unit, int]:
    """The counts in the name of a checkpoint, or in its folder's where it is called ``model``."""
    parent, name = os.path.split(path.rstrip("/"))
    counts = read_name(name).counts
    return counts or (read_name(os.path.basename(parent)).counts if is_generic(name) else {})


def is_shard(name: str) -> bool:
    """Whether a file is one of several parts of a checkpoint."""
    return _SHARD.search(split_suffixes(name)[0]) is not None


def split_suffixes(name: str) -> tuple[str, str]:
    """A name without its suffixes, and these."""
    stem = name
    while stem.lower().endswith(SUFFIXES):
        stem = stem[: stem.rindex(".")]
    return stem, name[len(stem) :].lower()


def _counts(stem: str, suffixes: str) -> Iterator[tuple[Unit, int, Span]]:
    if _SHARD.search(stem):
        return
    match = _COMPOSER.fullmatch(stem) or _FAIRSEQ.fullmatch(stem)
    if match:
        yield "epoch", int(match[1]), match.span(1)
        yield "step", int(match[2]), match.span(2)
    elif worded := list(_worded(stem)):
        yield from worded
    elif match := _CHECKPOINT.fullmatch(stem):
        # timm numbers checkpoint-12.pth.tar by epoch and fairseq checkpoint12.pt; checkpoint-500
        # (Hugging Face) and ckpt-1000 are steps.
        by_epoch = suffixes == ".pth.tar" or (stem.startswith("checkpoint") and not match["gap"])
        if not DATE.fullmatch(match["number"]):
            yield "epoch" if by_epoch else "step", int(match["number"]), match.span("number")
    elif (match := _NUMBERED.fullmatch(stem)) and not DATE.fullmatch(match["number"]):
        yield "number", int(match["number"]), match.span("number")


def _worded(stem: str) -> Iterator[tuple[Unit, int, Span]]:
    """Counts that say their unit: ``step_10``, ``12epoch``."""
    orders = [_WORD_THEN_NUMBER, _NUMBER_THEN_WORD]
    # '3_epoch_100_step' against 'epoch_3_step_100': the end that has the number decides.
    if stem[:1].isdigit():
        orders.reverse()
    matches = next(filter(None, (list(order.finditer(stem)) for order in orders)), [])
    for match in matches:
        scale = {"k": 1000, "m": 1_000_000}.get((match["thousands"] or "").lower(), 1)
        unit = _UNITS[re.sub("[_-]", "", match["word"].lower())]
        yield unit, int(match["number"]) * scale, (match.start("number"), _end(match))
        batch = _BATCH.search(stem, match.end()) if unit == "epoch" else None
        if batch is not None:
            yield "batch", int(batch["number"]), batch.span("number")


def _end(match: re.Match[str]) -> int:
    return max(match.end("number"), match.end("thousands"))


def _metrics(stem: str) -> Iterator[tuple[str, float, Span]]:
    for pattern in (_SCORED, _ASSIGNED):
        for match in pattern.finditer(stem):
            if match["name"].lower() not in _NO_METRIC:
                yield match["name"], float(match["value"]), match.span("value")
