"""Cases of arithmetic: dtypes, conversions, integers, and numbers that are none."""

from __future__ import annotations

from functools import partial

import numpy as np
from golden import build
from golden.build import of
from golden.running import Case, Source

LETTERS = "abcdefghijklmnopqrst"
NO_SUM = "sums of fp4 and fp6 will be refused unless all inputs are identical"
INF, NAN = float("inf"), float("nan")


def names(count: int) -> str:
    return " ".join(f"{letter}.safetensors" for letter in LETTERS[:count])


def named(**contents: Source) -> dict[str, Source]:
    return {f"{name}.safetensors": content for name, content in contents.items()}


def weighings(reports: bool) -> list[str]:
    """Command lines for one dtype: mean, weighted and negative weights of 1 to 20 inputs."""
    lines = []
    for count in (1, 2, 3, 7, 20):
        told = "" if reports and count == 2 else " -q"
        lines.append(f"average {names(count)} -o mean{count}.safetensors{told}")
    for count in (2, 3, 7, 20):
        weights = " ".join(str(i + 1) for i in range(count))
        told = " --json -q" if reports and count == 3 else " -q"
        lines.append(
            f"average {names(count)} -w {weights} --normalize -o weighted{count}.safetensors{told}"
        )
    for weights in ("1.5 -0.5", "0.7 -0.3 0.6", "1 -1 1 -1 1 -1 1", "0.1 -0.07" + " 0.0539" * 18):
        count = len(weights.split())
        lines.append(
            f"average {names(count)} -w {weights} --raw-weights -o raw{count}.safetensors -q"
        )
    return lines


def dtypes() -> list[Case]:
    cases = []
    for code in (*build.PACKED, "F8_E8M0", *build.FLOATS, *build.INTEGERS):
        files = {x: partial(build.dtype_file, code, x) for x in LETTERS}
        intended = NO_SUM if code in build.PACKED else ""
        lines = weighings(code in ("F4", "BF16", "F32", "C64", "I64", "BOOL"))
        if code in build.INTEGERS:
            lines = [f"{line} --integers last" for line in lines]
        cases.append(Case("dtypes", code, named(**files), lines, intended=intended))
    for code in build.PACKED:
        files = {x: partial(build.dtype_file, code, "a") for x in "abc"}
        lines = [f"average {names(3)} -o mean.safetensors", f"average {names(1)} -o one"]
        cases.append(Case("dtypes", f"{code}-identical", named(**files), lines))
    return cases


# Float64 near the ties of float16, bfloat16 and float32, where rounding twice goes wrong: the
# second addend is lost in float32 and decides in float64.
_STEPS = [2.0**-11, 2.0**-8, 2.0**-24, 3 * 2.0**-11, 3 * 2.0**-8, 3 * 2.0**-24]
TIES = [
    sign * (1 + step + nudge) * scale
    for step in _STEPS
    for nudge in (0.0, 2.0**-30, -(2.0**-30), 2.0**-45, -(2.0**-45))
    for scale in (1.0, 2.0**-14, 2.0**-130, 1.5)
    for sign in (1, -1)
]
EDGES = [0.0, -0.0, 65504.0, 65519.99, 5.96e-8, 2.98e-8, 2.99e-8, 6.1e-5, 1e-40, 1.4e-45, 7e-46]


def converts() -> list[Case]:
    def mixed(seed: str, *, extra: bool = False) -> bytes:
        tensors = {
            code.lower(): (code, (9,), build.raw(code, (9,), f"mixed {code} {seed}"))
            for code in ("F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64", "C64", "I32", "BOOL")
        }
        return build.file(tensors)

    cases = []
    files = named(a=partial(mixed, "a"), b=partial(mixed, "b"), c=partial(mixed, "c"))
    for to in ("float32", "float64", "float16", "bfloat16"):
        lines = [
            f"average {names(3)} --dtype {to} -o mean.safetensors",
            f"average {names(1)} --dtype {to} -o one.safetensors",
            f"average {names(2)} -w 0.3 0.7 --dtype {to} -o weighted.safetensors -q",
            f"average {names(2)} --exclude f* --dtype {to} -o copied.safetensors -v",
            f"average {names(2)} --dtype {to} -o - -q",
        ]
        lines += [
            f"average {names(3)} --dtype {to} --accumulate {a} -o {a}.safetensors -q"
            for a in ("float32", "float64")
        ]
        lines = [f"{line} --integers last" for line in lines]
        cases.append(Case("convert", f"mixed-to-{to}", files, lines))
    lines = [
        f"average {names(3)} --accumulate {a} -w 1 2 3 --normalize -o {a}.safetensors -q"
        " --integers last"
        for a in ("auto", "float32", "float64")
    ]
    cases.append(Case("convert", "accumulate", files, lines))
    double = named(
        a=lambda: of(t=("F64", TIES), e=("F64", EDGES)),
        b=lambda: of(t=("F64", TIES[::-1]), e=("F64", EDGES[::-1])),
    )
    single = named(
        a=lambda: of(t=("F32", TIES), e=("F32", EDGES)),
        b=lambda: of(t=("F32", TIES[::-1]), e=("F32", EDGES[::-1])),
    )
    for name, ties in (("float64", double), ("float32", single)):
        for to in ("float32", "float16", "bfloat16"):
            lines = [
                f"average a.safetensors --dtype {to} -o one.safetensors -q",
                f"average a.safetensors a.safetensors --dtype {to} -o same.safetensors -q",
                f"average a.safetensors b.safetensors --dtype {to} -o mean.safetensors -q",
                f"average a.safetensors --exclude e --dtype {to} -o copied.safetensors -q",
                f"average a.safetensors b.safetensors -w .25 .75 --dtype {to} --accumulate float32"
                " -o weighted.safetensors -q",
            ]
            cases.append(Case("convert", f"ties-{name}-to-{to}", ties, lines))
    return cases


