#!/bin/sh
# Everything that an image holds, made in one folder: the packages of requirements.lock by their hashes, this project,
# the default base and the encoder, and native operations for every instruction set. The Containerfile runs it; so do tests.
#
#   deploy/build.sh FOLDER     needs python3 with its headers, a C++ compiler, and PyPI (or a mirror of it)
#
# TORCH_FROM: where pip finds torch's build for CPUs. BASE: another base to fetch, or '' for none. EXTRAS: extras of the
# project that the lock has not, such as ray,s3; what they bring is held to the lock's versions, but has no hashes.
set -eu

folder=${1:?usage: deploy/build.sh FOLDER}
source=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
torch_from=${TORCH_FROM:---extra-index-url https://download.pytorch.org/whl/cpu}
base=${BASE-smollm2-135m-instruct}
extras=${EXTRAS-}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

echo "build: the wheel"
"$python" -m venv "$work/build"
"$work/build/bin/pip" install -q --require-hashes -r "$source/deploy/build.lock"
"$work/build/bin/pip" wheel -q --no-deps --no-build-isolation --wheel-dir "$work/wheel" "$source"

echo "build: packages"
"$python" -m venv "$folder/venv"
# shellcheck disable=SC2086  # an option and its value
"$folder/venv/bin/pip" install -q --require-hashes $torch_from -r "$source/requirements.lock"
"$folder/venv/bin/pip" install -q --no-deps --no-index "$work"/wheel/*.whl

if [ -n "$extras" ]; then
  echo "build: packages of $extras, without hashes"
  sed -n 's/^\([A-Za-z0-9][^ ]*==[^ ;]*\).*/\1/p' "$source/requirements.lock" > "$work/constraints"
  # shellcheck disable=SC2086
  "$folder/venv/bin/pip" install -q $torch_from -c "$work/constraints" "$(ls "$work"/wheel/*.whl)[$extras]"
fi

echo "build: native operations"
(cd "$work" && "$folder/venv/bin/python" -m router.engine.native.prebuilt "$folder/native")

if [ -n "$base" ]; then
  echo "build: base and encoder"
  for name in "$base" all-minilm-l6-v2; do
    (cd "$work" && XDG_CACHE_HOME="$folder/cache" "$folder/venv/bin/lora-router" models fetch "$name")
  done
fi
# The server runs as another user, who reads and writes nothing here.
chmod -R a+rX,go-w "$folder"
echo "build: done: $(du -sh "$folder" | cut -f1) in $folder"
