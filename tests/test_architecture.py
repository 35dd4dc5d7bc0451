"""The house: imports point down, heavy ones wait, and the command line starts at once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "swavg"

# Layers of design: a module imports only from lower ones (or from its own room).
LAYERS = {
    "errors": 0,
    "dtypes": 0.5,
    "publish": 0.5,
    "weights": 1,
    "packing": 1,
    "pooling": 2.8,
    "formats": 2,
    "series": 2.5,
    "policy": 2.6,
    "planning": 2.9,
    "matching": 2.7,
    "plan": 3,
    "kernels": 4,
    "engine": 4,
    "recipe": 4,
    "pieces": 4.2,
    "geometry": 4.3,
    "ties": 4,
    "computing": 4.4,
    "crew": 4.5,
    "stream": 4.6,
    "guard": 4,
    "pouring": 4.5,
    "report": 4,
    "publishing": 4.7,
    "job": 4.8,
    "averaging": 5,
    "methods": 5.5,
    "training": 5.2,
    "integrations": 5.6,
    "landscape": 5.6,
    "console": 6,
    "looking": 5,
    "cli": 7,
}
# The package's face re-exports lazily; its version is a constant that anyone may read.
FACES = {"", "__main__"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module == "swavg":
                yield from (f"swavg.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_import_points_to_a_lower_layer(path):
    own = room(path)
    if own in FACES:
        return
    assert own in LAYERS, f"{own} has no layer"
    for name in imported(path):
        if not name.startswith("swavg.") or name == "swavg.__version__":
            continue
        other = name.split(".")[1]
        assert other == own or LAYERS[other] < LAYERS[own], f"{own} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_click_rich_and_torch_stay_in_their_rooms(path):
    homes = {
        "click": ("cli",),
        "rich": ("console",),
        "matplotlib": ("landscape",),
        "torch": ("training", "integrations"),
    }
    for name in imported(path):
        top = name.split(".")[0]
        if top in homes:
            allowed = room(path) in homes[top] or path.name == "torch.py"
            assert allowed, f"{path.name} imports {top}"


def modules_after(code):
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in found.stdout.split()}


def test_help_imports_neither_numpy_nor_torch_nor_rich():
    code = "from swavg.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    loaded = modules_after(code)
    assert "click" in loaded
    assert loaded.isdisjoint({"numpy", "torch", "rich", "safetensors", "ml_dtypes"})


def test_the_help_of_a_command_imports_neither_numpy_nor_torch():
    code = (
        "from swavg.cli import main\n"
        "try:\n    main(['average', '--help'])\nexcept SystemExit:\n    pass"
    )
    assert modules_after(code).isdisjoint({"numpy", "torch", "rich"})


def test_averaging_on_the_processor_never_imports_torch(tmp_path):
    from checkpoints import series

    paths = series(tmp_path, 2)
    out = str(tmp_path / "out.safetensors")
    code = f"import swavg\nswavg.average({paths!r}, output={out!r})"
    loaded = modules_after(code)
    assert "numpy" in loaded
    assert "torch" not in loaded


def test_importing_the_library_costs_nothing():
    assert modules_after("import swavg").isdisjoint({"numpy", "torch", "click", "rich", "json"})


def test_every_public_name_can_be_had_and_no_module_takes_its_place():
    import swavg
    import swavg.averaging
    import swavg.cli.average

    assert callable(swavg.average)
    for name in swavg.__all__:
        assert getattr(swavg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = swavg.nonsense