def patterns(code: str, *, turned: bool = False) -> bytes:
    """All finite values of a 16-bit float, and both infinities without one that meets them."""
    every = np.arange(1 << 16, dtype=np.uint16).view(build.dtype(code))
    with np.errstate(invalid="ignore"):
        finite = every[np.isfinite(every.astype(np.float32))]
    return of(w=(code, finite[::-1] if turned else finite))


def numerics() -> list[Case]:
    def case(name: str, commands: list[str], **files: Source) -> Case:
        return Case("numerics", name, named(**files), commands)

    mask = [0.0, -INF, -INF, 1.5]
    cases = []
    both = ["average {} -o out.safetensors", "average {} --allow-nonfinite -o let.safetensors"]

    def twice(letters: str, more: str = "") -> list[str]:
        paths = " ".join(f"{letter}.safetensors" for letter in letters)
        return [line.format(paths + more) for line in both]

    for code in ("F16", "BF16", "F32", "F64", "F8_E5M2"):
        masked = of(mask=(code, mask), w=(code, [1.0, 2.0]))
        other = of(mask=(code, mask), w=(code, [3.0, 5.0]))
        odd = of(mask=(code, [0.0, -INF, 2.0, 1.5]), w=(code, [3.0, 5.0]))
        up = of(mask=(code, [0.0, INF, -INF, 1.5]), w=(code, [3.0, 5.0]))
        weights = " -w 1.5 -0.5"
        cases += [
            case(f"masks-{code}", twice("ab"), a=masked, b=other),
            case(f"masks-negative-{code}", twice("ab", weights), a=masked, b=other),
            case(f"masks-zero-{code}", twice("ab", " -w 1 0"), a=masked, b=other),
            case(f"masks-differ-{code}", twice("ab"), a=masked, b=odd),
            case(f"masks-opposed-{code}", twice("ab"), a=masked, b=up),
        ]
    for code in ("F16", "BF16", "F32", "F64", "F8_E4M3", "C64"):
        plain = of(w=(code, [1.0, 2.0, 3.0]), x=(code, [1.0]))
        nan = of(w=(code, [1.0, NAN, NAN]), x=(code, [1.0]))
        cases += [
            case(f"nan-{code}", twice("ab"), a=plain, b=nan),
            case(f"nan-in-all-{code}", twice("ab"), a=nan, b=nan),
            case(f"nan-weight-zero-{code}", twice("ab", " -w 1 0"), a=plain, b=nan),
            case(f"nan-copied-{code}", twice("ab", " --exclude w"), a=plain, b=nan),
        ]
    for code, big in (("F16", 6e4), ("BF16", 3e38), ("F32", 3e38), ("F64", 1.7e308)):
        large = of(w=(code, [big, -big, 1.0]), x=(code, [1.0]))
        double = of(w=("F64", [big, -big, 1.0]), x=("F64", [1.0]))
        cases += [
            case(f"large-mean-{code}", twice("ab"), a=large, b=large),
            case(f"overflow-{code}", twice("ab", " -w 1 1 --raw-weights"), a=large, b=large),
            case(
                f"overflow-and-back-{code}", twice("abc", " -w 2 -2 1"), a=large, b=large, c=large
            ),
            case(f"overflow-to-{code}", twice("a", " --dtype float16"), a=double),
        ]
    tiny = of(w=("F32", [1e-45, 3e-45, -1e-45, 1e-38]), x=("F64", [5e-324, 1e-323, -5e-324, 1.0]))
    zero = of(w=("F32", [-0.0, 0.0, 0.0, -0.0]), x=("F64", [-0.0, 0.0, 0.0, -0.0]))
    cases += [
        case("subnormals", twice("ab"), a=tiny, b=zero),
        case("zeros", twice("ab"), a=zero, b=zero),
        case("zeros-negative", twice("ab", " -w -1 2"), a=zero, b=zero),
    ]
    for code in ("F16", "BF16"):
        one, two = partial(patterns, code), partial(patterns, code, turned=True)
        lines = [
            "average a.safetensors b.safetensors -o mean.safetensors -q",
            "average a.safetensors a.safetensors a.safetensors -o same.safetensors -q",
            "average a.safetensors -w 0.3 --raw-weights -o third.safetensors -q",
            "average a.safetensors --dtype float32 -o wide.safetensors -q",
            "average a.safetensors b.safetensors -w 1.5 -0.5 --dtype float64 -o w.safetensors -q",
        ]
        cases.append(case(f"every-value-{code}", lines, a=one, b=two))
    files = named(
        a=of(w=("F64", [1.0, -2.0])), b=of(w=("F64", [-1.0, 2.0])), c=of(w=("F64", [1e200, 1.0]))
    )
    lines = [
        "average a.safetensors b.safetensors --json -o none.safetensors",
        "average c.safetensors a.safetensors -w 0 1 --json -o far.safetensors",
    ]
    intended = "distances that are no numbers will be null"
    cases.append(Case("numerics", "far", files, lines, intended=intended))
    infinite = of(w=("BF16", [INF, 1.0] * 300))
    cases.append(case("many-places", twice("ab", " -v"), a=infinite, b=infinite))
    return cases


