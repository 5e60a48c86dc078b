#!/usr/bin/env bash
# Collects what kernels, their tests and the GPU's benchmark need beside CUDA, CMake and g++, to go
# along with the tree to a machine with a GPU and no network: headers of fmt and Random123,
# GoogleTest's source, and the commit's name.
#
#   benchmarks/kernels/cuda/collect_dependencies.sh [FOLDER]     build/gpu_dependencies
set -euo pipefail
cd "$(dirname "$0")/../../.."
to=${1-build/gpu_dependencies}

# The folder in which g++ finds that header.
folder_of() {
  local folder
  folder=$(g++ -std=c++20 -x c++ -M - <<<"#include <$1>" | tr ' ' '\n' |
    sed -n "s|/$1\$||p") || true
  if [[ -z $folder ]]; then
    echo "g++ finds no <$1>: launch/install_dependencies.sh installs it" >&2
    return 1
  fi
  echo "$folder"
}

googletest=
for folder in /usr/src/googletest/googletest /usr/src/gtest; do
  if [[ -f $folder/src/gtest-all.cc ]]; then googletest=$folder; break; fi
done
if [[ -z $googletest ]]; then
  echo "No source of GoogleTest in /usr/src: Debian's package googletest has it" >&2
  exit 1
fi

rm -rf "$to"
mkdir -p "$to/include" "$to/googletest"
fmt=$(folder_of fmt/format.h)
random123=$(folder_of Random123/philox.h)
cp -r "$fmt/fmt" "$random123/Random123" "$to/include"
cp -r "$googletest/src" "$to/googletest"
headers=$(folder_of gtest/gtest.h)
mkdir "$to/googletest/include"
cp -r "$headers/gtest" "$to/googletest/include"
git describe --always --dirty >"$to/commit" 2>/dev/null || echo unknown >"$to/commit"
du -sh "$to"
