#!/usr/bin/env bash
# Creates (or updates) the Python environment of the inference benchmark and prints the path of its python.
# usage: setup.sh [VENV_DIR]      default: $XDG_CACHE_HOME/longshore-peers or ~/.cache/longshore-peers
# env:   PYTHON   interpreter to build the venv with (default: python3.11, else python3)
# llama.cpp is compiled for this CPU (needs a C++ compiler; 10 minutes on two cores). The environment is about 5 GB and needs no
# GPU. A second run with unchanged requirements does nothing.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/longshore-peers}"
want="$(sha256sum "$here/requirements.txt" | cut -d' ' -f1)"
stamp="$venv/.requirements.sha256"
if [[ -x "$venv/bin/python" && -f "$stamp" && "$(cat "$stamp")" == "$want" ]]; then
    echo "$venv/bin/python"
    exit 0
fi
py="${PYTHON:-$(command -v python3.11 || command -v python3)}"
"$py" -c 'import sys; assert sys.version_info[:2] >= (3, 11), "Python 3.11 or newer is needed"'
mkdir -p "$(dirname "$venv")"
"$py" -m venv "$venv" >&2
export CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)"
nice -n 10 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir -r "$here/requirements.txt" >&2
"$venv/bin/python" -W ignore -c 'import torch, transformers, gguf, safetensors, llama_cpp' >&2
echo "$want" > "$stamp"
echo "$venv/bin/python"
