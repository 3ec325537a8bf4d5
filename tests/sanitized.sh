#!/bin/sh
# SPDX-License-Identifier: MIT
# Run tests with the compiled rooms built for a sanitizer: reads and writes outside of what was allocated, use after
# free, arithmetic that C does not define. A build and a virtual environment of its own, under build/; the ordinary
# interpreter with the sanitizer's library loaded first.
#
#   tests/sanitized.sh [pytest arguments]
#
#   SANITIZE=...   what -fsanitize= takes (default: address and the undefined behaviour that costs little to look for)
#   PYTHON=...     the Python of a virtual environment with the test libraries (default .venv/bin/python)
set -eu

cd "$(dirname "$0")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
sanitize=${SANITIZE:-address,bounds,shift,signed-integer-overflow,integer-divide-by-zero}
work=$PWD/build/sanitized-$(echo "$sanitize" | cut -d, -f1)
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

case $sanitize in
thread*) library=libtsan.so ;;
*) library=libasan.so ;;
esac
library=$(gcc -print-file-name=$library)
test -e "$library" || { echo "sanitized: gcc has no $library"; exit 1; }

# The libraries are those of the ordinary environment; its editable pagepool is not, for only the path is taken over.
test -x "$work/venv/bin/python" || "$python" -m venv --without-pip "$work/venv"
echo "$site" >"$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/libraries.pth"
echo "sanitized: building with -fsanitize=$sanitize"
PATH="$(dirname "$python"):$PATH" "$python" -m pip -q --disable-pip-version-check --python "$work/venv/bin/python" install \
    --no-deps --no-build-isolation --force-reinstall -Cbuild-dir="$work/build" -Ccmake.define.PAGEPOOL_SANITIZE="$sanitize" .

# Python's own allocator hides what happens inside its arenas, and what the interpreter keeps to its end is no leak.
export PYTHONMALLOC=malloc
export ASAN_OPTIONS="detect_leaks=0:abort_on_error=0:allocator_may_return_null=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
export UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}"
test $# -gt 0 || set -- tests/unit/test_core_*.py tests/unit/test_xsk_rings.py tests/unit/test_arrow_*.py \
    tests/unit/test_loopback*.py tests/unit/test_xdp_*.py
exec env LD_PRELOAD="$library" "$work/venv/bin/python" -m pytest -q -p no:cacheprovider "$@"
