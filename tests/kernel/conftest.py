# SPDX-License-Identifier: MIT
"""A quiet veth pair for every test that asks for one; the test's thread is inside the near namespace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pagepool.testing.veth import VethPair


@pytest.fixture
def veth(request: pytest.FixtureRequest) -> Iterator[VethPair]:
    """Parametrize indirectly with a dict of `VethPair` arguments."""
    with VethPair(**getattr(request, "param", {})) as pair, pair.near.ns:
        yield pair
