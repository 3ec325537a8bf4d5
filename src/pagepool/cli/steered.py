# SPDX-License-Identifier: MIT
"""``--steer``: rules in the NICs that send frames to a queue, there as long as the receive is.

What a rule can say, and how it is made, is said in `pagepool.drivers`. Invariant: an unwound stack leaves the NIC's
table as it was; that nobody is interrupted meanwhile, `pagepool.cli.interruption` sees to.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from pagepool.cli.failure import CannotError
from pagepool.drivers.af_xdp import FilterError
from pagepool.drivers.flow_rules import FlowRules
from pagepool.drivers.flow_spec import flow_specs
from pagepool.errors import DeviceError

__all__ = ["Steered", "check_rules", "steer"]

_INSTEAD = "--filter does it in XDP"


@dataclass(frozen=True, slots=True)
class Steered:
    """What a NIC was told: frames that match `filter` go to `queue`, by so many rules of its table."""

    ifname: str
    queue: int
    filter: str
    rules: int

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rules = "one rule" if self.rules == 1 else f"{self.rules} rules"
        return f"{self.ifname} itself sends '{self.filter}' to queue {self.queue}, by {rules}"


def check_rules(rules: tuple[tuple[int, str], ...]) -> None:
    """Refuse what no rule can say.

    Raises
    ------
    CannotError
        With the expression and the reason.
    """
    for _, expression in rules:
        try:
            flow_specs(expression)
        except FilterError as error:
            raise CannotError(f"--steer: {error}") from None


def steer(ifname: str, rules: tuple[tuple[int, str], ...], undo: ExitStack) -> list[Steered]:
    """Put rules into a NIC, and their removal on the stack.

    Raises
    ------
    CannotError
        The NIC has no rules, or refuses one of these; then it has none of them.
    """
    try:
        flow_rules = FlowRules(ifname)
    except DeviceError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise CannotError(f"--steer: {error}") from None
        raise CannotError(f"--steer: the driver of {ifname} has no flow rules (EOPNOTSUPP); {_INSTEAD}") from None
    undo.callback(flow_rules.close)
    found = []
    for queue, expression in rules:
        try:
            locations = flow_rules.add(expression, queue)
        except DeviceError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise CannotError(f"--steer: {error}") from None
            name = "EINVAL" if error.errno == errno.EINVAL else "EOPNOTSUPP"
            why = f"the driver of {ifname} cannot match these fields, or not for this queue ({name})"
            raise CannotError(f"--steer {queue}:{expression}: {why}; {_INSTEAD}") from None
        found.append(Steered(ifname, queue, expression, len(locations)))
    return found
