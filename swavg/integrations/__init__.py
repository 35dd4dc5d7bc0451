"""Callbacks for training frameworks: ``swavg.integrations.lightning`` and ``.transformers``.

Each needs its framework (``pip install 'swavg[lightning]'``, ``'swavg[transformers]'``) and is
imported by itself.
"""
