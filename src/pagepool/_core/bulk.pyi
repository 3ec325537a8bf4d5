# SPDX-License-Identifier: MIT
from pagepool._core.control import Control

NOGIL_PAGES: int

class Bulk(Control): ...
