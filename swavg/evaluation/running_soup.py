"""Candidates of a soup: each is made of the soup so far and one more, ``(n S + x)/(n+1)``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from swavg.engine.average import execute, prepare
from swavg.engine.resources import Resources
from swavg.planning.plan import Plan
from swavg.planning.policy import Policy
from swavg.planning.row import Row
from swavg.planning.targets import default_suffix, writable
from swavg.storage.destination import destination
from swavg.storage.temporary import Temporary, clear_partials, remove
from swavg.weights import running


def policy_of_candidates(policy: Policy) -> Policy:
    """What becomes of tensors in candidates: sums in float32, and all that a loader looks for."""
    return replace(
        policy,
        dtype="float32",
        mixed_dtypes=True,
        drop_excluded=False,
        drop_ties=False,
        weights_only=False,
        max_shard_size=None,
        format=None,
    )


class RunningSoup:
    """Makes candidates in a folder, in which there are two at most: the soup and the newest."""

    def __init__(
        self, paths: Sequence[str], folder: str, suffix: str, policy: Policy, resources: Resources
    ) -> None:
        self._paths, self._folder, self._suffix = paths, folder, suffix
        self._policy, self._resources = policy, resources
        self._files: dict[tuple[int, ...], str] = {}
        self.read = 0
        """Bytes of tensors."""

    def path(self, members: tuple[int, ...]) -> str:
        """The file of the mean of these checkpoints, each added to those before it. A single one
        is its own."""
        for count in range(2, len(members) + 1):
            if members[:count] not in self._files:
                self._make(members[:count])
        return self._file(members)

    def _file(self, members: tuple[int, ...]) -> str:
        return self._paths[members[0]] if len(members) == 1 else self._files[members]

    def _make(self, members: tuple[int, ...]) -> None:
        *kept, new = members
        soup = tuple(kept)
        for other in self._files.keys() - {soup}:
            remove(self._files.pop(other))
        path = os.path.join(self._folder, f"soup-{len(members)}-{new + 1}{self._suffix}")
        weights, inputs = running(len(kept)), (self._file(soup), self._paths[new])
        if new < max(kept):
            # What is not averaged is the last one's: it is to be that of the newest of all.
            weights, inputs = weights[::-1], inputs[::-1]
        row = Row(weights, (0, 1), "running mean", {"n": len(members)}, of_averages=True)
        plan = prepare(inputs, [row], [path], self._policy, distances=False)
        (report,) = execute(plan, self._resources)
        self._files[members] = path
        self.read += report.read


@contextmanager
def beside(
    target: str, paths: Sequence[str], plan: Plan, policy: Policy, resources: Resources | None
) -> Iterator[RunningSoup]:
    """Candidates of ``paths``, of which ``plan`` is, in a hidden folder beside ``target``, in the
    format of the first. The folder goes with the block, and that of a run that was killed."""
    first = plan.checkpoints[0]
    policy = policy_of_candidates(policy)
    suffix = ""
    if plan.parts is None:
        policy = replace(policy, format=writable(first.format))
        suffix = default_suffix(first.path, first.format, Policy())
    folder = Temporary(destination(target.rstrip("/")))
    clear_partials(destination(target.rstrip("/")))
    folder.create(folder=True, shown=target)
    try:
        yield RunningSoup(
            paths, folder.path, suffix, policy, Resources() if resources is None else resources
        )
    finally:
        remove(folder.path)
        folder.close()
