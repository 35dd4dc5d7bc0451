"""The greedy soup on disk, against the algorithm of the paper in memory."""

import math
import os
import shutil
from itertools import count, pairwise

import pytest
import torch
from checkpoints import load, save, series, state

import swavg
from swavg.errors import MismatchError, NumericsError, OutputError, OutputExistsError, RequestError
from swavg.evaluation.running_soup import beside
from swavg.evaluation.soup import find_soup, prepare_soup
from swavg.methods import update

CENTRE = state(0)["body.bias"].double()


def distance(bias):
    """The score of weights: lower is better."""
    return ((bias.double() - CENTRE) ** 2).sum().item()


def score(path):
    return distance(load(path)["body.bias"])


def ingredients(folder, number=6, dtype=torch.float32, seed=0):
    """Checkpoints around the centre, so that some of their means lie nearer than others."""
    generator = torch.Generator().manual_seed(seed)
    paths = []
    for index in range(number):
        own = {"body.bias": (CENTRE + torch.randn(7, generator=generator)).to(dtype)}
        paths.append(save(folder / f"step-{index}.safetensors", state(index, dtype) | own))
    return paths


def of_the_paper(paths, mode="min", strictly=False):
    """Recipe 1 of Wortsman et al. 2022 (algorithm 1): indices in the order of their acceptance."""
    held = [load(path)["body.bias"].double() for path in paths]
    sign = 1 if mode == "min" else -1

    def value(indices):
        return sign * distance(sum(held[i] for i in indices) / len(indices))

    soup = []
    for index in sorted(range(len(held)), key=lambda i: value([i])):
        new, old = value([*soup, index]), value(soup) if soup else math.inf
        if new < old or (new == old and not strictly):
            soup.append(index)
    return soup


def soup(paths, evaluate, output, resources=None, **more):
    more = {"mode": "min", "depends_on": {"by": "test"}, **more}
    return find_soup(prepare_soup(paths, output, **more), evaluate, resources)


def made(found, output):
    plan = swavg.prepare(found.request.inputs, found.request.rows, [output], found.request.policy)
    return swavg.execute(plan)[0]


def kept(found):
    return [each.name for each in found.tried if each.kept]


def names(paths, indices):
    return [os.path.basename(paths[index]) for index in indices]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("seed", range(4))
def test_a_soup_is_that_of_the_paper(tmp_path, mode, seed):
    paths = ingredients(tmp_path, seed=seed)
    found = soup(paths, score, tmp_path / "soup.safetensors", mode=mode)
    expected = of_the_paper(paths, mode)
    assert kept(found) == names(paths, expected)
    alone = [each.score for each in found.tried[: len(paths)]]
    assert alone == pytest.approx([score(path) for path in paths])
    # The result is the mean of those kept, in the order of the series.
    made(found, tmp_path / "soup.safetensors")
    members = [paths[index] for index in sorted(expected)]
    swavg.average(members, output=tmp_path / "mean.safetensors")
    result, mean = load(tmp_path / "soup.safetensors"), load(tmp_path / "mean.safetensors")
    assert all(torch.equal(result[name], mean[name]) for name in mean)
    assert found.tried[-1].n <= len(paths)
    told = found.request.rows[0].details
    assert told["order"] == kept(found)
    assert told["scores"] == [each.score for each in found.tried if each.kept]


def test_more_than_one_is_kept_in_these_tests(tmp_path):
    sizes = {len(of_the_paper(ingredients(tmp_path / str(seed), seed=seed))) for seed in range(4)}
    assert len(sizes) > 1
    assert max(sizes) > 2


def test_a_tie_is_kept_by_the_paper_and_left_by_its_code(tmp_path):
    paths = series(tmp_path, 3)
    output = tmp_path / "o.safetensors"
    assert len(kept(soup(paths, lambda _: 1.0, output))) == 3
    strict = soup(paths, lambda _: 1.0, output, accept_equal=False, csv=tmp_path / "strict.csv")
    assert kept(strict) == names(paths, [0])


def test_ties_are_tried_in_the_order_given(tmp_path):
    paths = series(tmp_path, 4)
    scores = dict(zip(paths, (2.0, 1.0, 2.0, 1.0), strict=True))
    found = soup(paths, lambda path: scores.get(path, 3.0), tmp_path / "o.safetensors")
    tried = [each.name for each in found.tried if each.kept is not None]
    assert tried == names(paths, [1, 3, 0, 2])


@pytest.mark.parametrize("nothing", [math.nan, math.inf, -math.inf])
def test_what_has_no_number_is_never_kept(tmp_path, nothing):
    paths = series(tmp_path, 3)
    calls = []

    def evaluate(path):
        calls.append(path)
        if path not in paths:
            return nothing if len(calls) == 4 else 0.5
        return nothing if path == paths[1] else 1.0

    found = soup(paths, evaluate, tmp_path / "o.safetensors")
    # The second is not tried, and the mean with the third has no number.
    assert kept(found) == names(paths, [0])
    assert len(calls) == 4
    with pytest.raises(RequestError, match="No checkpoint has a finite score"):
        soup(paths, lambda _: nothing, tmp_path / "p.safetensors")


