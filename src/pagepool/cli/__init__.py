# SPDX-License-Identifier: MIT
"""The ``pagepool`` command: one file per subcommand, gathering apart from printing.

`rx`, `probe` and `kernel` are the subcommands. `wire` says where frames come from and `forwarding` where they go, `tap`
counts and judges them, `receiving` joins it all, `meter` samples, `without_pool` times what the pool saves, `live`,
`plain` and `summary` print. typer and rich (the extra ``pagepool[cli]``) are imported here and nowhere else.
"""
