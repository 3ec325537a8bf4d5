# SPDX-License-Identifier: MIT
"""Capture files, for every driver: write pcapng, read pcapng and pcap.

Only the file formats; no device and no pool.
"""

from pagepool.drivers.capture.captured import LINKTYPE_ETHERNET, CapturedFrame, CaptureError
from pagepool.drivers.capture.pcapng_writer import PcapngWriter
from pagepool.drivers.capture.reader import read_capture

__all__ = ["LINKTYPE_ETHERNET", "CaptureError", "CapturedFrame", "PcapngWriter", "read_capture"]
