#!/usr/bin/env bash
# Makes the environment of a peer that the benchmarks compare with: benchmarks/peers/NAME, with NAME.txt's versions.
# Run: benchmarks/peers/make.sh llmcompressor    or gptqmodel, hqq, vllm and others; again after a change of NAME.txt, else it does nothing.
# A line "# --no-deps" in NAME.txt: it names all that is needed, and what the packages ask for besides is left out.
# PYTHON names another python3. PIP_ARGS="--index-url URL --extra-index-url URL" names an index with a CPU torch:
# on Linux the torch of PyPI brings several gigabytes of CUDA libraries.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=${1:-}
if [[ $# -ne 1 || ! $name =~ ^[a-z0-9_]+$ || ! -f $here/$name.txt ]]; then
    known=$(cd "$here" && for file in *.txt; do echo -n " ${file%.txt}"; done)
    echo "make.sh: no peer '$*'; name one of:$known" >&2
    exit 2
fi

python=${PYTHON:-python3}
versions=$here/$name.txt
environment=$here/$name
stamp=$environment/made-from.txt # a copy of NAME.txt, written last: what is not finished is made anew
if cmp --silent "$versions" "$stamp"; then
    echo "benchmarks/peers/$name is up to date"
    exit 0
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "make.sh: $("$python" --version) is older than the versions of $name.txt need; set PYTHON to 3.11 or newer" >&2
    exit 1
fi

rm -rf "$environment"
"$python" -m venv "$environment"
read -r -a extra <<<"${PIP_ARGS:-}"
install=("$environment/bin/python" -m pip install --quiet --disable-pip-version-check ${extra[@]+"${extra[@]}"})
first=(pip setuptools)
if grep --quiet '^torch==' "$versions"; then
    first+=(torch) # it must not be chosen by what others ask for
fi
"${install[@]}" -c "$versions" "${first[@]}"
alone=()
if grep --quiet '^# --no-deps' "$versions"; then
    alone=(--no-deps)
fi
# DISABLE_CUDA: the setup.py of hqq compiles CUDA kernels otherwise. Built with the pinned setuptools, not with any.
DISABLE_CUDA=1 BUILD_CUDA_EXT=0 "${install[@]}" --no-build-isolation ${alone[@]+"${alone[@]}"} -r "$versions"
if [[ ${#alone[@]} -eq 0 ]]; then
    "$environment/bin/python" -m pip check
fi
cp "$versions" "$stamp"
echo "made benchmarks/peers/$name"
