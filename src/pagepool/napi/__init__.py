# SPDX-License-Identifier: MIT
"""When a device is polled: the NAPI state machine, its sleep, and Ctrl-C held back where pages change hands.

Pure Python; knows no frames, no pools and no devices.
"""

from pagepool.napi.interrupts import InterruptGuard, guard
from pagepool.napi.napi import NAPI_POLL_WEIGHT, Napi
from pagepool.napi.poll_list import PollList
from pagepool.napi.stats import NapiStats

__all__ = ["NAPI_POLL_WEIGHT", "InterruptGuard", "Napi", "NapiStats", "PollList", "guard"]
