"""Keras, and counting that is Python's eagerly and in tensors while a ``tf.function`` is traced."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from operator import index
from typing import Any

from swavg.errors import MissingDependencyError, RequestError

try:
    import keras as keras
    from keras import ops as ops
except ImportError as error:
    if error.name not in ("keras", "tensorflow"):
        raise
    raise MissingDependencyError(
        "swavg.integrations.keras needs Keras 3 and its backend.",
        hint="pip install keras tensorflow",
    ) from None

tf: Any = import_module("tensorflow") if keras.backend.backend() == "tensorflow" else None
"""TensorFlow where it is Keras's backend; else None, and nothing is traced here."""


def in_graph() -> bool:
    """Whether TensorFlow is tracing a ``tf.function``."""
    return tf is not None and not tf.executing_eagerly()


def number(name: str, value: float) -> Any:
    """A variable from which a graph reads a number."""
    exact = "float64" if keras.backend.backend() == "tensorflow" else "float32"
    return keras.Variable(value, dtype=exact, trainable=False, autocast=False, name=name)


def whole(value: Any) -> Any:
    """``value`` (also a variable) as an int, or in a graph as a tensor. Raises RequestError."""
    if in_graph():
        return ops.cast(value, "int64")
    try:
        return index(value if isinstance(value, int) else ops.convert_to_numpy(value).item())
    except (AttributeError, TypeError, ValueError):
        raise RequestError(
            f"The step is a {type(value).__name__}, not a whole number.",
            hint="The average knows its variables: call update() or update(step).",
        ) from None


def when(condition: Any, act: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """Call ``act`` if ``condition`` (a bool, or in a graph a tensor) holds, else ``otherwise``."""
    if isinstance(condition, bool):
        (act if condition else otherwise)()
    else:
        ops.cond(condition, act, otherwise)


def required(condition: Any, message: str) -> AbstractContextManager[Any]:
    """For a block that ``condition`` must hold for: else RequestError, or TensorFlow's
    InvalidArgumentError instead of what is computed in the block, when the graph runs."""
    if in_graph():
        return tf.control_dependencies([tf.debugging.Assert(condition, [message])])  # type: ignore[no-any-return]
    if not condition:
        raise RequestError(message)
    return nullcontext()


def compiled(move: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """``move(factor, moved)`` as one call, where variables are not moved one by one."""
    if tf is None:
        return move
    function = tf.function(move, autograph=False)
    # A tensor, or else each number would be another graph.
    return lambda factor, moved: function(tf.convert_to_tensor(factor, tf.float64), moved)
