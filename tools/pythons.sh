#!/bin/sh
# Print the Pythons that ckworkflow supports and this machine has, one path a line, but for the version of
# `tools/pythons.sh PYTHON`. Looks at PATH and among pyenv's versions, whose shims name versions that are not active.
set -eu

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

mine=$(version "$1")
pyenv_root=${PYENV_ROOT:-$HOME/.pyenv}

for wanted in 3.11 3.12 3.13; do
    [ "$wanted" = "$mine" ] && continue
    for candidate in "python$wanted" "$pyenv_root/versions/$wanted".*/bin/python; do
        # Run it: a shim is there for versions that are not.
        if [ "$(version "$candidate")" = "$wanted" ]; then
            command -v "$candidate"
            break
        fi
    done
done
