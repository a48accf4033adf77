#!/bin/bash
# Builds Horovod with PyTorch and gloo, without MPI, for the PyTorch that an interpreter has.
#
#   build_horovod.sh PYTHON FOLDER
#
# PYTHON is an interpreter with torch and pip; nothing is installed into it. What was built, and what Horovod itself
# needs, lies in a folder to be put on PYTHONPATH, whose name is the last line of the output. It is below FOLDER, as are
# sources and objects, so that an interrupted build goes on where it was and a finished one is not repeated.
# Needs g++ and make, and takes some minutes.
set -euo pipefail

VERSION=0.28.1
NEEDS=(cffi cloudpickle packaging psutil pyyaml)
PYTHON=$1
FOLDER=$(realpath -m "$2")

export PIP_DISABLE_PIP_VERSION_CHECK=1
PIP=("$PYTHON" -m pip)
NAME=$("$PYTHON" -c 'import sys, torch; print("python%d.%d-torch-%s" % (*sys.version_info[:2], torch.__version__))')
NAME=${NAME//+/-} # its CMake files take the path for a regular expression
BUILD=$FOLDER/$NAME
mkdir -p "$BUILD"
cd "$BUILD"

if [ ! -e site ]; then
    for tool in g++ make; do
        command -v "$tool" > /dev/null || { echo "Building Horovod needs $tool, which is not installed." >&2; exit 1; }
    done
    # What pip would install for the build, were the build not to use the torch that is there.
    if [ ! -e tools ]; then
        rm -rf tools.part
        "${PIP[@]}" install --quiet --target tools.part cmake setuptools wheel "${NEEDS[@]}"
        mv tools.part tools
    fi
    export PYTHONPATH=$BUILD/tools PATH=$BUILD/tools/bin:$PATH
    if [ ! -e source ]; then
        "${PIP[@]}" download --quiet --no-deps --no-build-isolation --no-binary horovod -d . "horovod==$VERSION"
        rm -rf source.part
        mkdir source.part
        tar -xzf "horovod-$VERSION.tar.gz" -C source.part --strip-components 1
        # It asks for C++14 in two places; torch's headers need C++20 (and the older ones do with it).
        sed -i 's/set(CMAKE_CXX_STANDARD 14)/set(CMAKE_CXX_STANDARD 20)/' \
            source.part/CMakeLists.txt source.part/horovod/torch/CMakeLists.txt
        mv source.part source
    fi
    export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
    export HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1
    # The gloo that it brings along is older than what CMake 4 takes unasked.
    export CMAKE_POLICY_VERSION_MINIMUM=3.5 MAKEFLAGS="${MAKEFLAGS:--j$(nproc)}"
    # Not by pip, which would clear away the objects of a build that was interrupted.
    rm -rf wheel site.part
    (cd source && "$PYTHON" setup.py bdist_wheel --dist-dir "$BUILD/wheel")
    "${PIP[@]}" install --quiet --no-deps --target site.part wheel/horovod-*.whl
    "${PIP[@]}" install --quiet --target site.part "${NEEDS[@]}"
    PYTHONPATH=$BUILD/site.part "$PYTHON" -c 'import horovod.torch as hvd; assert hvd.gloo_built()'
    mv site.part site
fi
echo "$BUILD/site"
