"""The tests themselves, run by several workers."""

import pytest


@pytest.mark.xdist_group("suite")
def test_groups_of_tests_stay_in_one_worker(request: pytest.FixtureRequest) -> None:
    """Or what shares a cluster or a long run would start it once in each: slower, and at the same time."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@suite"), "these versions of pytest and pytest-xdist do not fit together"
