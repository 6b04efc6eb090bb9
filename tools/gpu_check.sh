#!/bin/sh
# Check on a machine with one NVIDIA GPU and PyTorch what cannot be checked without: under 8 minutes, and no network.
#
#     tools/gpu_check.sh                  # tests on CUDA, staged against direct loading, bench; prints a table
#     tools/gpu_check.sh --sample DIR     # with the bench of the sample model, which lies there
#     tools/gpu_check.sh --wheels DIR     # what the machine lacks is installed from there, into build/gpu (docs/gpu.md)
#     tools/gpu_check.sh --cpu            # to try this script where there is no GPU: tests skip, the bench is small
set -eu

fail() {
    echo "error: $1" >&2
    exit "${2:-1}"
}

usage="usage: tools/gpu_check.sh [--sample DIR] [--wheels DIR] [--cpu]"
sample='' wheels='' device=cuda planted=4GB seconds=470
while [ $# -gt 0 ]; do
    case $1 in
        --sample | --wheels)
            [ $# -gt 1 ] || fail "$1 needs a folder; $usage" 2
            [ -d "$2" ] || fail "$1: there is no folder $2; $usage" 2
            folder=$(cd "$2" && pwd)
            if [ "$1" = --sample ]; then sample=$folder; else wheels=$folder; fi
            shift 2
            ;;
        --cpu)
            device=cpu planted=small
            shift
            ;;
        -h | --help)
            sed -n 's/^# \{0,1\}//p' "$0" | sed 1d
            exit 0
            ;;
        *) fail "$1 is no option; $usage" 2 ;;
    esac
done
[ -z "$sample" ] || [ -f "$sample/config.json" ] || fail "--sample: $sample holds no model: there is no config.json" 2

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
began=$(date +%s)
left() { # the seconds that are left, at least one
    rest=$((seconds - $(date +%s) + began))
    [ "$rest" -gt 0 ] && echo "$rest" || echo 1
}

python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "there is no $python: set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is older than 3.11: set PYTHON"
if [ -n "$wheels" ]; then
    # What this Python has is taken, an environment of its own too; the rest comes from the folder.
    "$python" -m venv --clear --without-pip build/gpu || fail "cannot make an environment in build/gpu: see above"
    for folder in build/gpu/lib/python*/site-packages; do
        "$python" -c "import sys; print(*(each for each in sys.path if each.endswith('-packages')), sep='\n')" \
            >"$folder/machine.pth"
    done
    python=$root/build/gpu/bin/python
    "$python" tools/gpu_needs.py >build/gpu/needs.txt
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$wheels" \
        --requirement build/gpu/needs.txt >build/gpu/pip.txt 2>&1 ||
        fail "$wheels does not have all of $("$python" tools/gpu_needs.py --lacking): see build/gpu/pip.txt and docs/gpu.md"
fi
lacking=$("$python" tools/gpu_needs.py --lacking) || fail "$python cannot read pyproject.toml"
[ -z "$lacking" ] || fail "$python lacks $lacking: give --wheels DIR (docs/gpu.md)"
"$python" -c "import sys, torch; sys.exit('$device' != 'cpu' and not torch.cuda.is_available())" ||
    fail "PyTorch sees no CUDA device: --cpu tries the script without one"

export PYTHONPATH="$root" HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
status=0
run() { # NAME COMMAND...: within what is left of the time; keeps what it printed, and how it ended
    name=$1 && shift
    start=$(date +%s)
    timeout "$(left)" "$@" >"build/gpu-$name.txt" 2>&1 && ended=passed || ended="failed ($?)"
    [ "$ended" = passed ] || status=1
    last=$(grep -E '[0-9]+ (passed|failed|skipped|error)' "build/gpu-$name.txt" | tail -n 1)
    echo "$name: $ended in $(($(date +%s) - start)) s${last:+ ($last)}: build/gpu-$name.txt"
}

mkdir -p build
rm -f build/gpu-*.txt
"$python" - "$device" <<'END'
import platform, sys, torch, transformers
name = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else f"no GPU: {platform.machine()}"
print(f"{name}; torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}")
END
pytest="$python -m pytest -p no:cacheprovider -p no:xdist --tb=short -rs"
# shellcheck disable=SC2086  # a command of several words
run staging $pytest tests/model/loading
# shellcheck disable=SC2086
run cuda $pytest tests/forward/test_runner.py tests/verify/test_gpu.py
run planted "$python" tools/bench_passes.py --planted "$planted" --device "$device"
[ -z "$sample" ] || run sample "$python" tools/bench_passes.py --model "$sample" --device "$device"
echo
for name in planted sample; do
    [ ! -f "build/gpu-$name.txt" ] || cat "build/gpu-$name.txt"
done
[ $status -eq 0 ] || fail "not all of it passed: see above"
