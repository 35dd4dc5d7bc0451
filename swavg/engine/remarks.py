"""What is said of inputs and outputs before anything is averaged, where all of it may be well."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from swavg.engine.recipe import recorded_in
from swavg.errors import quoted, some
from swavg.formats import recipe_in, zero
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.configuration import is_training_state
from swavg.formats.hashes import is_stale
from swavg.formats.metrics import metrics_among
from swavg.formats.part_names import WEIGHTS
from swavg.planning.plan import Output
from swavg.planning.row import Row
from swavg.series.families import kinds, runs
from swavg.series.inside import is_of_inputs
from swavg.series.names import counts_of
from swavg.storage.paths import absolute, files_below, is_folder
from swavg.weights import effective_number, sums_to_one

_LISTED = 4
_ALONE = 1.05
"""Below this effective number of checkpoints one of them is as good as alone."""


def notes_of_all(shown: Sequence[str], checkpoints: Sequence[Checkpoint]) -> list[str]:
    """What the checkpoints have to say: once where all say the same."""
    told: dict[str, list[str]] = {}
    for name, checkpoint in zip(shown, checkpoints, strict=True):
        for note in checkpoint.notes:
            told.setdefault(note, []).append(name)
    notes = []
    for note, names in told.items():
        common = 1 < len(names) == len(checkpoints)
        notes += [note] if common else [f"{name}: {note}" for name in names]
    return notes


def same_twice(shown: Sequence[str], checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A note for each checkpoint that was given before."""
    seen: dict[tuple[object, ...], str] = {}
    notes = []
    for name, checkpoint in zip(shown, checkpoints, strict=True):
        identity = tuple(source.identity for source in checkpoint.sources)
        if identity in seen:
            notes.append(f"{name} is the same file as {seen[identity]}: it counts twice")
        seen.setdefault(identity, name)
    return notes


def warnings_of(row: Row, checkpoints: Sequence[Checkpoint], shown: Sequence[str]) -> Iterator[str]:
    """What may make a row useless: an average among its own inputs, a single input or the weight of
    one, several networks, NumPy arrays that are not averaged."""
    if row.copies:
        return
    if row.members and row.weights == (1.0,):
        yield f"one checkpoint: the average is a copy of {shown[row.members[0]]}"
    arrays = checkpoints[row.members[-1]].extras.arrays
    if arrays and len(row.members) > 1:
        listed = quoted(arrays, _LISTED)
        yield (
            "NumPy arrays of objects, of one byte or of more than 1 MiB are not averaged, but those"
            f" of {shown[row.members[-1]]}, if they are in the output at all: {listed}. Make"
            " tensors of them first: torch.from_numpy"
        )
    yield from _masters_beside(checkpoints[row.members[-1]])
    if row.of_averages:
        return
    if row.method == "ema" and len(row.members) > 1:
        yield from _as_good_as_a_copy(row, shown)
    yield from _of_several([checkpoints[member].path for member in row.members])
    averages = [member for member in row.members if _is_average(checkpoints[member])]
    if len(averages) < len(row.members):
        for member in averages:
            yield (
                f"{shown[member]} is an average that swavg wrote, and counts as one checkpoint"
                " beside the others"
            )


def _as_good_as_a_copy(row: Row, shown: Sequence[str]) -> Iterator[str]:
    """A warning of an EMA whose weight lies in one checkpoint."""
    if not sums_to_one(row.weights) or effective_number(row.weights) >= _ALONE:
        return
    heaviest = max(range(len(row.weights)), key=row.weights.__getitem__)
    decay, per_step, warmup = map(row.details.get, ("decay", "per_step", "warmup"))
    way = "these weights"
    if isinstance(decay, int | float):
        way = f"a decay of {decay:.8g} per {'step' if per_step else 'checkpoint'}"
    way_out = ""
    if warmup:
        way = f"the warm-up {warmup}"
    elif heaviest == 0:
        way_out = ". debias=True starts from zero, instead of from the first checkpoint"
    elif per_step:
        way_out = ". half_life='3checkpoints', say, counts checkpoints instead of steps"
    share, name = f"{row.weights[heaviest]:.4g}", shown[row.members[heaviest]]
    yield (
        f"{'all' if share == '1' else share} of the weight is that of {name}: with {way}"
        f" the EMA of these {len(row.members)} is as good as a copy of it{way_out}"
    )


