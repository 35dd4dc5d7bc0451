"""Every example of --help runs, and so does every ``>>>`` of a docstring."""

import ast
import doctest
import importlib
import inspect
import re
import shutil
from pathlib import Path

import command_line
import pytest
from pages import ROOT

import swavg

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def everything(checkpoints, tmp_path_factory):
    """All that the examples of the help take as given."""
    import torch

    from swavg.training import PowerEMA

    folder = tmp_path_factory.mktemp("everything") / "all"
    shutil.copytree(checkpoints, folder)
    steps = sorted(folder.glob("step-*.safetensors"), key=lambda path: int(path.stem[5:]))
    for path in steps:
        shutil.copy(path, folder / "ckpts")
    copies = {
        "a.pt": "swa.pt last.ckpt step-100.pt step-200.pt step-600.pt step-1100.pt avg-800.pt"
        " avg-1000.pt",
        "a.safetensors": "model.safetensors step-1100.safetensors",
        "run/checkpoint-800": "model",
    }
    (folder / "model").unlink(missing_ok=True)
    for source, targets in copies.items():
        for target in targets.split():
            copy = shutil.copytree if (folder / source).is_dir() else shutil.copyfile
            copy(folder / source, folder / target)
    for thousands, path in enumerate(steps, 1):
        (folder / "runs" / "17").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(
            path, folder / "runs" / "17" / f"step-{thousands}000-val_loss=0.{thousands}.safetensors"
        )
    (folder / "log.csv").write_text(
        "step,val_loss\n" + "".join(f"{n}000,0.{n}\n" for n in range(1, 7))
    )
    swavg.average(steps[:5], output=folder / "avg.safetensors", force=True)
    command_line.done("ema", *steps[:3], "--decay", 0.9, "-o", folder / "ema.safetensors", "-q")
    (folder / "job.toml").write_text(
        'command = "average"\ncheckpoints = ["ckpts"]\noutput = "by-job.safetensors"\n'
    )
    (folder / "eval.py").write_text(
        "print('{\"val_loss\": 1}' if '--json' in __import__('sys').argv else 1)"
    )
    model = torch.nn.Linear(4, 2)
    power = PowerEMA(model, sigma_rel=(0.05,))
    for step in range(1, 33):
        power.update()
        if step % 8 == 0:
            power.save(folder / "snapshots")
    return folder


def examples_of_help():
    from swavg.cli import cli

    for name in cli.list_commands(None):
        text = inspect.cleandoc(cli.get_command(None, name).help).replace("\\\n", " ")
        for line in re.findall(r"^ *((?:ls .*\| )?swavg .+)$", text, re.MULTILINE):
            yield re.split(r" {2,}(?=[a-z])", line)[0]


@pytest.mark.torch
@pytest.mark.parametrize("line", [*examples_of_help()])
def test_every_example_of_the_help_runs(line, everything, here, monkeypatch):
    shutil.copytree(everything, here / "all")
    monkeypatch.chdir(here / "all")
    # An example is never to touch the home folder of whoever runs the tests.
    monkeypatch.setenv("HOME", str(here))
    made = ["averaged.pt", "averaged.safetensors"] if line.startswith("swavg average") else []
    for output in [*made, *re.findall(r"-o (\S+)", line)]:
        Path(output).unlink(missing_ok=True)
    command_line.line(line)


def examples():
    """The docstrings with ``>>>``, by module and name."""
    found = {}
    for path in sorted((ROOT / "swavg").rglob("*.py")):
        if "integrations/keras/" in str(path):
            continue  # with Keras, in tests/frameworks/keras_loop
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text and ">>>" in text:
                    name = path.relative_to(ROOT).with_suffix("")
                    found[f"{name}:{getattr(node, 'name', '')}"] = text
    return found


EXAMPLES = examples()
NEEDS = {"lightning": "lightning", "transformers": "transformers"}


class Trainer:
    """As much of a trainer as an example shows."""

    def __init__(self, *arguments, callbacks=(), **more):
        self.callback_handler = self
        self.callbacks = [*callbacks]
        self.model = arguments[0] if arguments else None

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def train(self, *arguments):
        assert len(self.callbacks) == 2

    evaluate = predict = save_model = _load_from_checkpoint = train


@pytest.mark.torch
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_of_a_docstring_runs(name, checkpoints, here, given):
    pytest.importorskip("torch")
    for word, package in NEEDS.items():
        if f"/{word}/" in name:
            importlib.import_module(package)
    for letter in "ab":
        shutil.copyfile(checkpoints / f"{letter}.safetensors", here / f"{letter}.safetensors")
    given |= {"Trainer": Trainer, "args": None}
    module = importlib.import_module(
        name.partition(":")[0].replace("/", ".").removesuffix(".__init__")
    )
    given |= {key: value for key, value in vars(module).items() if key[0].isupper()}
    for example in doctest.DocTestParser().get_examples(EXAMPLES[name]):
        exec(compile(example.source, name, "exec"), given)
