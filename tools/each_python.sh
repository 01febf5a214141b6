#!/bin/sh
# Run pytest on every other Python of the machine: `tools/each_python.sh VENV ARGUMENTS...`
#
# Each has an environment of its own in VENV, made once and again when pyproject.toml has changed.
set -eu

venv=$1
shift

for python in $(tools/pythons.sh "$venv/bin/python"); do
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    own=$venv/$version
    if [ ! -e "$own/.ckworkflow-suite" ] || [ pyproject.toml -nt "$own/.ckworkflow-suite" ]; then
        echo "Setting up $own (once) ..."
        PYTHON=$python tools/venv.sh "$own"
        "$own/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[suite]"
        touch "$own/.ckworkflow-suite"
    fi
    echo "Python $version:"
    PATH="$(cd "$own/bin" && pwd):$PATH" "$own/bin/python" -m pytest "$@"
done
