"""What a searched folder holds besides the snapshots of its run: averages, and copies."""

from __future__ import annotations

from collections.abc import Sequence

from swavg.formats import recipe_in
from swavg.series.candidates import Candidate
from swavg.series.inside import is_of_inputs
from swavg.series.model import labels
from swavg.series.names import marks_in


def without_averages(candidates: Sequence[Candidate], notes: list[str]) -> list[Candidate]:
    """A searched folder without what swavg made of others in it, going by its recipe alone; one
    that holds nothing else is a series of averages.

    So it is with averages that swavg took in training, beside snapshots of what they average.
    """
    for candidate in candidates:
        if candidate.searched:
            candidate.recipe = recipe_in(candidate.path)
    plain = [c for c in candidates if c.searched and not c.name.is_copy and not _is_made(c)]
    trained = [candidate for candidate in plain if candidate.recipe is None]
    run = _common_marks(trained)
    own = [candidate for candidate in trained if candidate.name.marks <= run]
    raw = any(candidate.counts for candidate in own)
    unmade = len(plain) > len(trained) or bool(own)

    def made(candidate: Candidate) -> bool:
        return candidate.recipe is not None and (unmade if _is_made(candidate) else raw)

    if left := [candidate.path for candidate in candidates if made(candidate)]:
        notes.append(f"ignored {labels(left)}: swavg wrote {'it' if len(left) == 1 else 'them'}")
    return [candidate for candidate in candidates if not made(candidate)]


def _common_marks(candidates: Sequence[Candidate]) -> frozenset[str]:
    """Words that several have, all of them: the name of their run."""
    if len(candidates) < 2:
        return frozenset()
    return frozenset.intersection(*(candidate.name.marks for candidate in candidates))


def _is_made(candidate: Candidate) -> bool:
    """Whether swavg made it of other checkpoints: a recipe of training has no inputs."""
    return candidate.recipe is not None and is_of_inputs(candidate.recipe)


def without_marked(
    candidates: Sequence[Candidate], pattern: str | None, notes: list[str]
) -> list[Candidate]:
    """A searched folder without what other tools call an average, a copy or a beginning
    (``epoch_5_avg.pt``), if it has snapshots with steps that are called nothing of the kind.

    A word that all snapshots have is the run's name; one that ``pattern`` says is asked for.
    """
    own = [candidate for candidate in candidates if candidate.searched and candidate.recipe is None]
    stepped = [candidate for candidate in own if candidate.counts and not candidate.name.is_copy]
    meant = _common_marks(stepped) | marks_in(pattern or "")
    marked = sum(bool(candidate.name.marks - meant) for candidate in stepped)
    if marked == len(stepped) or (marked > 1 and len(stepped) - marked == 1):
        # Of one snapshot among many marked ones nobody knows what it is.
        return [*candidates]
    left = {id(c): c.name.marks - meant for c in own if c.name.marks - meant}
    if left:
        word = min(next(iter(left.values())))
        paths = [candidate.path for candidate in candidates if id(candidate) in left]
        notes.append(
            f"ignored {labels(paths)}: by name no snapshots of the run (--pattern '*{word}*' takes"
            " such ones)"
        )
    return [candidate for candidate in candidates if id(candidate) not in left]
