# SPDX-License-Identifier: MIT
from pagepool._core.ledger import Ledger

class Control(Ledger): ...
