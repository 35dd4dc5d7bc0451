"""The main path: open, weigh, plan, lay out, stream, publish."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from swavg import publish, weights
from swavg.errors import InputError, OutputError, RequestError
from swavg.formats import open_checkpoint
from swavg.formats.base import Checkpoint, FilePool, Layout, Tensor, open_input
from swavg.formats.folder import weights_stem
from swavg.formats.output import Output, choose_target, default_path, lay_out
from swavg.plan import Plan, Policy, by_canonical_name, canonical, make_plan
from swavg.recipe import as_text, recipe, short_names
from swavg.stream import Budget, Resources, Stream

Path = str | os.PathLike[str]
STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: bytes read so far and in all, seconds since it began."""

    read: int
    total: int
    seconds: float


@dataclass(frozen=True, slots=True)
class InputSummary:
    """An input as a report shows it: ``dtypes`` are elements per dtype, ``size`` bytes on disk."""

    name: str
    path: str
    weight: float
    size: int
    format: str
    tensors: int
    dtypes: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """What was (or, before a run, will be) done.

    ``tensors`` counts what became of them; ``treated`` lists those that were not averaged over all
    inputs, with the reason. ``read`` and ``written`` are bytes; ``memory`` is the bound on buffers
    in bytes; ``seconds`` is None before a run.
    """

    output: str
    format: str
    inputs: tuple[InputSummary, ...]
    tensors: Mapping[str, int]
    elements: int
    read: int
    written: int
    files: int
    memory: int
    threads: int
    device: str
    treated: tuple[Mapping[str, str], ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    differing_integers: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return asdict(self)


class Job:
    """Everything decided and nothing written: made by :func:`prepare`, done by :meth:`run`."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        plan: Plan,
        output: Output,
        budget: Budget,
        resources: Resources,
        recipe_values: Mapping[str, Any],
        notes: Sequence[str],
        force: bool,
    ) -> None:
        self.checkpoints = tuple(checkpoints)
        self.plan = plan
        self.output = output
        self.budget = budget
        self._resources = resources
        self._recipe = recipe_values
        self._notes = tuple(notes)
        self._force = force

    def check(self) -> None:
        """Raise OutputError if the output could not be published: it exists and ``force`` is not
        set, is an input, or the disk has no room."""
        path = self.output.target.path
        if path is None:
            _refuse_inputs_as_stdout(self.checkpoints)
            return
        _refuse_inputs(path, self.checkpoints)
        folder = self.output.target.kind == "folder"
        publish.check_destination(path, self.output.size, force=self._force, folder=folder)
        if folder and os.path.isdir(path):
            _refuse_other_files(path, self.output)

    def run(self, on_progress: Callable[[Progress], None] | None = None) -> Report:
        """Stream the sum and publish it. Raises a SwavgError; the destination is then as it was."""
        self.check()
        begun = time.monotonic()
        total = self.report().read

        def tick() -> None:
            if on_progress is not None:
                seconds = time.monotonic() - begun
                on_progress(Progress(stream.tally.read, total, seconds))

        with Stream(
            self.checkpoints,
            self.plan.inputs,
            self.plan.policy,
            self.budget,
            self._resources.device,
        ) as stream:
            self._publish(stream, tick)
            tally = stream.tally
        return self.report(
            seconds=time.monotonic() - begun,
            differing=tuple(tally.differing_integers),
            nonfinite=tuple(tally.nonfinite),
        )

    def _publish(self, stream: Stream, tick: Callable[[], None]) -> None:
        target, layouts = self.output.target, self.output.layouts
        if target.path is None:
            sink = publish.Sink("standard output", sys.stdout.fileno())
            _fill(sink, layouts[0], stream, tick)
            self._check_inputs()
        elif target.kind == "folder":
            with publish.new_folder(target.path, force=self._force) as folder:
                for layout in layouts:
                    with publish.write_into(folder, layout.name, shown=target.path) as sink:
                        _fill(sink, layout, stream, tick)
                    _verify(layout, sink.path, target.path)
                for name, data in self.output.files.items():
                    with publish.write_into(folder, name, shown=target.path) as sink:
                        sink.write(data)
                for name, source in self.output.side_files.items():
                    _copy(source, name, folder, target.path)
                self._check_inputs()
                # The run may have taken an hour, in which someone put something there.
                if os.path.isdir(target.path):
                    _refuse_other_files(target.path, self.output)
        else:
            with publish.new_file(target.path, force=self._force) as sink:
                _fill(sink, layouts[0], stream, tick)
                if not publish.is_stream(target.path):
                    _verify(layouts[0], sink.path, target.path)
                self._check_inputs()

    def _check_inputs(self) -> None:
        for checkpoint in self.checkpoints:
            for file in checkpoint.files:
                file.check()

    def report(
        self,
        seconds: float | None = None,
        differing: tuple[str, ...] = (),
        nonfinite: tuple[str, ...] = (),
    ) -> Report:
        """The report of this job, before it runs or with what a run found out."""
        plan, target = self.plan, self.output.target
        excluded = sum(entry.how == "excluded" for entry in plan.treated)
        tasks = plan.tasks
        written = [task for layout in self.output.layouts for task in layout.tasks]
        counts = {
            "averaged": sum(task.kind == "average" and len(task.inputs) > 0 for task in tasks),
            "integer": sum(task.kind == "integer" for task in tasks),
            "copied": sum(task.kind == "copy" for task in tasks),
            "dropped": sum(
                entry.how == "dropped" or entry.why == "dropped" for entry in plan.treated
            ),
            "excluded": excluded,
        }
        return Report(
            output=STDOUT if target.path is None else target.path,
            format=target.kind,
            inputs=tuple(
                _summary(checkpoint, name, weight)
                for checkpoint, name, weight in zip(
                    self.checkpoints, plan.inputs, plan.weights, strict=True
                )
            ),
            tensors=counts,
            elements=sum(task.numel for task in tasks),
            read=sum(source.spec.nbytes for task in written for source in task.sources),
            written=self.output.size,
            files=len(self.output.layouts),
            memory=self.budget.memory,
            threads=self.budget.threads,
            device=self._resources.device,
            treated=tuple(
                {"name": entry.name, "how": entry.how, "why": entry.why} for entry in plan.treated
            ),
            ties=plan.ties,
            differing_integers=differing,
            nonfinite=nonfinite,
            notes=(*self._notes, *plan.notes, *self.output.notes),
            recipe=self._recipe,
            seconds=seconds,
        )


def average(
    inputs: Sequence[Path],
    weights: Sequence[float] | None = None,
    *,
    output: Path | None,
    policy: Policy | None = None,
    sum_to: weights.Sum = "one",
    resources: Resources | None = None,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Average checkpoints into one, in constant memory.

    ``inputs`` are files or folders, all of one kind or mixed; ``weights`` one number each (None:
    the mean), which must sum to 1 unless ``sum_to`` is ``normalize`` or ``raw``. ``output`` is a
    path, or None for standard output (safetensors). Nothing is printed; ``on_progress`` is called
    after every chunk. Raises RequestError, MismatchError, InputError, OutputError or
    NumericsError; the destination is then as it was.
    """
    job = prepare(
        inputs,
        weights,
        output=output,
        policy=policy,
        sum_to=sum_to,
        resources=resources,
        force=force,
    )
    return job.run(on_progress)


def prepare(
    inputs: Sequence[Path],
    weights_given: Sequence[float] | None = None,
    *,
    output: Path | None,
    policy: Policy | None = None,
    sum_to: weights.Sum = "one",
    resources: Resources | None = None,
    force: bool = False,
) -> Job:
    """Open, match and plan; write nothing. The arguments are those of :func:`average`.

    An empty ``output`` stands for the default name, ``averaged`` with the first input's suffix.
    """
    policy = Policy() if policy is None else policy
    resources = Resources() if resources is None else resources
    paths = [os.fspath(path) for path in inputs]
    if not paths:
        raise RequestError("No checkpoints given.")
    if weights_given is None:
        numbers = weights.mean(len(paths))
    else:
        numbers = weights.given(weights_given, len(paths), sum_to)
    if resources.device != "cpu":
        from swavg.kernels.torch import check_device

        if resources.device != "torch":
            check_device(resources.device)
    checkpoints = open_all(paths, policy.key)
    shown = short_names(paths)
    notes = [
        f"{name}: {note}"
        for name, checkpoint in zip(shown, checkpoints, strict=True)
        for note in checkpoint.notes
    ]
    notes += _same_twice(shown, checkpoints)
    plan = make_plan(checkpoints, numbers, policy, inputs=shown, ties=confirmed_ties(checkpoints))
    where = None if output is None else os.fspath(output) or default_path(checkpoints[0])
    values = recipe(shown, numbers, policy)
    laid_out = lay_out(
        choose_target(where, checkpoints[0], policy.max_shard_size),
        plan.tasks,
        plan.ties,
        checkpoints[-1],
        len(checkpoints) - 1,
        as_text(values),
        drop_ties=policy.drop_ties,
        weights_only=policy.weights_only,
        max_shard_size=policy.max_shard_size,
    )
    budget = Budget.within(resources, laid_out.layouts, policy)
    return Job(checkpoints, plan, laid_out, budget, resources, values, notes, force)


def open_all(paths: Sequence[str], key: str | None = None) -> list[Checkpoint]:
    """Open checkpoints; equal headers are parsed and kept once."""
    shared: dict[Any, Any] = {}
    return [open_checkpoint(path, key=key, shared=shared) for path in paths]


def _same_twice(shown: Sequence[str], checkpoints: Sequence[Checkpoint]) -> list[str]:
    seen: dict[tuple[Any, ...], str] = {}
    notes = []
    for name, checkpoint in zip(shown, checkpoints, strict=True):
        identity = tuple((file.device, file.inode) for file in checkpoint.files)
        if identity in seen:
            notes.append(f"{name} is the same file as {seen[identity]}: it counts twice")
        seen.setdefault(identity, name)
    return notes


def confirmed_ties(checkpoints: Sequence[Checkpoint]) -> list[tuple[str, ...]]:
    """Groups of canonical names that are one tensor in every checkpoint that has them.

    A tie that one checkpoint declares (a .pt, by sharing storage) is looked up in the others;
    where a format cannot tell, the bytes are compared.
    """
    names = [by_canonical_name(list(checkpoint.tensors)) for checkpoint in checkpoints]
    candidates: dict[tuple[str, ...], None] = {}
    taken: set[str] = set()
    for checkpoint in reversed(checkpoints):
        for group in checkpoint.ties:
            found = tuple(canonical(name) for name in group)
            if taken.isdisjoint(found):
                candidates[found] = None
                taken.update(found)
    with FilePool() as pool:
        return [
            group
            for group in candidates
            if all(
                _is_tied(pool, checkpoint, [mapping[name] for name in group if name in mapping])
                for checkpoint, mapping in zip(checkpoints, names, strict=True)
            )
        ]


def _is_tied(pool: FilePool, checkpoint: Checkpoint, names: Sequence[str]) -> bool:
    tensors = [checkpoint.tensors[name] for name in names]
    return all(_same_bytes(pool, checkpoint, tensors[0], other) for other in tensors[1:])


def _same_bytes(pool: FilePool, checkpoint: Checkpoint, one: Tensor, other: Tensor) -> bool:
    a, b = one.extent, other.extent
    if (one.spec.dtype, one.spec.shape) != (other.spec.dtype, other.spec.shape):
        return False
    if a == b:
        return True
    if a.strides is not None or b.strides is not None:
        return False
    step = 1 << 20
    return all(
        pool.read(checkpoint.files[a.file], a.offset + start, min(step, a.nbytes - start))
        == pool.read(checkpoint.files[b.file], b.offset + start, min(step, a.nbytes - start))
        for start in range(0, a.nbytes, step)
    )


def _refuse_inputs(path: str, checkpoints: Sequence[Checkpoint]) -> None:
    """Raise OutputError if publishing would touch an input, or the links that lead to one."""
    try:
        facts = os.stat(path)
    except OSError:
        return
    real = os.path.realpath(path)
    for checkpoint in checkpoints:
        same = any(
            (file.device, file.inode) == (facts.st_dev, facts.st_ino) for file in checkpoint.files
        )
        # Where they lie by name as well as by content: in the hub cache, shards are links.
        places = [checkpoint.path, *(file.path for file in checkpoint.files)]
        found = {os.path.realpath(place) for place in places}
        for place in places:
            parent, name = os.path.split(os.path.abspath(place))
            found.add(os.path.join(os.path.realpath(parent), name))
        if same or real in found or any(place.startswith(real + os.sep) for place in found):
            raise OutputError(
                path,
                f"holds the input {checkpoint.path}" if os.path.isdir(path) else "is an input",
                hint="swavg never writes over an input; choose another -o.",
            )


def _refuse_inputs_as_stdout(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise OutputError if standard output was redirected into an input (``-o - >> a``)."""
    facts = os.fstat(sys.stdout.fileno())
    for checkpoint in checkpoints:
        for file in checkpoint.files:
            if (file.device, file.inode) == (facts.st_dev, facts.st_ino):
                raise OutputError("standard output", f"is the input {file.path}")


def _refuse_other_files(path: str, output: Output) -> None:
    """Raise OutputError if replacing the folder would lose anything but an older checkpoint."""
    written = {layout.name for layout in output.layouts} | {*output.files, *output.side_files}
    stems = {weights_stem(layout.name) for layout in output.layouts}
    others = [
        entry.name
        for entry in os.scandir(path)
        if entry.name not in written
        # Weights of another name (step-100.safetensors) are not ours to remove.
        and (entry.is_dir(follow_symlinks=False) or weights_stem(entry.name) not in stems)
    ]
    if others:
        shown = ", ".join(sorted(others)[:4]) + (", ..." if len(others) > 4 else "")
        raise OutputError(
            path,
            f"would be replaced, but holds what the new checkpoint does not: {shown}",
            hint="Choose another -o, or remove the folder yourself.",
        )


def _fill(sink: publish.Sink, layout: Layout, stream: Stream, tick: Callable[[], None]) -> None:
    for piece in layout.frame(stream.chunks(layout)):
        sink.write(piece)
        tick()
    if sink.written != layout.size:
        raise AssertionError(f"{sink.written} bytes written, {layout.size} planned")


def _verify(layout: Layout, path: str, shown: str) -> None:
    try:
        layout.verify(path)
    except OutputError as error:
        # Its temporary name means nothing to anyone.
        raise OutputError(shown, error.problem) from None


def _copy(source: str, name: str, folder: Any, shown: str) -> None:
    with open_input(source) as (fd, file), publish.write_into(folder, name, shown=shown) as sink:
        position = 0
        while position < file.size:
            try:
                data = os.pread(fd, 1 << 20, position)
            except OSError as error:
                raise InputError(source, f"read error: {error.strerror}") from None
            if not data:
                raise InputError(source, "was cut short while it was copied")
            sink.write(data)
            position += len(data)


def _summary(checkpoint: Checkpoint, name: str, weight: float) -> InputSummary:
    dtypes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        dtype = tensor.spec.dtype.name
        dtypes[dtype] = dtypes.get(dtype, 0) + math.prod(tensor.spec.shape)
    ordered = dict(sorted(dtypes.items(), key=lambda item: -item[1]))
    return InputSummary(
        name,
        checkpoint.path,
        weight,
        checkpoint.size,
        checkpoint.format,
        len(checkpoint),
        ordered,
    )
