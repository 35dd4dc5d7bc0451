"""What lies beside weights: configuration, the dtypes that it states, and training state."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping

from swavg.dtypes import BY_NAME
from swavg.errors import InputError
from swavg.formats.layout import WriteRequest
from swavg.storage.paths import read_file

JSON_LIMIT = 1 << 20
"""Bytes of JSON that is read: a parsed object takes many times its text."""

_STATES_DTYPE = re.compile(r"(?!.*processor)(?:.+_)?config(?:_.+)?\.json")
# What a quantiser says is its own: the dtype in which it computes.
_FIELD = re.compile(
    r'"(?:(?P<quantiser>(?:quantization|compression)_config)"\s*:\s*(?=\{)'
    r'|(?P<key>(?:torch_)?dtype)"\s*:\s*"(?:torch\.)?(?P<dtype>\w+)")'
)

_YAML = re.compile(r"(?:.+[-_])?(?:config|model)(?:[-_].+)?\.ya?ml")
_LINE = re.compile(
    r"""^[ \t]*(?P<key>(?:torch_)?dtype)[ \t]*:[ \t]*["']?(?:torch\.)?(?P<dtype>\w+)""",
    re.MULTILINE,
)

_SETTINGS = (".json", ".yaml", ".yml", ".toml", ".tiktoken", ".jinja", ".model")
_VOCABULARY = re.compile(
    r"(?:.*[-_.])?(?:vocab|merges|dict|tokens|bpe|spm|units|labels)(?:[-_.].*)?\.(?:txt|bpe|vocab)"
)
_CODE = re.compile(r"(?:configuration|modeling|tokenization|processing)_.*\.py")
_OF_A_RUN = {
    "ckpt", "eval", "events", "history", "log", "logs", "metric", "metrics", "predictions",
    "result", "results", "state", "status", "trainer", "training", "wandb",
}  # fmt: skip
"""Words in the names of files that tell of a run, not of a model."""

_TRAINING_STATE = re.compile(
    r"(?:optim|optimi[sz]er|opt_state|(?:lr_)?scheduler|(?:grad_)?scaler|rng_state|random_states?"
    r"|training_args|train_args|trainer_state)s?(?:[-_.].*)?"
    r"|.*[-_.](?:optim|optimi[sz]er|scheduler|scaler|optim_states?)(?:[-_.]?\d+)?",
    re.IGNORECASE,
)


def is_configuration(name: str) -> bool:
    """Whether a file beside weights is one without which they mean something else, going by its
    name: configuration, tokenizer, template, code."""
    low = name.lower()
    if not (low.endswith(_SETTINGS) or _VOCABULARY.fullmatch(low) or _CODE.fullmatch(low)):
        return False
    return _OF_A_RUN.isdisjoint(re.split(r"[^a-z]+", low))


def is_training_state(name: str) -> bool:
    """Whether a file of this name holds what training goes on with, and no weights."""
    stem = name.partition(".")[0]
    # That of Megatron holds its weights too.
    return not stem.startswith("model_optim_rng") and bool(_TRAINING_STATE.fullmatch(stem))


def with_written_dtypes(request: WriteRequest) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The template's configuration where the dtypes that it states are not those of what is
    written any more; and a note on each. A loader would round the weights to what it says."""
    files, notes = {}, []
    side = request.template.extras.side_files
    names = [name for name in side if _STATES_DTYPE.fullmatch(name)]
    yaml = [name for name in side if _YAML.fullmatch(name)]
    written = _written(request) if names or yaml else {}
    for name in yaml if written else ():
        # Of what else it says nobody knows whether it is of the weights or of how they are trained.
        notes += [
            f"{name} says {match['key']} {match['dtype']}, and {new} is written"
            for match, new in _changes(_small_text(side[name]) or "", written, _LINE)
        ]
    for name in names if written else ():
        text = _text(request.template.extras.side_files[name])
        changes = [] if text is None else list(_changes(text, written))
        if text is None or not changes:
            continue
        parts, end = [], 0
        for match, dtype in changes:
            parts += [text[end : match.start("dtype")], dtype]
            end = match.end("dtype")
        files[name] = "".join([*parts, text[end:]]).encode()
        told = dict.fromkeys(f"{m['key']} is {new} (was {m['dtype']})" for m, new in changes)
        notes.append(f"{name} says what is written: {', '.join(told)}")
    return files, tuple(notes)


def small_json(path: str) -> object:
    """The value of a small JSON file; None of any other. InputError if it cannot be read."""
    data = read_file(path, JSON_LIMIT + 1)
    try:
        return None if len(data) > JSON_LIMIT else json.loads(data)
    except (ValueError, RecursionError):
        return None


def _text(path: str) -> str | None:
    """A small JSON file; None for any other."""
    text = _small_text(path)
    try:
        json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    return text


def _small_text(path: str) -> str | None:
    """A small file of text; None for any other."""
    try:
        data = bytes(read_file(path, JSON_LIMIT + 1))
        return None if len(data) > JSON_LIMIT else data.decode()
    except (InputError, ValueError):
        return None


def _changes(
    text: str, written: Mapping[str, str], field: re.Pattern[str] = _FIELD
) -> Iterator[tuple[re.Match[str], str]]:
    """Each dtype that is stated and holds no more, with the one that does."""
    at = 0
    while (match := field.search(text, at)) is not None:
        at = match.end()
        if match.groupdict().get("quantiser"):
            _, at = json.JSONDecoder().raw_decode(text, at)
            continue
        new = written.get(match["dtype"], written[""])
        if match["dtype"] in BY_NAME and new not in ("", match["dtype"]):
            yield match, new


def _written(request: WriteRequest) -> dict[str, str]:
    """What became of the template's floats: for each dtype that of most of its elements. Under
    '' the one that all others became, empty if most elements are as they were. Empty where
    nothing changed. Of masters all that is stated becomes what most elements are."""
    columns, specs = request.template.tensors.columns, request.specs
    masters = request.template.extras.masters
    dtypes = {form[0] for form in columns.forms} | {dtype for dtype, _ in specs.forms}
    if not masters and sum(dtype.kind == "float" for dtype in dtypes) < 2:
        return {}
    counts: dict[tuple[str, str], int] = {}
    index = request.template.tensors.index
    for name, form in zip(specs.names, specs.form, strict=True):
        number = index.get(name)
        dtype, shape = specs.forms[form]
        if number is not None and dtype.kind == "float":
            before = columns.forms[columns.form[number]][0].name
            counts[before, dtype.name] = counts.get((before, dtype.name), 0) + math.prod(shape)
    most = sorted(counts, key=lambda pair: counts[pair])
    written = dict(most)
    was, now = (_most(counts, side) for side in (0, 1))
    if masters:
        # Whatever is stated was about their copies.
        return {"": now}
    return {**written, "": "" if was == now else now}


def _most(counts: Mapping[tuple[str, str], int], side: int) -> str:
    totals: dict[str, int] = {}
    for pair, count in counts.items():
        totals[pair[side]] = totals.get(pair[side], 0) + count
    return max(totals, key=lambda name: totals[name], default="")
