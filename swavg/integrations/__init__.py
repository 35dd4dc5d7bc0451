"""Callbacks for training frameworks: ``lightning``, ``transformers``, ``keras``.

Each needs its framework (``pip install lightning``, ``pip install transformers accelerate``, ``pip
install keras tensorflow``) and is imported by itself. Its callbacks translate the framework's
hooks. What follows from these is here: ``averaging`` (what a callback keeps), ``recording`` (when
it saves), and, for PyTorch, ``callbacks`` and ``swa``.
"""