def _masters_beside(checkpoint: Checkpoint) -> Iterator[str]:
    """A warning of a model file of DeepSpeed in 16 bits, whose folder has float32 weights."""
    folder, name = os.path.split(checkpoint.path)
    narrow = next(iter(checkpoint.dtypes), "") in ("bfloat16", "float16")
    if narrow and name == "mp_rank_00_model_states.pt" and zero.FORMAT.holds(folder or "."):
        yield (
            f"{name} has the weights in 16 bits, its folder those of the optimizer in float32:"
            f" give the folder, {folder or '.'}, to average these"
        )


def _of_several(paths: Sequence[str]) -> Iterator[str]:
    """Warnings of files of several networks or runs, going by their names."""
    full = [*map(absolute, paths)]
    folders: dict[str, list[str]] = {}
    for path in dict.fromkeys(full):
        folders.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
    mixed = [family for names in folders.values() for family in kinds(names)]
    if mixed:
        yield (
            f"{some(mixed, _LISTED)} share steps and may be of several networks or runs, which are"
            " averaged with each other here: give those of one"
        )
    elif several := runs(full):
        yield (
            f"{some(several, _LISTED)} are several runs, going by the names: their average is of"
            " use only if all began from the same trained weights"
        )


_OTHER_FORM = re.compile(
    r"(model|pytorch_model|diffusion_pytorch_model|consolidated)[.-].*"
    r"|onnx.*|openvino.*|coreml.*|tflite.*|gguf.*|.*fp16.*"
)
"""Names of the same weights in another form, beside those that are averaged."""


def weights_lost(left_out: Sequence[str]) -> list[str]:
    """A warning of weights that lie beside those that are averaged, at the paths ``left_out``, and
    are in no output: of a head, say, or of another part of the model."""
    lost = [
        os.path.basename(path)
        for path in left_out
        if _holds_weights(path) and not _taken_in_training(path)
    ]
    if not lost:
        return []
    listed = some(lost, _LISTED)
    return [
        f"neither averaged nor in the output, though there may be weights in them: {listed}."
        " Average them by themselves if they belong to the model"
    ]


def averages_left(left_out: Sequence[str]) -> list[str]:
    """A note of what swavg's callbacks have written beside a Trainer's checkpoint."""
    return [
        f"beside the weights are averages that swavg took in training: {path}"
        for path in left_out
        if _holds_weights(path) and _taken_in_training(path)
    ]


def _taken_in_training(path: str) -> bool:
    recipe = recipe_in(path)
    return recipe is not None and not is_of_inputs(recipe)


def _holds_weights(path: str) -> bool:
    name = os.path.basename(path)
    if is_training_state(name) or _OTHER_FORM.fullmatch(name) or counts_of(name):
        return False
    if not is_folder(path):
        return name.endswith(WEIGHTS)
    return any(
        file.endswith(WEIGHTS) and not is_training_state(os.path.basename(file))
        for file in files_below(path)
    )


def _is_average(checkpoint: Checkpoint) -> bool:
    if checkpoint.extras.recipe is None:
        return False
    made = recorded_in(checkpoint)
    return "inputs" in made and made.get("method") != "copy"


def facts_kept(
    rows: Sequence[Row],
    outputs: Sequence[Output],
    checkpoints: Sequence[Checkpoint],
    shown: Sequence[str],
) -> list[str]:
    """What outputs have of metrics and hashes: those of the last input, whose objects they keep."""
    told: dict[str, None] = {}
    for row, output in zip(rows, outputs, strict=True):
        last = row.members[-1]
        scalars = checkpoints[last].extras.scalars
        hashes = [each for each, text in scalars.items() if is_stale(each) and type(text) is str]
        for what, found in (("metrics", metrics_among(scalars)), ("hashes", hashes)):
            # Those of a callback of Lightning have its settings in their path.
            names = dict.fromkeys(name.rpartition(".")[2] for name in found)
            if names and any(file.layout.kept for file in output.files):
                listed = quoted(names, _LISTED)
                told[f"{what} in it are those of {shown[last]}, the last input: {listed}"] = None
    return list(told)
