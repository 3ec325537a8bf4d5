# SPDX-License-Identifier: MIT
"""The error that means "this machine cannot run the rig", as opposed to "the rig or pagepool is broken"."""


class Unavailable(Exception):
    """This machine cannot run the virtual machine; the text says why, and becomes the reason of a skip."""
