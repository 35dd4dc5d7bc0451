"""Callbacks for training frameworks: ``swavg.integrations.lightning`` and ``.transformers``.

Each needs its framework (``pip install lightning``, ``pip install transformers accelerate``) and is
imported by itself.
"""
