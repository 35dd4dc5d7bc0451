"""What recipes say of inputs, and of what these are averages of."""

import json
import os

import composites
import pytest
import run_of_five
from checkpoints import save, state

import swavg
from swavg.engine.origins import as_before, inputs_in, lineage_in
from swavg.engine.recipe import recipe_of
from swavg.engine.stale import up_to_date
from swavg.engine.verify import verify
from swavg.methods import update
from swavg.planning.policy import Policy
from swavg.planning.row import Row


@pytest.fixture
def paths(tmp_path):
    return [save(tmp_path / f"step_{step}.safetensors", state(step)) for step in run_of_five.STEPS]


def updated(average, new, output):
    request = update(average, new, policy=Policy(), again=True)
    swavg.execute(swavg.prepare(request.inputs, request.rows, [output], request.policy, force=True))
    return output


def test_inputs_are_told_by_size_step_and_fingerprint(tmp_path, paths):
    swavg.average(paths[:2], output=tmp_path / "a.safetensors")
    recipe = recipe_of(tmp_path / "a.safetensors")
    assert recipe["sizes"] == [os.path.getsize(path) for path in paths[:2]]
    assert recipe["steps"] == [10, 20]
    # One mechanism: what it holds are its inputs.
    assert "fingerprints" not in recipe
    digits = [entry.split()[0] for entry in recipe["holds"]]
    assert [each.digits for each in inputs_in(recipe)] == digits
    assert [(each.name, each.weight, each.step) for each in inputs_in(recipe)] == [
        ("step_10.safetensors", 0.5, 10),
        ("step_20.safetensors", 0.5, 20),
    ]


def test_a_unit_is_that_of_all(tmp_path):
    paths = [
        save(tmp_path / name, state(at)) for at, name in enumerate(("epoch_3.pt", "a.pt", "b.pt"))
    ]
    swavg.average(paths, output=tmp_path / "mean.pt")
    assert recipe_of(tmp_path / "mean.pt")["epochs"] == [3, None, None]
    swavg.average(paths[1:], output=tmp_path / "other.pt")
    assert recipe_of(tmp_path / "other.pt").keys().isdisjoint({"steps", "epochs"})


def test_a_weight_of_0_is_an_input_that_is_not_held(tmp_path, paths):
    swavg.average(paths[:2], [1, 0], output=tmp_path / "a.safetensors")
    recipe = recipe_of(tmp_path / "a.safetensors")
    assert len(recipe["holds"]) == 1
    assert [each.digits for each in inputs_in(recipe)] == recipe["fingerprints"]


def test_the_lineage_of_an_update_has_all_that_is_behind_it(tmp_path, paths):
    first = tmp_path / "a.safetensors"
    swavg.average(paths[:2], output=first)
    for path in paths[2:4]:
        # Nothing else says what was there.
        os.replace(updated(first, [path], tmp_path / "b.safetensors"), first)
    recipe = recipe_of(first)
    lineage = lineage_in(recipe)
    assert [[*each["inputs"]] for each in lineage] == [
        ["a.safetensors", "step_30.safetensors"],
        ["step_10.safetensors", "step_20.safetensors"],
    ]
    assert inputs_in(recipe)[0].digits == lineage[0]["fingerprint"]
    assert inputs_in(lineage[0])[0].digits == lineage[1]["fingerprint"]
    assert [each.step for each in inputs_in(lineage[1])] == [10, 20]
    assert [entry.split()[1] for entry in recipe["holds"]] == [
        f"step_{step}.safetensors" for step in (10, 20, 30, 40)
    ]


def test_the_same_average_twice_is_told_once(tmp_path, paths):
    a = tmp_path / "a.safetensors"
    swavg.average(paths[:2], output=a)
    b, c = (updated(a, [path], tmp_path / f"b-{os.path.basename(path)}") for path in paths[2:4])
    swavg.average([b, c], output=tmp_path / "d.safetensors")
    made = [each["inputs"][0] for each in lineage_in(recipe_of(tmp_path / "d.safetensors"))]
    assert made == ["a.safetensors", "a.safetensors", "step_10.safetensors"]


