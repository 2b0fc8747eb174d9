#!/usr/bin/env bash
# Build, check, compare and time on a bare NVIDIA box in one call of under ten minutes:  bash benchmarks/gpu.sh
#
# Needs python3 (3.11 or newer) and this checkout; nvcc for pycuda. A step that fails does not stop the rest. What cannot be
# installed or has no GPU is skipped, with the reason in the last table. Exit status 1 only if a check failed.
#
#   OUT=DIR         raw results           [benchmarks/results/gpu-NAME-DATE]
#   WHEELS=DIR      install from this folder alone (wheels, and pycuda's sdist), no registry
#   INSTALL=no      install nothing, use PYTHON as it is       PYTHON=python3
#   WEIGHTS=DIR     BACKBONE.pth or BACKBONE.safetensors       [random weights: as fast]
#   MODELS=DIR      models exported before, DIR/BACKBONE-PRECISION; what is not there is exported
#   CASES="B:P …"   backbones and precisions, most wanted first
#   EXPORT="…"      more options for `visionad export`, such as --resize 448 --crop 448
#   BUDGET=580      seconds in all; steps that no longer fit are skipped
#   SECONDS_EACH, BATCHES, STARTS: passed to `visionad bench`
#   TESTS=no        leave out the tests on the hardware, in a second call
#   SEARCH=60       seconds for the race of the search against cuBLAS and others
#   TILES=yes       race tiles of the search kernel too (needs Triton; two minutes)
#   LOAD=100        seconds for cameras, steadiness (10 000 calls of 4 ms are 45) and enrollment under load, of the first case;
#                   CALLS=100000 at most
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
PYTHON=${PYTHON:-python3} INSTALL=${INSTALL:-yes} WHEELS=${WHEELS:-} WEIGHTS=${WEIGHTS:-} MODELS=${MODELS:-} EXPORT=${EXPORT:-}
BUDGET=${BUDGET:-580} SECONDS_EACH=${SECONDS_EACH:-1.5} BATCHES=${BATCHES:-1,4,8} STARTS=${STARTS:-1}
TESTS=${TESTS:-yes} TILES=${TILES:-no} SEARCH=${SEARCH:-60} LOAD=${LOAD:-100} CALLS=${CALLS:-100000}
CASES=${CASES:-dinov2_vits14_reg:fp16 dinov2_vitl14_reg:fp16 dinov2_vits14_reg:fp32 dinov2_vits14_reg:bf16 dinov2_vitl14_reg:bf16 dinov2_vitl14_reg:fp32}
PATH=$PATH:/usr/local/cuda/bin
export PYTHONPATH=$ROOT/runtime:$ROOT/export:$ROOT/visionad_ref${PYTHONPATH:+:$PYTHONPATH} PATH PYTHONUNBUFFERED=1