def test_candidates_are_checkpoints_beside_the_output_and_two_at_most(tmp_path):
    paths = ingredients(tmp_path / "run", dtype=torch.bfloat16)
    seen = []

    def evaluate(path):
        if path not in paths:
            folder, name = os.path.split(path)
            assert os.path.dirname(folder) == str(tmp_path)
            assert os.path.basename(folder).startswith(".soup.safetensors.")
            assert len(os.listdir(folder)) <= 2
            seen.append(name)
            assert load(path)["body.bias"].dtype == torch.float32
        return score(path)

    found = soup(paths, evaluate, tmp_path / "soup.safetensors")
    assert len(seen) == len(set(seen)) == len(paths) - 1
    assert kept(found) == names(paths, of_the_paper(paths))
    assert sorted(os.listdir(tmp_path)) == ["run", "soup.csv"]
    made(found, tmp_path / "soup.safetensors")
    assert load(tmp_path / "soup.safetensors")["body.bias"].dtype == torch.bfloat16


def test_a_candidate_reads_the_soup_and_the_new_one(tmp_path):
    paths = ingredients(tmp_path, 4, torch.float16)
    size = sum(each.numel() for each in load(paths[0]).values()) - 1
    plan = prepare_soup(paths, tmp_path / "o.safetensors", mode="min", depends_on={}).plan
    target = str(tmp_path / "o.safetensors")
    with beside(target, paths, plan, swavg.Policy(), None) as candidates:
        read = [0]
        for members in (0, 1), (0, 1, 2), (0, 1, 2, 3):
            path = candidates.path(members)
            mean = sum(load(paths[index])["head.weight"].double() for index in members)
            torch.testing.assert_close(
                load(path)["head.weight"].double(), mean / len(members), rtol=1e-6, atol=1e-7
            )
            read.append(candidates.read)
    # The counter is read of both, and copied.
    each = [after - before for before, after in pairwise(read)]
    assert each[0] in range(2 * 2 * size, 2 * 2 * size + 32)
    assert all(more in range((4 + 2) * size, (4 + 2) * size + 32) for more in each[1:])


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_soup_that_was_stopped_goes_on_and_evaluates_nothing_twice(tmp_path, stop):
    paths = ingredients(tmp_path / "run", seed=2)
    whole = soup(paths, score, tmp_path / "whole.safetensors")
    calls = []

    class StoppedError(Exception):
        pass

    def evaluate(path):
        if len(calls) == stop:
            raise StoppedError
        calls.append(path)
        return score(path)

    output = tmp_path / "soup.safetensors"
    if stop < 11:
        with pytest.raises(StoppedError):
            soup(paths, evaluate, output)
        assert sorted(os.listdir(tmp_path)) == ["run", "soup.csv.partial", "whole.csv"]
    again = []
    found = soup(paths, lambda path: again.append(path) or score(path), output)
    assert found.tried == whole.tried
    assert len(calls) + len(again) == 11
    assert (tmp_path / "soup.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert soup(paths, lambda _: 1 / 0, output).tried == whole.tried


def test_another_checkpoint_mode_or_evaluation_is_another_soup(tmp_path):
    paths = ingredients(tmp_path / "run", 3)
    output = tmp_path / "o.safetensors"
    soup(paths, score, output)
    for more in {"mode": "max"}, {"accept_equal": False}, {"depends_on": {"by": "another"}}:
        with pytest.raises(OutputExistsError):
            soup(paths, score, output, **more)
    soup(paths, score, output, policy=swavg.Policy(dtype="bfloat16"))
    # Of the same name and size.
    shutil.copyfile(paths[0], paths[1])
    with pytest.raises(OutputExistsError):
        soup(paths, score, output)
    calls = []
    soup(paths, lambda path: calls.append(path) or score(path), output, force=True)
    assert len(calls) == 5
    soup(paths, lambda path: calls.append(path) or score(path), output, force=True, anew=True)
    assert len(calls) == 10


def test_scores_of_what_was_there_before_are_not_taken_for_new_ones(tmp_path):
    paths = ingredients(tmp_path / "run", 3)
    number = count()

    def evaluate(path):
        if next(number) == 3:
            shutil.copyfile(paths[1], paths[0])
        return score(path)

    with pytest.raises(swavg.InputError, match="changed"):
        soup(paths, evaluate, tmp_path / "o.safetensors")
    with pytest.raises(OutputError, match="differs in 'checkpoints'"):
        soup(paths, score, tmp_path / "o.safetensors")


def test_a_csv_that_was_changed_is_refused(tmp_path):
    paths = ingredients(tmp_path / "run", 3)
    soup(paths, score, tmp_path / "o.safetensors")
    csv = tmp_path / "o.csv"
    head, body = csv.read_text().split("kept\n")
    for changed in body.replace("step-1", "step-7"), body.replace("yes", "no"), body + "more,,,,\n":
        csv.write_text(f"{head}kept\n{changed}")
        with pytest.raises(OutputError, match=r"row . is not the one that belongs there"):
            soup(paths, score, tmp_path / "o.safetensors")


def test_tensors_that_are_not_averaged_are_those_of_the_newest_kept(tmp_path):
    paths = ingredients(tmp_path, 4, seed=2)
    seen = {}

    def evaluate(path):
        if path not in paths:
            seen[os.path.basename(path)] = load(path)["head.weight"]
        return {paths[2]: 1.0, paths[3]: 2.0, paths[0]: 3.0, paths[1]: 4.0}.get(path, 0.5)

    policy = swavg.Policy(exclude=("head.*",), drop_excluded=True)
    soup(paths, evaluate, tmp_path / "o.safetensors", policy=policy)
    newest = load(paths[3])["head.weight"]
    assert len(seen) == 3
    assert all(torch.equal(each, newest) for each in seen.values())


def nested(folder, number=3):
    paths = []
    for index in range(number):
        paths.append(str(folder / f"step={index}.ckpt"))
        torch.save({"epoch": index, "state_dict": state(index)}, paths[-1])
    return paths


def test_candidates_of_pytorch_files_are_loaded_as_their_ingredients_are(tmp_path):
    paths = nested(tmp_path)

    def evaluate(path):
        assert path.endswith(".ckpt")
        loaded = torch.load(path, weights_only=True)
        assert loaded["epoch"] in range(3)
        return distance(loaded["state_dict"]["body.bias"])

    policy = swavg.Policy(weights_only=True)
    found = soup(paths, evaluate, tmp_path / "soup.safetensors", policy=policy)
    assert len(found.tried) == 6


def test_candidates_of_folders_are_folders(tmp_path):
    paths = []
    for index in range(3):
        path = tmp_path / "run" / f"checkpoint-{index}"
        save(path / "model.safetensors", state(index), {"format": "pt"})
        (path / "config.json").write_text('{"model_type": "bert"}')
        paths.append(str(path))

    def evaluate(path):
        assert os.path.exists(f"{path}/config.json")
        return score(f"{path}/model.safetensors")

    found = soup(paths, evaluate, tmp_path / "soup")
    assert found.csv == str(tmp_path / "soup.csv")
    made(found, tmp_path / "soup")
    assert (tmp_path / "soup" / "config.json").exists()


def test_candidates_of_folders_of_parts_have_the_same_parts(tmp_path):
    paths = []
    for index in range(3):
        for rank in range(2):
            path = tmp_path / "run" / f"step-{index}" / f"model_rank{rank}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state(10 * index + rank), path)
        paths.append(str(path.parent))

    def evaluate(path):
        held = [torch.load(f"{path}/model_rank{rank}.pt", weights_only=True) for rank in range(2)]
        return sum(distance(each["body.bias"]) for each in held)

    found = soup(paths, evaluate, tmp_path / "soup")
    assert len(found.tried) == 6


def test_what_fails_at_the_end_fails_before_anything_is_evaluated(tmp_path):
    paths = ingredients(tmp_path, 3)
    other = save(tmp_path / "other.safetensors", {"else": torch.ones(2)})
    output = tmp_path / "o.safetensors"

    def refused(error, match, checkpoints=paths, to=output, **more):
        with pytest.raises(error, match=match):
            soup(checkpoints, lambda _: 1 / 0, to, **more)

    refused(MismatchError, "match|missing|differ", [*paths, other])
    refused(OutputExistsError, "exists", to=other)
    refused(OutputError, "is an input", to=paths[0], force=True)
    refused(OutputError, "is an input", csv=paths[0], force=True)
    refused(OutputError, "no place for the csv", csv=output)
    refused(RequestError, "given twice", [paths[0], *paths])
    refused(RequestError, "given twice", [paths[0].replace("/step", "/./step"), *paths])
    refused(RequestError, "written to a file or a folder", to=None)
    refused(RequestError, "strict", policy=swavg.Policy(strict=False))
    refused(RequestError, "lora", policy=swavg.Policy(lora="exact"))
    refused(OutputError, "paths of this machine", to="s3://bucket/o.safetensors")
    assert not (tmp_path / "o.csv").exists()


def test_a_mean_that_is_refused_ends_it_and_what_was_evaluated_stays(tmp_path):
    paths = ingredients(tmp_path, 2)
    bad = save(tmp_path / "z.safetensors", state(1) | {"body.bias": torch.full((7,), math.nan)})
    with pytest.raises(NumericsError):
        soup([*paths, bad], lambda _: 1.0, tmp_path / "o.safetensors")
    assert (tmp_path / "o.csv.partial").read_text().count("\n") == 7
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_soup_is_a_mean_that_can_be_updated(tmp_path):
    paths = ingredients(tmp_path / "run", seed=1)
    found = soup(paths, score, tmp_path / "soup.safetensors")
    made(found, tmp_path / "soup.safetensors")
    new = save(tmp_path / "new.safetensors", state(77))
    request = update(tmp_path / "soup.safetensors", [new], policy=swavg.Policy())
    n = len(kept(found))
    assert request.rows[0].weights == (n / (n + 1), 1 / (n + 1))
