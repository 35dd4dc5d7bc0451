"""The greedy soup of checkpoints: those whose mean scores best, by whatever gives a file a number.

Each checkpoint is scored by itself; then, best first, the mean of those kept and one more. What was
found is kept in a csv as it is found, so that an interrupted soup goes on from there.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from swavg.engine.average import paths_of, prepare
from swavg.engine.outputs import check
from swavg.engine.recipe import short_names
from swavg.engine.resources import Resources
from swavg.engine.stale import replacing_averages
from swavg.errors import OutputError, RequestError
from swavg.evaluation.outputs import ROOM
from swavg.evaluation.running_soup import RunningSoup, beside, policy_of_candidates
from swavg.evaluation.survey import cache_key, cell_of
from swavg.evaluation.table import (
    PARTIAL,
    check_place,
    discard,
    finished_rows,
    is_table,
    opened,
    publish,
)
from swavg.evaluation.tried import COLUMNS, Log, OnEvaluation, Tried
from swavg.formats.tensors import Shared
from swavg.planning.plan import Plan
from swavg.planning.policy import Policy
from swavg.planning.row import Path, Request, Row
from swavg.planning.targets import suffix_of
from swavg.storage.destination import check_local, destination, is_stream
from swavg.storage.paths import absolute, check_all
from swavg.storage.protect import check_not_input
from swavg.storage.publish import parents_made
from swavg.weights import Mode, Trial, mean, trials

ScoreOf = Callable[[str], float]
"""Called with the path of a checkpoint; returns its score."""

METHOD = "greedy soup"
_NOT_POSSIBLE = ("missing", "integers", "lora", "rename", "strip_prefix")


@dataclass(frozen=True, slots=True)
class Soup:
    """What was tried, and the mean of those kept, to be made of them."""

    tried: tuple[Tried, ...]
    request: Request
    csv: str


@dataclass(frozen=True)
class Search:
    """A soup to be found. ``plan`` is of the mean of all: what can be refused is refused with it,
    before hours are spent."""

    paths: tuple[str, ...]
    plan: Plan
    policy: Policy
    mode: Mode
    accept_equal: bool
    csv: str
    key: Mapping[str, object]
    """What the scores depend on."""
    shared: Shared | None = None
    force: bool = False
    anew: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(cell_of, short_names(self.paths)))

    @property
    def of_all(self) -> Request:
        """The mean of all: the most that the soup can be."""
        row = _row(len(self.paths))
        return Request(self.paths, (row,), self.policy, notes=self.notes, shared=self.shared)

    @property
    def notes(self) -> tuple[str, ...]:
        """What it takes."""
        n = len(self.paths)
        stored = f" (all are in {self.csv})" if self.finished else ""
        return (
            f"{self.evaluations} evaluations, fewer if some have no score: of {n} checkpoints, then"
            f" of {n - 1} candidates{stored}",
            "a candidate reads a checkpoint and the candidate before it, which is in float32; this"
            " is the plan of the mean of all, which is the most that the soup can be",
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an evaluation has to see to."""
        if not any(output.running_statistics for output in self.plan.outputs):
            return ()
        return (
            "candidates hold averaged batch-norm statistics: recompute them before the score is"
            " taken",
        )

    @property
    def unfinished(self) -> str:
        """The csv until all is done."""
        return f"{destination(self.csv)}{PARTIAL}"

    @property
    def evaluations(self) -> int:
        """At most: those without a number are not tried."""
        return 2 * len(self.paths) - 1

    @property
    def finished(self) -> bool:
        """Whether the csv is there, and of this very soup."""
        return not self.anew and finished_rows(self.csv, self.key, COLUMNS) is not None


