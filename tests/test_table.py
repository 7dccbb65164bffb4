"""The lists that must agree: formulas.h, the case table, the public names."""

from __future__ import annotations

import inspect

import pytest
import torch
from cases import BATCH_CASES, CASES, ONE_EACH

import siamcuda
from siamcuda import _C, batch, functional, nn, reference, value_and_grad

NAMES = sorted(_C.loss_names())
BATCH_NAMES = sorted(n for n in batch.__all__ if n != "squared_cdist")


def test_every_formula_has_a_case_and_no_case_lacks_a_formula():
    assert sorted({case.name for case in CASES}) == NAMES


@pytest.mark.parametrize("module", [functional, value_and_grad])
def test_every_formula_has_its_python_faces(module):
    assert sorted(n for n in module.__all__ if n != "LossStats") == NAMES


#: Searches and packed bits have tests of their own: test_gallery.py, test_bits.py.
SEARCHES = ["hamming", "knn", "range_search"]


def test_every_operation_has_a_reference():
    assert sorted(reference.__all__) == sorted(NAMES + batch.__all__ + SEARCHES)


def test_every_loss_over_a_batch_has_operators_and_a_case():
    assert sorted({case.name for case in BATCH_CASES}) == BATCH_NAMES
    assert set(BATCH_NAMES) <= set(_C.batch_loss_names())
    for name in BATCH_NAMES:
        assert getattr(siamcuda, name) is getattr(batch, name)
        for suffix in ("", "_value_and_grad", "_backward", "_stats", "_composite"):
            assert hasattr(torch.ops.siamcuda, name + suffix)


def test_functions_are_exported_at_the_top():
    for name in NAMES:
        assert getattr(siamcuda, name) is getattr(functional, name)
        assert name in siamcuda.__all__


@pytest.mark.parametrize("name", NAMES)
def test_operators_exist_behind_both_doors(name):
    (case,) = [c for c in ONE_EACH if c.name == name]
    is_loss = case.reductions != ("none",)
    assert hasattr(torch.ops.siamcuda, name + "_stats") == is_loss
    for suffix in ("", "_value_and_grad", *(["_stats"] if is_loss else [])):
        assert callable(getattr(_C, name + suffix))
        assert hasattr(torch.ops.siamcuda, name + suffix)
    for suffix in ("_backward", "_double_backward"):
        assert hasattr(torch.ops.siamcuda, name + suffix)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_defaults_agree_between_python_schema_and_reference(case):
    schema = getattr(torch.ops.siamcuda, case.name).default._schema
    from_schema = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    for function in (case.function, case.reference):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in from_schema and parameter.default is not inspect.Parameter.empty:
                assert parameter.default == from_schema[name], (function, name)


def test_modules_have_the_options_of_their_functions():
    for name, function in {
        "ContrastiveLoss": siamcuda.contrastive_loss,
        "ChopraLoss": siamcuda.chopra_loss,
        "TripletLoss": siamcuda.triplet_loss,
        "TripletMarginLoss": siamcuda.triplet_margin_loss,
        "BatchContrastiveLoss": siamcuda.batch_contrastive_loss,
        "BatchChopraLoss": siamcuda.batch_chopra_loss,
        "BatchTripletLoss": siamcuda.batch_triplet_loss,
    }.items():
        options = {
            n: p.default
            for n, p in inspect.signature(function).parameters.items()
            if p.default is not inspect.Parameter.empty
            and n not in ("return_stats", "ref_embeddings", "ref_labels")
        }
        module = getattr(nn, name)()
        assert module.options == options


def test_dir_of_package_lists_public_names():
    for name in siamcuda.__all__:
        assert hasattr(siamcuda, name)
