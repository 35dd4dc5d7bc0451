"""The house: imports point down, nobody uses another's private names, heavy imports wait."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "swavg"

FLOORS = {
    "errors": 0,
    "dtypes": 0,
    "gc_pause": 0,
    "short_repr": 0,
    "weights": 1,
    "storage": 1,
    "formats": 2,
    "planning": 3,
    "series": 3,
    "engine": 4,
    "methods": 5,
    "analysis": 5,
    "training": 5,
    "evaluation": 6,
    "integrations": 6,
    "console": 7,
    "cli": 8,
    # What third parties test their formats with: nobody imports it.
    "testing": 9,
}
"""A room imports from lower floors and from itself; besides, dtypes may import errors."""

HOMES = {
    "click": ("cli",),
    "rich": ("console",),
    "matplotlib": ("evaluation",),
    "torch": ("training", "evaluation", "integrations", "engine.kernels.torch"),
    "keras": ("integrations.keras",),
    "tensorflow": ("integrations.keras",),
    "numkong": ("engine.kernels",),
    "obstore": ("storage",),
    "boto3": ("storage",),
    "huggingface_hub": ("storage",),
    "ray": ("engine.ray",),
    "pytest": ("testing",),
}
"""Where a library may be imported; standing for rooms, or parts of them."""

FACES = {"", "__main__"}
"""The package's face re-exports lazily; its version is a constant that anyone may read."""

MODULES = sorted(PACKAGE.rglob("*.py"))
EACH_MODULE = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)


def module(path):
    """The dotted name below ``swavg``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name):
    return name.split(".")[0]


def imports(path):
    """The modules and names that a file imports, as pairs."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from ((node.module, alias.name) for alias in node.names)


def own_imports(path):
    """Those of the package: the dotted name below ``swavg``, and the imported name."""
    for source, name in imports(path):
        if source == "swavg":
            yield name, ""
        elif source.startswith("swavg."):
            yield source.removeprefix("swavg."), name


@EACH_MODULE
def test_every_room_has_a_floor_and_every_import_points_down(path):
    own = room(module(path))
    if own in FACES:
        return
    assert own in FLOORS, f"{own} has no floor"
    for source, _ in own_imports(path):
        other = room(source)
        if other in (own, "__version__") or (own, other) == ("dtypes", "errors"):
            continue
        assert FLOORS[other] < FLOORS[own], f"{own} imports {source}"


@EACH_MODULE
def test_nobody_imports_a_private_name_of_another_module(path):
    for source, name in own_imports(path):
        if source == "__version__":
            continue
        private = [part for part in (*source.split("."), name) if part.startswith("_")]
        assert not private, f"{module(path)} imports {source}.{name}"


@EACH_MODULE
def test_each_library_stays_in_its_rooms(path):
    own = module(path)
    for source, _ in imports(path):
        homes = HOMES.get(source.split(".")[0])
        if homes is not None:
            assert any(own == home or own.startswith(f"{home}.") for home in homes), (
                f"{own} imports {source}"
            )


def test_no_floor_is_without_a_room():
    there = {room(module(path)) for path in MODULES}
    assert set(FLOORS) <= there


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
    assert loaded.isdisjoint({"numpy", "torch", "rich", "safetensors", "ml_dtypes", "numkong"})
    assert loaded.isdisjoint({"obstore", "boto3", "huggingface_hub"})


def test_the_help_of_a_command_imports_neither_numpy_nor_torch():
    code = (
        "from swavg.cli import main\n"
        "try:\n    main(['average', '--help'])\nexcept SystemExit:\n    pass"
    )
    assert modules_after(code).isdisjoint({"numpy", "torch", "rich", "ray"})


def test_averaging_on_the_processor_never_imports_torch(tmp_path):
    from checkpoints import series

    paths = series(tmp_path, 2)
    out = str(tmp_path / "out.safetensors")
    code = f"import swavg\nswavg.average({paths!r}, output={out!r})"
    loaded = modules_after(code)
    assert "numpy" in loaded
    assert "torch" not in loaded


def test_importing_the_library_costs_nothing():
    heavy = {"numpy", "torch", "click", "rich", "json", "pytest"}
    assert modules_after("import swavg").isdisjoint(heavy)


def test_every_public_name_can_be_had_and_no_module_takes_its_place():
    import swavg
    import swavg.cli.average
    import swavg.engine.average

    assert callable(swavg.average)
    for name in swavg.__all__:
        assert getattr(swavg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = swavg.nonsense
