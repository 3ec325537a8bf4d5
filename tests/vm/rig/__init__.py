# SPDX-License-Identifier: MIT
"""The rig: turns Debian packages and a folder of guest suites into a booted machine and a list of results.

Plain Python, standard library only, and nothing of pagepool: the rig must work when the library does not.
Read in this order: ``packages`` (what is downloaded), ``kernel`` and ``image`` (what is booted), ``boots``
and ``qemu`` (on which machine), ``serial`` and ``results`` (what it says), ``session`` (all of it together).
"""
