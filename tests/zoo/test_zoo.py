"""Foreign models: whatever the tracer says may move keeps the function, and is matched back."""

import pytest

from tests.zoo.measure import BUILDERS, PACKAGES, measure


@pytest.mark.parametrize("name", BUILDERS)
def test_planted_orders_keep_the_function_and_are_undone(name):
    for package in sorted(set(PACKAGES.values())):  # all or none: some are there for other tests
        pytest.importorskip(package, reason="needs the packages of the extra `zoo`")
    row = measure(name)
    assert row.groups > 0 and row.deviation <= 1e-3
    assert row.weights == 1.0
