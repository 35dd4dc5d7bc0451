"""Keras's callbacks are tested in tests/frameworks/keras_loop, with Keras; here, without it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("lacking", ["keras", "tensorflow"])
def test_a_missing_framework_is_named_with_what_to_install(lacking, tmp_path):
    # A Keras whose backend is missing fails so.
    (tmp_path / "keras.py").write_text("import tensorflow\n")
    script = f"import sys; sys.modules[{lacking!r}] = None; import swavg.integrations.keras"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {script}"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "MissingDependencyError: swavg.integrations.keras needs Keras 3" in result.stderr
    assert "pip install keras tensorflow" in result.stderr


def test_a_keras_of_before_3_is_told(tmp_path):
    (tmp_path / "keras.py").write_text("__version__ = '2.15.0'\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import swavg.integrations.keras"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "MissingDependencyError: swavg.integrations.keras needs Keras 3" in result.stderr
