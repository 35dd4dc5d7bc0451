"""Many averages of one series."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from swavg import weights
from swavg.averaging import prepare_many
from swavg.errors import RequestError
from swavg.job import Job, Path, Wanted
from swavg.methods.smooth import last_step, smoothing
from swavg.series import Series, select


@dataclass(frozen=True, slots=True)
class SweepRecipe:
    """One average of a sweep, as ``uniform:last=5`` or ``ema:half-life=2000steps,to-step=9000``."""

    text: str
    method: Literal["uniform", "ema"]
    options: Mapping[str, str]

    @property
    def name(self) -> str:
        """A file name that says what it is: ``uniform-last-5``."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.text).strip("-")


_CHOICES = {"last": int, "from-step": int, "to-step": int, "every": int, "best": int,
            "metric": str, "mode": str}  # fmt: skip
_SMOOTHING = ("decay", "half-life", "span", "warmup")
_FLAGS = ("debias", "per-step", "at-most")


def sweep_recipe(text: str) -> SweepRecipe:
    """Parse a recipe. Raises RequestError, naming what can be said."""
    method, _, rest = text.partition(":")
    options: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        key = key.strip()
        if key in _FLAGS and not equals:
            options[key] = ""
        elif equals and (key in _CHOICES or (method == "ema" and key in _SMOOTHING)):
            options[key] = value.strip()
        else:
            raise RequestError(
                f"Recipe '{text}': '{part}' is not understood.",
                hint=f"A {method} recipe takes {', '.join((*_CHOICES, *_SMOOTHING, *_FLAGS))}.",
            )
    if method not in ("uniform", "ema"):
        raise RequestError(
            f"Recipe '{text}': there is no method '{method}'.",
            hint="Write uniform:last=5 or ema:half-life=2000steps.",
        )
    return SweepRecipe(text, "uniform" if method == "uniform" else "ema", options)


def sweep(
    series: Series, recipes: Sequence[SweepRecipe], outputs: Sequence[Path | None], **run: Any
) -> list[Job]:
    """Many averages of one series, one job each, for one read of the inputs."""
    wanted = []
    for recipe, output in zip(recipes, outputs, strict=True):
        try:
            picked = _picked(series, recipe)
            members = tuple(series.paths.index(path) for path in picked.paths)
            numbers, details = _weighed(picked, recipe)
        except RequestError as error:
            raise RequestError(
                f"Recipe '{recipe.text}': {error.message}", hint=error.hint
            ) from None
        method = "mean" if recipe.method == "uniform" else "ema"
        wanted.append(Wanted(output, numbers, members, method, details))
    used = sorted({member for each in wanted for member in each.members or ()})
    places = {member: place for place, member in enumerate(used)}
    wanted = [
        replace(each, members=tuple(places[member] for member in each.members or ()))
        for each in wanted
    ]
    return prepare_many([series.paths[member] for member in used], wanted, **run)


def _picked(series: Series, recipe: SweepRecipe) -> Series:
    chosen: dict[str, Any] = {}
    for key, kind in _CHOICES.items():
        if key in recipe.options:
            try:
                chosen[key.replace("-", "_")] = kind(recipe.options[key])
            except ValueError:
                raise RequestError(f"{key}={recipe.options[key]} is no whole number.") from None
    return select(series, at_most="at-most" in recipe.options, **chosen) if chosen else series


def _weighed(picked: Series, recipe: SweepRecipe) -> tuple[tuple[float, ...], dict[str, Any]]:
    if recipe.method == "uniform":
        return weights.mean(len(picked)), {"n": len(picked)} | last_step(picked.steps)
    options = recipe.options
    try:
        decay = float(options["decay"]) if "decay" in options else None
    except ValueError:
        raise RequestError(f"decay={options['decay']} is no number.") from None
    how = smoothing(
        picked.steps,
        decay=decay,
        half_life=options.get("half-life"),
        span=options.get("span"),
        per_step="per-step" in options,
        debias="debias" in options,
        warmup=options.get("warmup"),
        counting=picked.unit,
    )
    return how.over(picked.steps), how.details(picked.steps, len(picked))
