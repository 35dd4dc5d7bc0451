"""Which prefix keeps the names of inputs apart, and when that is not what keeps them apart."""

import pytest

from swavg.planning.prefixes import behind_prefix

NAMES = ["h.0.w", "h.0.b", "h.1.w", "h.1.b", "ln_f.weight"]


def under(prefix, names=NAMES):
    return [prefix + name for name in names]


@pytest.mark.parametrize(
    ("one", "other", "prefixes", "fact"),
    [
        (NAMES, under("transformer."), {"transformer."}, "all 5 names of a are in b under"),
        (under("transformer."), NAMES, {"transformer."}, "all 5 names of b are in a under"),
        (NAMES, [*under("bert."), "cls"], {"bert."}, "all 5 names of a are in b under 'bert.'"),
        ([*NAMES, "head"], under("m."), {"m."}, "5 of 6 names of a are in b under 'm.'"),
        (NAMES, under("a.b.encoder."), {"a.b.encoder."}, "all 5 names of a"),
        (under("x."), under("y."), {"x.", "y."}, "5 names of a under 'x.' are in b under 'y.'"),
        (["w"], ["model.w"], {"model."}, "all 1 names of a"),
        (
            under("text_model."),
            [*under("clip.text_model."), *under("clip.vision_model.", map(str, range(30)))],
            {"clip."},
            "all 5 names of a are in b under 'clip.'",
        ),
    ],
)
def test_names_behind_a_prefix(one, other, prefixes, fact):
    found = behind_prefix([one, other], ["a", "b"])
    assert found is not None
    assert set(found.prefixes) == prefixes
    assert fact in found.fact


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (NAMES, NAMES),
        (NAMES, [*NAMES, "head"]),
        (NAMES, ["x.w", "y.b"]),
        (NAMES, [*under("encoder."), *under("decoder.")]),
        (["body.weight", "body.bias", "a", "b"], ["fc.weight", "fc.bias", "c", "d"]),
        ([], NAMES),
    ],
    ids=["same", "head", "others", "two", "half", "none"],
)
def test_what_no_prefix_explains(one, other):
    assert behind_prefix([one, other], ["a", "b"]) is None


def test_the_longer_prefix_is_stripped_first():
    found = behind_prefix([under("m.n."), under("m.", ["z"]), under("m."), NAMES], list("abcd"))
    assert found is not None
    assert found.hint.startswith("Use strip_prefix='m.n.' strip_prefix='m.' to match")