def integers() -> list[Case]:
    def content(seed: str, *, alike: str = "") -> bytes:
        tensors = {
            code.lower(): (code, (11,), build.raw(code, (11,), f"integers {code} {seed}"))
            for code in build.INTEGERS
        }
        small = np.array([int(seed, 36) % 7, -3, 5, int(seed, 36)], np.int64)
        tensors["small"] = ("I64", (4,), small.tobytes())
        tensors["steps"] = ("I64", (), np.int64(1000 + int(seed, 36)).tobytes())
        tensors["fixed"] = ("I32", (3,), np.arange(3, dtype=np.int32).tobytes())
        tensors["w"] = ("F32", (5,), build.raw("F32", (5,), f"w {seed}"))
        return build.file(dict(sorted(tensors.items())))

    files = named(**{x: partial(content, x) for x in "abcd"})
    cases = []
    for rule in ("last", "first", "max", "mean", "error"):
        lines = [
            f"average {names(3)} --integers {rule} -o three.safetensors",
            f"average {names(4)} --integers {rule} -w 1 2 3 4 --normalize -o weighted.safetensors",
            f"average {names(2)} --integers {rule} -w 1.5 -0.5 -o negative.safetensors -q",
            f"average {names(1)} --integers {rule} -o one.safetensors -v",
            f"average {names(2)} --integers {rule} --include w -o only.safetensors --json -q",
            "average a.safetensors a.safetensors"
            f" --integers {rule} -o same.safetensors --no-geometry",
        ]
        cases.append(Case("integers", rule, files, lines))
    return cases


def large() -> list[Case]:
    paths = "a.safetensors b.safetensors c.safetensors"
    many = named(**{x: partial(build.large, x) for x in "abc"})
    lines = [
        f"average {paths} -o mean.safetensors",
        f"average {paths} --threads 1 -o one.safetensors -q",
        f"average {paths} --threads 3 --memory 2MiB -o small.safetensors -q",
        f"average {paths} -w 0.2 0.3 0.5 --json -q -o weighted.safetensors",
        f"average {paths} --dtype float32 -o wide.safetensors -q",
        f"average {paths} -w 1.5 -1 0.5 --dtype float16 -o - -q",
        f"average {paths} --exclude 'layers.1*' -o some.safetensors -v",
        f"average {paths} --max-shard-size 1MB -o shards",
    ]
    cases = [Case("large", "many", many, lines)]
    for code in ("F16", "BF16", "F32"):
        files = named(**{x: partial(build.single, x, code) for x in "ab"})
        lines = [
            "average a.safetensors b.safetensors --json -q -o mean.safetensors",
            "average a.safetensors b.safetensors -w 0.3 0.7 --threads 2 -q -o w.safetensors",
        ]
        cases.append(Case("large", f"single-{code}", files, lines))
    # Enough to read for worker processes.
    files = named(**{x: partial(build.large, x) for x in "abcdefgh"})
    lines = [f"average {names(8)} -o mean.safetensors", f"average {names(8)} --threads 2 -o - -q"]
    cases.append(Case("large", "eight", files, lines))
    return cases


CASES = [*dtypes(), *converts(), *numerics(), *integers(), *large()]
