#!/usr/bin/env bash
# Installs, builds and runs the tests.
#
#   tests/run.sh [--nightly]     with a minute of each fuzzer, too; needs clang++
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1-} in
  "" | --nightly) ;;
  *) echo "usage: tests/run.sh [--nightly]" >&2; exit 64 ;;
esac

launch/install_dependencies.sh

# What the Python tests need: a client that was not written here (Debian's protobuf is too old for
# it), numpy for the reference, and what reads a GPU's machine code.
packages=(grpcio grpcio-reflection numpy)
if command -v nvcc >/dev/null; then packages+=(nvidia-cuda-cuobjdump); fi
python=$PWD/build/python/bin/python
if ! "$python" -c 'import importlib.metadata, sys
for package in sys.argv[1:]: importlib.metadata.version(package)' "${packages[@]}" 2>/dev/null; then
  python3 -m venv build/python
  "$python" -m pip install --quiet "${packages[@]}"
fi

cmake --preset release -DPython3_EXECUTABLE="$python"
cmake --build --preset release
ctest --preset release

if [[ ${1-} == --nightly ]]; then
  cmake --preset fuzz
  cmake --build --preset fuzz
  ctest --preset fuzz
fi
