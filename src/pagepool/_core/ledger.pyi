# SPDX-License-Identifier: MIT
from pagepool._core.carver import Carver

class Ledger(Carver): ...
