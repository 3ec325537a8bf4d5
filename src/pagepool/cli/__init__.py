# SPDX-License-Identifier: MIT
"""The ``pagepool`` command: one file per subcommand, gathering apart from printing.

`rx`, `probe` and `kernel` are the subcommands; `wire` says where frames come from, `poller` receives them, `meter`
samples, `without_pool` times what the pool saves, `live`, `plain` and `summary` print. typer and rich (the extra
``pagepool[cli]``) are imported here and nowhere else.
"""
