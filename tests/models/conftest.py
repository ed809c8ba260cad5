"""Fixtures of the golden tests: both sets, in both settings of float32 products."""

from __future__ import annotations

import pytest

from tests.models import golden


@pytest.fixture(params=golden.SETS)
def name(request) -> str:
    return request.param


@pytest.fixture(params=golden.MATMUL, autouse=False)
def product(request):
    """Runs the test once with default and once with fast float32 products."""
    with golden.matmul(request.param):
        yield request.param
