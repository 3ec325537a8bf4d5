#!/bin/sh
# SPDX-License-Identifier: MIT
# What `make test-vm` runs: all boots, all suites; arguments go to pytest (-k newest, --require=vm ...).
cd "$(dirname "$0")/../.." && exec "${PYTHON:-python3}" -m pytest tests/vm "$@"
