"""Evaluations for people: plots, and one HTML page that has everything.

``siamcuda.report.page`` writes the page, ``siamcuda.report.plots`` curves and
``siamcuda.report.grids`` images of a training run.
Nothing of the core imports this package; it needs the extra ``siamcuda[report]``.
"""
