"""What an average was made of, and what that was made of, as far as recipes say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from swavg.engine.nearby import find_near
from swavg.engine.origins import Input, inputs_in, lineage_in, origins_of
from swavg.errors import InputError
from swavg.formats.parts import open_whole


@dataclass(frozen=True, slots=True)
class Ancestor:
    """An input of an average, or of one of its inputs; the next ones of a higher level are its
    own."""

    level: int
    told: Input
    recipe: Mapping[str, object]
    """How it was made itself; empty where it is no average, or where nobody says."""
    left_out: int = 0
    """How many of its siblings follow that are not told."""
    repeated: bool = False
    """Its own inputs were told before."""


@dataclass(frozen=True, slots=True)
class _Family:
    output: str
    most: int
    deepest: int
    known: dict[str, Mapping[str, object]] = field(default_factory=dict)
    """Recipes by the fingerprints of what they made."""
    told: set[str] = field(default_factory=set)

    def learn(self, recipe: Mapping[str, object]) -> None:
        for entry in lineage_in(recipe):
            self.known.setdefault(str(entry["fingerprint"]), entry)

    def below(self, recipe: Mapping[str, object], level: int = 0) -> Iterator[Ancestor]:
        inputs = inputs_in(recipe)
        for at, told in enumerate(inputs[: self.most]):
            digits, own = self.recipe_of(told, recipe)
            repeated = bool(own) and digits in self.told
            left_out = len(inputs) - self.most if at == self.most - 1 else 0
            yield Ancestor(level, told, own, max(0, left_out), repeated)
            if own and not repeated and level < self.deepest:
                self.told.add(digits)
                yield from self.below(own, level + 1)

    def recipe_of(
        self, told: Input, recipe: Mapping[str, object]
    ) -> tuple[str, Mapping[str, object]]:
        """The fingerprint of an input of a recipe, and how it was made, as that says, or the file
        itself where it does not."""
        if told.digits in self.known:
            return told.digits, self.known[told.digits]
        # Those that tell of sizes tell of averages, too.
        path = None if "sizes" in recipe else find_near(self.output, told)
        try:
            if path is None:
                return "", {}
            (origin,) = origins_of([open_whole(path)], [told.name])
        except InputError:
            return "", {}
        if told.digits not in (None, origin.own.digits) or not inputs_in(origin.recipe):
            return "", {}
        self.learn(origin.recipe)
        return origin.own.digits, origin.recipe


def ancestry(
    output: str, recipe: Mapping[str, object], *, most: int, deepest: int
) -> Iterator[Ancestor]:
    """The inputs of the average ``output``, each followed by its own: of each at most so many, down
    to a level. Files near the output are looked at where the recipe is of a version that did not
    tell of them."""
    family = _Family(output, most, deepest)
    family.learn(recipe)
    yield from family.below(recipe)
