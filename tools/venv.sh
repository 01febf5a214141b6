#!/bin/sh
# Make a virtual environment: `tools/venv.sh DIRECTORY`. Does nothing when a good one is there.
#
# Debian splits Python: a machine with python3 may lack the part of `venv` that brings pip
# (python3-venv), and pip itself. So this tries, in order, what needs least: venv, a virtualenv that
# is there, a virtualenv fetched by pip into a temporary folder, and, as root on Debian, apt. When
# all fail it says what to install. PYTHON=/path/to/python chooses the interpreter.
set -eu

venv=$1

good() { "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

if good; then exit 0; fi

python=
for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
    # Run it: a pyenv shim exists for versions that are not there.
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "ckworkflow needs Python 3.11 or later, and none was found." >&2
    echo "On Debian 12 and later: apt install python3 python3-venv. Or: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
fi

with_venv() { rm -rf "$venv" && "$python" -m venv "$venv" >/dev/null 2>&1 && good; }
with_virtualenv() { rm -rf "$venv" && "$python" -m virtualenv --quiet "$venv" >/dev/null 2>&1 && good; }
with_pip() {
    folder=$(mktemp -d)
    # --target: it leaves the system's packages alone, which Debian insists on (PEP 668).
    "$python" -m pip install --quiet --target "$folder" virtualenv >/dev/null 2>&1 &&
        PYTHONPATH=$folder with_virtualenv
    status=$?
    rm -rf "$folder"
    return $status
}
with_apt() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || return 1
    echo "This Python cannot make virtual environments: installing Debian's python3-venv ..." >&2
    apt-get update -qq >/dev/null 2>&1 || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null 2>&1 && with_venv
}

if with_venv || with_virtualenv || with_pip || with_apt; then exit 0; fi

rm -rf "$venv"
echo "Could not make a virtual environment in $venv with $python." >&2
echo "On Debian or Ubuntu: apt install python3-venv. Elsewhere: python3 -m pip install virtualenv." >&2
exit 1
