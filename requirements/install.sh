#!/bin/sh
# Make one of the environments from its pinned packages: requirements/install.sh .venv|.venv-<name>
set -eu
folder=$1
python=${PYTHON:-python3}
pip="$folder/bin/pip install --disable-pip-version-check"
torch=$(grep '^torch==' requirements/project.txt)

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
    echo "PYTHON=$python is $("$python" --version 2>&1); expected Python 3.11 to 3.13" >&2
    exit 1
}
began=$(date +%s)
echo "setup: packages of $folder; this takes minutes, most of them to download"
"$python" -m venv --clear "$folder"
if [ "$folder" = .venv ]; then
    # Where no index of yours has torch's CPU build, PyTorch's own has: CUDA's gigabytes stay away.
    $pip -q --dry-run --report - --no-deps "$torch" 2>/dev/null | grep -q '"version": ".*+cpu"' ||
        $pip --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
    $pip -r requirements/project.txt
    $pip --no-deps -r requirements/detector.txt
    $pip -q --no-deps --no-build-isolation -e .
else
    # No dependencies beside the pinned: OpenVINO's would send events away, and is not needed.
    $pip --no-deps -r "requirements/${folder#.venv-}.txt"
fi
touch "$folder/.installed"
echo "setup: $folder took $(($(date +%s) - began)) s"