def test_a_lineage_does_not_grow_beyond_what_every_format_holds(tmp_path, paths):
    entries = [
        {"fingerprint": f"{at:016x}", "inputs": ["x" * 100], "weights": [1.0]} for at in range(1000)
    ]
    recipe = {"method": "mean", "n": 2, "inputs": ["b"], "weights": [1.0], "lineage": entries}
    long = save(tmp_path / "long.safetensors", state(1), {"swavg": json.dumps(recipe)})
    updated(long, paths[:1], tmp_path / "a.npz")
    lineage = lineage_in(recipe_of(tmp_path / "a.npz"))
    assert 100 < len(lineage) < 1000
    assert lineage[1:] == entries[: len(lineage) - 1]


@pytest.mark.parametrize(
    ("recipe", "digits"),
    [
        # As the version before wrote it.
        ({"inputs": ["a", "b"], "holds": ["~01 a", "02 b"]}, ["01", "02"]),
        ({"inputs": ["avg", "c"], "holds": ["01 a", "02 c"]}, [None, None]),
        ({"inputs": ["a", "b"]}, [None, None]),
        # As this one does.
        ({"inputs": ["x/a", "x/b"], "sizes": [1, 2], "holds": ["01 a", "02 b"]}, ["01", "02"]),
        ({"inputs": ["a", "b"], "fingerprints": ["~01", "02"], "holds": []}, ["01", "02"]),
        ({"inputs": ["a", "b"], "fingerprints": ["01"], "holds": ["1 a", "2 b"]}, [None, None]),
        ({"inputs": ["a", "b"], "sizes": "x", "steps": {}, "fingerprints": 3}, [None, None]),
        ({"inputs": "ab"}, []),
    ],
)
def test_what_recipes_say_of_any_age(recipe, digits):
    assert [each.digits for each in inputs_in(recipe)] == digits


def test_the_form_before_is_that_of_the_version_before(tmp_path, paths):
    swavg.average(paths[:2], output=tmp_path / "a.safetensors")
    assert [*as_before(recipe_of(tmp_path / "a.safetensors"))] == [
        "method", "n", "inputs", "weights", "holds", "options", "version",
    ]  # fmt: skip


@pytest.mark.parametrize("parts", [False, True])
def test_what_the_first_version_wrote_is_verified_and_up_to_date(tmp_path, parts):
    names = [str(tmp_path / f"step-{step}") for step in (1, 2)]
    for step, name in enumerate(names):
        if parts:
            composites.write(name, composites.llama(step))
        else:
            save(f"{name}.safetensors", state(step))
    paths = names if parts else [f"{name}.safetensors" for name in names]
    output = tmp_path / ("mean" if parts else "mean.safetensors")
    row = Row((0.5, 0.5), (0, 1), older=True)
    swavg.execute(swavg.prepare(paths, [row], [output]))
    assert "sizes" not in recipe_of(output)
    found = verify(output)
    assert (found.proven, found.notes) == (found.total, ())
    plan = swavg.prepare(paths, [Row((0.5, 0.5), (0, 1))], [output])
    assert up_to_date(plan)


def test_a_recipe_that_says_nothing_of_its_inputs_is_verified(tmp_path, paths):
    output = tmp_path / "mean.safetensors"
    recipe = {"method": "mean", "n": 2, "inputs": ["step_10.safetensors", "step_20.safetensors"],
              "weights": [0.5, 0.5], "options": {}, "version": "0.0.1"}  # fmt: skip
    row = Row((0.5, 0.5), (0, 1), recorded=json.dumps(recipe))
    swavg.execute(swavg.prepare(paths[:2], [row], [output]))
    found = verify(output)
    assert found.proven == found.total
    assert "of another version" in found.notes[0]