GPU=$(timeout 20 nvidia-smi --query-gpu=name --format=csv,noheader -i 0 2>/dev/null) || GPU=
CAPABILITY=$(timeout 20 nvidia-smi --query-gpu=compute_cap --format=csv,noheader -i 0 2>/dev/null) || CAPABILITY=
SLUG=$(tr -cs '[:alnum:]' '-' <<<"${GPU:-none}" | tr '[:upper:]' '[:lower:]')
OUT=${OUT:-benchmarks/results/gpu-${SLUG%-}-$(date -u +%Y-%m-%d)}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
rm -f "$OUT"/*.log "$OUT"/*.json "$OUT"/*.tsv "$OUT"/*.txt
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

record() { # NAME STATE SECONDS NOTE
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(tr '\t\n' '  ' <<<"$4" | cut -c1-400)" >>"$OUT/steps.tsv"
    printf '%-44s %-9s %4s s  %s\n' "$1" "$2" "$3" "${4:0:100}" >&2
}

skip() { # NAME REASON
    record "$1" skipped 0 "$2"
}

# step NAME LIMIT COMMAND…: stdout to OUT/NAME.json where JSON=1 is set, all else to OUT/NAME.log. SOFT is the state of a failure
# that is a finding and no fault. Its exit status is the command's. What takes too long is interrupted as by Ctrl-C, so that pytest
# still tells what has failed until then.
step() {
    local name=$1 limit=$2 left=$((BUDGET - SECONDS)) begin=$SECONDS rc=0 into=$OUT/$1.log note
    shift 2
    if ((left < 10)); then
        skip "$name" "no time left of $BUDGET s"
        return 1
    fi
    if ((limit > left)); then limit=$left; fi
    if [[ -n ${JSON:-} ]]; then into=$OUT/$name.json; fi
    : >"$OUT/$name.log"
    timeout --signal=INT --kill-after=5 "$limit" "$@" >>"$into" 2>>"$OUT/$name.log" </dev/null || rc=$?
    note=$(grep -v '^[[:space:]]*$' "$OUT/$name.log" | tail -n 1) || note=
    if ((rc == 134 || rc == 139)); then # a library crashed: what it said comes first, a listing of modules last
        note=$(grep -m 1 -E 'what\(\):|Fatal Python error' "$OUT/$name.log") || note="exit status $rc"
    fi
    if [[ -n ${JSON:-} && ! -s $into ]]; then rm -f "$into"; fi
    if ((rc == 0)); then
        record "$name" ok $((SECONDS - begin)) "$note"
    elif ((rc == 124 || rc == 137)) && ((limit == left)); then
        record "$name" skipped $((SECONDS - begin)) "no time left of $BUDGET s"
    elif [[ -n ${SOFT:-} ]]; then
        record "$name" "$SOFT" $((SECONDS - begin)) "${note:-exit status $rc}"
    elif ((rc == 124 || rc == 137)); then
        record "$name" "TIMED OUT" $((SECONDS - begin)) "after $limit s: $note"
    else
        record "$name" FAILED $((SECONDS - begin)) "${note:-exit status $rc}"
    fi
    return "$rc"
}

visionad() { # STEP LIMIT ARGUMENTS…
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" "$PYTHON" -c 'from visionad_runtime.cli.entry import main; main()' "$@"
}

# -- environment -------------------------------------------------------------------------------------------------------

{
    date -u
    git describe --always --dirty 2>/dev/null || true
    uname -a
    "$PYTHON" --version
    nvcc --version 2>/dev/null || echo 'no nvcc'
    timeout 20 nvidia-smi 2>/dev/null || echo 'no nvidia-smi'
} >"$OUT/environment.log" 2>&1
record environment ok $SECONDS "${GPU:-no GPU}${CAPABILITY:+, compute capability $CAPABILITY}"

# -- install -----------------------------------------------------------------------------------------------------------

if [[ $INSTALL == yes ]]; then
    # An environment on an environment sees the system's packages, not those below it: they are added by name.
    BELOW=$("$PYTHON" -c 'import sys, sysconfig; print(sysconfig.get_path("purelib") if sys.prefix != sys.base_prefix else "")')
    if SOFT=skipped step venv 60 "$PYTHON" -m venv --system-site-packages "$ROOT/.venv-gpu"; then
        PYTHON=$ROOT/.venv-gpu/bin/python
        if [[ -n $BELOW ]]; then
            echo "$BELOW" >"$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
        fi
    fi
    FROM=()
    if [[ -n $WHEELS ]]; then FROM=(--no-index --find-links "$WHEELS"); fi
    # what pyproject.toml asks for, read from it
    mapfile -t LEAN < <("$PYTHON" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")')
    extra() {
        "$PYTHON" -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")' "$1"
    }
    pip_install() { # STEP LIMIT REQUIREMENTS…
        local name=$1 limit=$2
        shift 2
        step "$name" "$limit" "$PYTHON" -m pip install --quiet --disable-pip-version-check "${FROM[@]}" "$@"
    }
    # pycuda is linked to libcuda and libcurand by names that neither a driver nor pip's CUDA packages bring; a toolkit would.
    pycuda_paths() {
        mkdir -p "$WORK/link"
        local lines
        lines=$("$PYTHON" - "$WORK/link" <<'PATHS'
import os, sys
from pathlib import Path
link, includes, libraries = Path(sys.argv[1]), [], []
roots = [p for place in sys.path for p in Path(place).glob("nvidia/*")] + sorted(Path("/usr/local").glob("cuda*"), reverse=True)
for root in roots:
    includes += [str(root / "include")] if list((root / "include").glob("cu*.h")) else []
    libraries += [root / "lib", root / "lib64"]
libraries += [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p]
libraries += [Path(p) for p in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/aarch64-linux-gnu", "/usr/local/nvidia/lib64")]
for name in ("cuda", "curand"):
    found = next((f for folder in libraries for f in sorted(folder.glob(f"lib{name}.so*"))), None)
    if found is not None:
        (link / f"lib{name}.so").symlink_to(found.resolve())
print(":".join(dict.fromkeys(includes)))
PATHS
        ) || return 0
        export CPATH=$lines${CPATH:+:$CPATH} LIBRARY_PATH=$WORK/link${LIBRARY_PATH:+:$LIBRARY_PATH}
    }
    pip_install install-lean 120 "${LEAN[@]}" pytest hypothesis || true
    mapfile -t EXTRA < <(extra export)
    SOFT=skipped pip_install install-export 240 "${EXTRA[@]}" || true
    if [[ -n $GPU ]]; then
        # what pip's CUDA lacks of a toolkit's headers
        SOFT=skipped pip_install install-headers 60 --no-deps nvidia-cuda-crt nvidia-cuda-profiler-api nvidia-cuda-cccl || true
        pycuda_paths
        SOFT=skipped pip_install install-pycuda 150 'pycuda>=2024.1' ||
            SOFT=skipped pip_install install-pycuda-again 150 --no-build-isolation 'pycuda>=2024.1' || true
        SOFT=skipped pip_install install-tensorrt 120 'tensorrt>=10.3' || true
        SOFT=skipped pip_install install-tensorrt-rtx 120 'tensorrt-rtx-cu13>=1.4' || true
        # onnxruntime and onnxruntime-gpu overwrite each other's files: the last one written must be the GPU's
        if SOFT=skipped pip_install install-onnxruntime-gpu 120 'onnxruntime-gpu>=1.19'; then
            SOFT=skipped pip_install install-onnxruntime-gpu-last 120 --force-reinstall --no-deps 'onnxruntime-gpu>=1.19' || true
        fi
    else
        skip install-gpu-libraries 'no GPU'
    fi
fi

SOFT=note JSON=1 visionad doctor 60 doctor --json || # its status is the box's, not a check's
    [[ -s $OUT/doctor.json ]] || record doctor FAILED 0 'it printed no report'
runs() { # BACKEND: whether doctor says that it could run here
    "$PYTHON" -c 'import json, sys; sys.exit(not json.load(open(sys.argv[1]))["backends"][sys.argv[2]]["runs"])' "$OUT/doctor.json" "$1" 2>/dev/null
}

# -- on the hardware ---------------------------------------------------------------------------------------------------

gpu_tests() { # STEP LIMIT SELECTION: a process each, since a library that crashes takes the other tests with it
    step "$1" "$2" "$PYTHON" -m pytest -q -rs -p no:cacheprovider tests/gpu/test_gpu.py -k "$3" || true
}
ENGINES='engine or whole_chain or cameras'
if [[ $TESTS != yes ]]; then
    skip hardware-tests 'left out (TESTS)'
elif [[ -n $GPU ]]; then
    gpu_tests hardware-tests 120 "not ($ENGINES)"
    gpu_tests hardware-tests-engines 120 "$ENGINES"
else
    gpu_tests hardware-tests-on-stand-ins 300 ''
    skip hardware-tests 'no GPU'
fi

# -- search ------------------------------------------------------------------------------------------------------------

if [[ -z $GPU ]]; then
    skip search 'no GPU'
elif ! WHY=$("$PYTHON" -c 'from visionad_runtime.cuda.thread import DeviceThread; DeviceThread.of(0).run(lambda gpu: gpu.name)' 2>&1); then
    skip search "$(tail -n 1 <<<"$WHY")"
else
    step search $((SEARCH + 60)) "$PYTHON" benchmarks/gpu_search.py --seconds "$SEARCH" --out "$OUT/search.json" || true
    if [[ $TILES == yes ]]; then
        step tiles 150 "$PYTHON" benchmarks/gpu_tiles.py --out "$OUT/tiles.json" || true
    fi
fi

# -- models: export, build, parity, bench ------------------------------------------------------------------------------

PARTS='
import sys
from pathlib import Path
from PIL import Image
from visionad_runtime.tools.demo.rendering import render
for seed in range(4):
    defect = "broken_tooth" if seed == 3 else None
    folder = Path(sys.argv[1]) / (defect or "good")
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render("gear", seed, defect)[0]).save(folder / f"{seed}.png")
'
RANDOM_WEIGHTS='
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import common
common.random_weights(sys.argv[1], Path(sys.argv[2]))
'

weights_of() { # BACKBONE: sets FILE, or fails
    local kind
    for kind in pth safetensors; do
        FILE=$WEIGHTS/$1.$kind
        if [[ -n $WEIGHTS && -f $FILE ]]; then return; fi
    done
    FILE=$WORK/$1.safetensors
    [[ -f $FILE ]] || step "weights-$1" 90 "$PYTHON" -c "$RANDOM_WEIGHTS" "$1" "$FILE"
}

model_case() { # BACKBONE PRECISION
    local case=$1-$2 model=$WORK/$1-$2 bank=$WORK/bank-$1-$2 backend options=() usable=()
    if [[ -n $MODELS && -d $MODELS/$case ]]; then
        cp -r "$MODELS/$case" "$model"
    else
        weights_of "$1" || return 0
        read -ra options <<<"$EXPORT"
        visionad "export-$case" 200 export --backbone "$1" --weights "$FILE" --precision "$2" --out "$model" "${options[@]}" || return 0
    fi
    for backend in tensorrt tensorrt-rtx; do
        if [[ $backend == tensorrt && -z $GPU ]]; then
            skip "build-$backend-$case" 'no GPU'
        elif ! "$PYTHON" -c "import ${backend//-/_} as m; m.__version__" 2>/dev/null; then
            skip "build-$backend-$case" "$backend is not installed"
        elif [[ $backend == tensorrt-rtx && $CAPABILITY == 9.0 ]]; then # not on its list: what it says is the result
            SOFT=refused visionad "build-$backend-$case" 120 build "$model" --backend "$backend" || true
        else
            visionad "build-$backend-$case" 180 build "$model" --backend "$backend" || true
        fi
        if [[ -f $model.engines/refused.log ]]; then cp "$model.engines/refused.log" "$OUT/refused-$backend-$case.log"; fi
    done
    for backend in tensorrt tensorrt-rtx onnxruntime-cuda onnxruntime-cpu; do
        if [[ $backend != onnxruntime-cpu && -z $GPU ]]; then
            skip "parity-$backend-$case" 'no GPU'
        elif [[ $backend == onnxruntime-cpu && -n $GPU ]]; then
            : # what needs no GPU is checked in CI
        elif [[ $backend == onnxruntime-cpu && $2 == bf16 ]]; then
            skip "parity-$backend-$case" 'a CPU does not run bf16'
        elif ! runs "$backend"; then
            skip "parity-$backend-$case" "doctor: $backend does not run here"
        elif [[ $backend == tensorrt* ]] && ! grep -q "^build-$backend-$case"$'\tok' "$OUT/steps.tsv"; then
            skip "parity-$backend-$case" 'no engine was built'
        else
            # a bank for each: whoever encodes is compared, at enrollment too
            if visionad "bank-$backend-$case" 60 bank add "$model" "$bank-$backend" --class gear "$WORK/parts/good/0.png" --backend "$backend" &&
                JSON=1 visionad "parity-$backend-$case" 120 parity "$model" "$bank-$backend" "$WORK/parts" --backend "$backend" --json; then
                usable+=("$backend")
            fi
        fi
    done
    if [[ " ${usable[*]-} " == *" onnxruntime-cuda "* ]]; then
        step "ways-$case" 60 "$PYTHON" benchmarks/gpu_ways.py "$model" --out "$OUT/ways-$case.json" || true
        SOFT=note step "kernels-$case" 30 "$PYTHON" benchmarks/gpu_ways.py "$model" --kernels --out "$OUT/kernels-$case.json" || true
    fi
    if ((${#usable[@]} == 0)); then
        skip "bench-$case" 'no backend passed parity'
        return
    fi
    backend=$(IFS=, && echo "${usable[*]}")
    JSON=1 visionad "bench-$case" 150 bench "$model" --backend "$backend" --reference eager --batch "$BATCHES" \
        --seconds "$SECONDS_EACH" --rounds 5 --starts "$STARTS" --json || true
    if ((${#LOADED[@]} == 0)); then LOADED=("$case" "$model" "${usable[0]}"); fi
}

if SOFT=skipped step export-extra 90 "$PYTHON" -c 'import torch, timm, onnx' &&
    step parts 60 "$PYTHON" -c "$PARTS" "$WORK/parts"; then
    LOADED=() # the first case, and the best backend that passed there
    for case in $CASES; do
        if ((${#LOADED[@]} > 0 && BUDGET - SECONDS < LOAD + 60)); then
            skip "case-${case/:/-}" 'the time left is for the load'
        else
            model_case "${case%:*}" "${case#*:}"
        fi
    done
    if ((${#LOADED[@]} > 0)); then
        step "load-${LOADED[0]}" $((LOAD + 90)) "$PYTHON" benchmarks/gpu_chain.py "${LOADED[1]}" --backend "${LOADED[2]}" \
            --seconds "$LOAD" --calls "$CALLS" --out "$OUT/chain-${LOADED[0]}.json" || true
    else
        skip load 'no backend passed parity'
    fi
fi

# -- memory errors -----------------------------------------------------------------------------------------------------

if [[ -z $GPU || $TESTS != yes ]]; then
    skip compute-sanitizer 'no GPU, or left out (TESTS)'
elif ! command -v compute-sanitizer >/dev/null; then
    skip compute-sanitizer 'not installed'
else
    # A test takes more memory than there is on purpose: the driver's refusals are the tests' business, not errors of the kernels.
    step compute-sanitizer 120 compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9 \
        "$PYTHON" -m pytest -q -p no:cacheprovider tests/gpu/test_gpu.py \
        -k "not ($ENGINES) and not thousands" || true
fi

find "$OUT" -name '*.log' -empty -delete
printf '\n%s  %s s in all, raw results in %s\n' "${GPU:-no GPU}" "$SECONDS" "$OUT"
"$PYTHON" benchmarks/gpu_table.py "$OUT"
