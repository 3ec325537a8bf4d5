# SPDX-License-Identifier: MIT
"""What more than one file of these tests starts from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shared_doubles import the_consumer

import pagepool as pp
from pagepool.shared import AttachedQueue, SharedPool


@pytest.fixture
def shared() -> Iterator[SharedPool]:
    with SharedPool(pages=512) as shared:
        yield shared
        shared.check()


@pytest.fixture
def queue(shared: SharedPool) -> Iterator[AttachedQueue]:
    with pp.attach(shared.connect()) as queue:
        the_consumer(shared)
        yield queue
