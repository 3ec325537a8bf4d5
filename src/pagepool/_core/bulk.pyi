# SPDX-License-Identifier: MIT
from pagepool._core.control import Control

class Bulk(Control): ...