def prepare_soup(
    checkpoints: Sequence[Path],
    output: Path,
    *,
    mode: Mode,
    depends_on: Mapping[str, object],
    accept_equal: bool = True,
    csv: Path | None = None,
    policy: Policy | None = None,
    shared: Shared | None = None,
    force: bool = False,
    if_stale: bool = False,
    anew: bool = False,
) -> Search:
    """The soup of ``checkpoints`` that goes to ``output`` (empty: the default name), a file or
    folder of this machine. Nothing is written.

    ``mode`` says whether the lowest or the highest score is best, ``depends_on`` in plain values
    what scores depend on besides the checkpoints. Without ``accept_equal`` a candidate must be
    better to be kept. The ``csv`` lies beside the output. ``force`` replaces what is there,
    ``if_stale`` only an average and its csv; with ``anew`` earlier scores do not count. Raises
    RequestError, MismatchError, InputError or OutputError for what would fail at the end.
    """
    policy = Policy() if policy is None else policy
    paths = tuple(paths_of(checkpoints))
    _check(paths, policy)
    plan = prepare(paths, [_row(len(paths))], [output], policy, force=force, shared=shared)
    target = plan.outputs[0].target.path
    if target is None or is_stream(target):
        raise RequestError("A soup is written to a file or a folder, beside which it is made.")
    check_local(target)
    check(replacing_averages(plan) if if_stale else plan)
    key = cache_key(
        "soup",
        [*zip(plan.shown, plan.checkpoints, strict=True)],
        {
            "mode": mode,
            "strictly": not accept_equal,
            "options": policy_of_candidates(policy).changed,
            **depends_on,
        },
    )
    bare = target.rstrip("/")
    log = os.fspath(csv or f"{bare.removesuffix(suffix_of(bare))}.csv")
    replaced = force or (if_stale and is_table(log))
    made = Search(paths, plan, policy, mode, accept_equal, log, key, shared, replaced, anew)
    if is_stream(log) or destination(log) == destination(target):
        raise OutputError(log, "is no place for the csv", hint="Give csv= another path.")
    check_not_input(log, [(each.path, each.sources) for each in plan.checkpoints])
    check_place(log, key, ROOM, force=made.force or made.finished)
    return made


def _check(paths: Sequence[str], policy: Policy) -> None:
    """RequestError for what is no series of ingredients, or cannot be had of a mean of means."""
    places = Counter(map(absolute, paths))
    for path in paths:
        if places[absolute(path)] > 1:
            raise RequestError(f"{path} is given twice: a checkpoint is tried once.")
    changed = [name for name in _NOT_POSSIBLE if name in policy.changed]
    if not policy.strict or changed:
        name = changed[0] if changed else "strict"
        raise RequestError("cannot be had: a candidate is made of the one before it", argument=name)


def find_soup(
    search: Search,
    evaluate: ScoreOf,
    resources: Resources | None = None,
    on_evaluation: OnEvaluation | None = None,
) -> Soup:
    """The soup, found by evaluating each checkpoint and each candidate, but for those in the csv.

    Candidates are files of the first checkpoint's format, in float32, in a hidden folder beside the
    output; at most two are there at once. What ``evaluate`` raises, ends it: the same call goes on
    from there. Raises RequestError where nothing has a score, and as
    :func:`swavg.engine.average.execute`.
    """
    target = search.plan.outputs[0].target.path
    assert target is not None
    with (
        parents_made(target),
        parents_made(search.csv),
        opened(search.csv, search.key, COLUMNS, anew=search.anew, force=search.force) as table,
        beside(target, search.paths, search.plan, search.policy, resources) as candidates,
    ):
        log = Log(table, len(search.paths), on_evaluation)
        found = _soup(search, log, evaluate, candidates)
        check_all(search.plan.sources)
        if not search.finished:
            publish(table, search.csv, force=search.force)
        discard(table)
    return found


def _soup(search: Search, log: Log, evaluate: ScoreOf, candidates: RunningSoup) -> Soup:
    names, scores = search.names, []
    for name, path in zip(names, search.paths, strict=True):
        scores.append(log.score(partial(evaluate, path)))
        log.add(Tried(name, 1, scores[-1], None))
    measured = [index for index, score in enumerate(scores) if math.isfinite(score)]
    if not measured:
        raise RequestError(
            "No checkpoint has a finite score.",
            hint="After a change in what gives the scores, use anew=True.",
        )
    log.expect(len(measured))
    order = sorted(measured, key=scores.__getitem__, reverse=search.mode == "max")

    def score_of(members: tuple[int, ...]) -> float:
        if len(members) == 1:
            return scores[members[0]]
        return log.score(lambda: evaluate(candidates.path(members)))

    kept: list[Trial] = []
    for trial in trials(score_of, order, search.mode, accept_equal=search.accept_equal):
        log.add(Tried(names[trial.ingredient], len(kept) + 1, trial.metric, trial.kept))
        kept += [trial] * trial.kept
    log.check_end()
    return Soup(tuple(log.tried), _request(search, kept), search.csv)


def _request(search: Search, kept: Sequence[Trial]) -> Request:
    """The mean of those kept, in the order of the series."""
    inputs = tuple(search.paths[index] for index in sorted(trial.ingredient for trial in kept))
    names = dict(zip(inputs, short_names(inputs), strict=True))
    details = {
        "n": len(kept),
        "mode": search.mode,
        "order": [names[search.paths[trial.ingredient]] for trial in kept],
        "scores": [trial.metric for trial in kept],
    }
    return Request(inputs, (_row(len(kept), details),), search.policy, shared=search.shared)


def _row(count: int, details: Mapping[str, object] | None = None) -> Row:
    return Row(mean(count), tuple(range(count)), METHOD, details or {}, name="soup")
