"""Training: encoders, data, samplers, the trainer and one recipe a system.

Needs ``siamcuda[train]``. This package imports the core (:mod:`siamcuda`), never the other way.
"""
