# SPDX-License-Identifier: MIT
"""Messages to a second process, over a shared pool and over what one would use instead."""
