"""The user's own model and data, by name: what is found, and what is said when it is not."""

import sys

import pytest
import torch  # noqa: F401

from swavg.errors import RequestError
from swavg.evaluation import loading

CODE = """
import torch
from torch import nn
from neighbour import WIDTH

class Small(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.layer = nn.Linear(width, 2)

    @classmethod
    def wide(cls):
        return cls(9)

def needs(width):
    return Small(width)

def breaks():
    raise ValueError("no such file: weights.bin\\nlook elsewhere")

def nothing():
    pass

def leaves():
    raise SystemExit(3)

ready = Small(7)
number = 3
loader = torch.utils.data.DataLoader(torch.arange(6.0), batch_size=4)
dataset = torch.utils.data.TensorDataset(torch.arange(6.0))
one_batch = (torch.zeros(3, 2), torch.zeros(3))
passes = []

def late():
    import lazily
    return lazily.model()

def generated():
    passes.append(len(passes))
    yield torch.zeros(2)
    yield torch.full((2,), float(passes[-1]))

once = iter([torch.zeros(2)])

def halfway():
    yield torch.zeros(2)
    raise KeyError("label")
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the user's modules, which is the current one; they are forgotten afterwards."""
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    (tmp_path / "lazily.py").write_text("def model():\n    import mine\n    return mine.Small(3)\n")
    (tmp_path / "broken.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "syntax.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "script.py").write_text("import sys\nsys.exit(2)\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "inner.py").write_text("from beside import make\n")
    (tmp_path / "sub" / "beside.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Linear(4, 4)\n"
    )
    (tmp_path / "sub" / "json.py").write_text("from beside import make\n")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("mine:Small", 5),
        ("mine:Small.wide", 9),
        ("mine:ready", 7),
        ("mine.py:Small.wide", 9),
        ("./mine.py:ready", 7),
        ("mine:late", 3),
    ],
)
def test_a_model_is_a_module_or_what_a_callable_without_arguments_returns(project, text, width):
    before = list(sys.path)
    assert loading.build_model(text).layer.in_features == width
    assert sys.path == before


def test_a_file_may_import_what_lies_beside_it_and_may_have_the_name_of_a_library(project):
    import json

    for name in ("inner", "json"):
        assert loading.build_model(f"{project}/sub/{name}.py:make").in_features == 4
    assert sys.modules["json"] is json


def test_a_file_that_two_options_name_runs_once(project):
    first = loading.load_object("mine.py:ready", "--model")
    assert loading.load_object(f"{project}/mine.py:ready", "--data") is first
    assert loading.load_object("mine:ready", "--data") is first


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine", "'mine' names nothing to import. Write package.module:name or path/to/file.py:n"),
        ("mine:", "names nothing"),
        (":f", "names nothing"),
        ("mine:zzz", "'mine' has no 'zzz', which mine:zzz names. It has"),
        ("mine:smal", "Did you mean 'Small'?"),
        ("mine:Small.wid", "the class Small has no 'wid'"),
        ("absent:f", "there is no module 'absent'"),
        ("absent.below:f", "there is no module 'absent'"),
        ("mine.below:f", "there is no module 'mine.below'"),
        ("absent.py:f", "there is no file 'absent.py'"),
        ("broken:f", "importing 'broken' failed: ModuleNotFoundError: No module named"
                     " 'not_installed_anywhere' (broken.py, line 1)"),
        ("broken.py:f", "running 'broken.py' failed: ModuleNotFoundError"),
        ("syntax:f", "SyntaxError: invalid syntax (syntax.py, line 2)"),
        ("syntax.py:f", "SyntaxError: invalid syntax (syntax.py, line 2)"),
        ("script:f", "it exited with 2 (script.py, line 2). Keep what a script does under"),
        ("script.py:f", "it exited with 2"),
        ("mine:needs", "cannot be called without arguments (missing a required argument: 'width')"),
        ("mine:breaks", "calling mine:breaks failed: ValueError: no such file: weights.bin look"
                        " elsewhere (mine.py, line 19)"),
        ("mine:leaves", "it exited with 3"),
        ("mine:nothing", "returned a NoneType, not a torch.nn.Module"),
        ("mine:number", "is an int, neither a torch.nn.Module nor a function"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_named_with_option_place_and_way_out(project, text, said):
    before = list(sys.path)
    with pytest.raises(RequestError) as caught:
        loading.build_model(text, "--model")
    message = str(caught.value)
    assert said in message
    assert message.startswith("--model: ")
    assert "\n" not in message
    assert sys.path == before


def test_the_original_error_is_chained(project):
    with pytest.raises(RequestError) as caught:
        loading.build_model("mine:breaks")
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_module_that_failed_can_be_mended_and_tried_again(project):
    for name in ("broken", "broken.py"):
        with pytest.raises(RequestError):
            loading.load_callable(f"{name}:f", "--model")
    (project / "broken.py").write_text("def f():\n    return 'mended by hand'\n")
    assert loading.load_callable("broken.py:f", "--model")() == "mended by hand"


def test_something_that_cannot_be_called_is_no_callable(project):
    with pytest.raises(RequestError, match=r"--data: mine:number is an int, which cannot be"):
        loading.load_callable("mine:number", "--data")


def test_a_loader_and_a_generator_function_serve_many_passes(project):
    loader = loading.build_batches("mine:loader")
    assert loader.total == 2
    for _ in range(2):
        assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5]]
    generated = loading.build_batches("mine:generated")
    assert generated.total is None
    assert [[batch[0].item() for batch in generated] for _ in range(3)] == [[0, 0], [0, 1], [0, 2]]


def test_an_iterator_serves_one_pass_and_says_so_at_the_second(project):
    once = loading.build_batches("mine:once")
    assert len(list(once)) == 1
    with pytest.raises(RequestError, match=r"mine:once gives its batches only once"):
        list(once)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine:dataset", "a TensorDataset, whose items are single examples. Put it into"),
        ("mine:one_batch", "gives a tuple, not batches"),
        ("mine:ready", "calling mine:ready failed: NotImplementedError"),
        ("mine:nothing", "gives a NoneType, not batches"),
        ("mine:number", "is an int, neither batches nor a function"),
    ],
)  # fmt: skip
def test_data_that_are_no_batches_are_refused(project, text, said):
    with pytest.raises(RequestError) as caught:
        loading.build_batches(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith("--data: ")


def test_an_error_while_batches_are_made_says_at_which(project):
    batches = iter(loading.build_batches("mine:halfway"))
    next(batches)
    with pytest.raises(RequestError) as caught:
        next(batches)
    assert "mine:halfway failed at batch 2: KeyError: 'label' (mine.py, line" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_what_the_code_prints_goes_to_stderr(capsys):
    with loading.prints_on_stderr():
        print("loading the data")
    print("done")
    assert capsys.readouterr() == ("done\n", "loading the data\n")
