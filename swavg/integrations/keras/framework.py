"""Keras, and counting that is Python's eagerly and in tensors while a ``tf.function`` is traced."""

from __future__ import annotations

from collections.abc import Callable
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


def in_graph() -> bool:
    """Whether TensorFlow is tracing a ``tf.function``."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.executing_eagerly()


def counter(name: str, value: int = 0) -> Any:
    """A variable that counts."""
    return keras.Variable(value, dtype="int", trainable=False, autocast=False, name=name)


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


def crossed(before: Any, now: Any, every: int, start: int = 0) -> Any:
    """Whether a multiple of ``every``, counted from ``start``, is reached or passed over."""
    most: Callable[[Any, int], Any] = ops.maximum if in_graph() else max
    return most(now - start, 0) // every > most(before - start, 0) // every


def when(condition: Any, act: Callable[[], None]) -> None:
    """Call ``act`` if ``condition`` holds."""
    if isinstance(condition, bool):
        if condition:
            act()
    else:
        ops.cond(condition, act, lambda: None)


def require(condition: Any, message: str, value: Any) -> Any:
    """``value`` if ``condition`` holds; else RequestError, or TensorFlow's InvalidArgumentError for
    all that uses the value when the graph runs."""
    if not in_graph():
        if not condition:
            raise RequestError(message)
        return value
    import tensorflow as tf

    with tf.control_dependencies([tf.debugging.Assert(condition, [message])]):
        return tf.identity(value)


def must_increase(before: Any, now: Any) -> Any:
    """``now``, unless it is not after ``before``: then an error, as :func:`require` raises it."""
    message = "steps must increase."
    if not in_graph():
        message = f"Step {now} comes after step {before}: {message}"
    return require(now > before, message, now)
