#!/bin/sh
# Compiles every kernel alone, for AMD GPUs and to SPIR-V, with its default macros and with each variant that its first
# lines name:   // variants: -DROW_TYPE=4 -DDIAG=1 | -DROW_TYPE=0
# One whose first lines say   // target: nvptx64   holds NVIDIA's own instructions and is compiled for those GPUs alone.
# usage: tools/check-kernels.sh [FILE.cl...]      exit 0 all compile, 1 some do not, 77 a compiler is missing
# Ends with "N passed, N failed", which counts compilations.
set -u
cd "$(dirname "$0")/.." || exit 1
self=tools/$(basename "$0")
CLANG=${CLANG:-clang-15}
LLVM_SPIRV=${LLVM_SPIRV:-llvm-spirv-15}
for tool in "$CLANG" "$LLVM_SPIRV"; do
    if ! command -v "$tool" >/dev/null 2>&1; then
        echo "kernels: SKIPPED, $tool is not installed"
        exit 77
    fi
done
[ $# -gt 0 ] || set -- cl/*.cl tools/*.cl
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# Several files go side by side, each in a process of its own that ends with its tally.
if [ $# -gt 1 ]; then
    printf '%s\n' "$@" | xargs -P "$(nproc 2>/dev/null || echo 1)" -I{} sh -c '"$0" "$1" >"$2/$(basename "$1").part" 2>&1' "$self" {} "$work"
    cat "$work"/*.part | grep -v -e '^1 files$' -e '^[0-9]* passed, [0-9]* failed$'
    echo "$# files"
    awk '/^[0-9]+ passed, [0-9]+ failed$/ { good += $1; bad += $3; ended++ }
        END { print good + 0 " passed, " bad + files - ended " failed"; exit bad + files - ended > 0 }' files=$# "$work"/*.part
    exit
fi

front="-x cl -cl-std=CL1.2 -Xclang -finclude-default-header -Icl -Wall -Werror"
good=0
bad=0

# attempt LABEL COMMAND...: counts it, and shows what the compiler says when it fails
attempt() {
    label=$1
    shift
    if "$@" >"$work/log" 2>&1; then
        good=$((good + 1))
    else
        bad=$((bad + 1))
        echo "FAILED $label"
        head -n 20 "$work/log"
    fi
}

# One variant of one kernel on every target.
# shellcheck disable=SC2086 # options are words
compile() {
    if sed -n '1,10p' "$1" | grep -q '^// target: nvptx64$'; then
        # clang knows the word that NVIDIA's compiler takes only with underscores.
        attempt "$1 [$2] nvptx64" "$CLANG" $front -Dasm=__asm__ $2 -target nvptx64-nvidia-cuda -O2 \
            -Wno-error=pass-failed -emit-llvm -c "$1" -o "$work/out.bc"
        return
    fi
    for card in gfx90a gfx1100; do
        attempt "$1 [$2] $card" \
            "$CLANG" $front $2 -target amdgcn-amd-amdhsa -mcpu=$card -nogpulib -O2 -c "$1" -o "$work/out.o"
    done
    # The translator takes what the front end writes, not what the optimiser makes of it.
    attempt "$1 [$2] spir64" \
        "$CLANG" $front $2 -target spir64 -O1 -Xclang -disable-llvm-passes -emit-llvm -c "$1" -o "$work/out.bc"
    [ -f "$work/out.bc" ] && attempt "$1 [$2] SPIR-V" "$LLVM_SPIRV" "$work/out.bc" -o "$work/out.spv"
    rm -f "$work"/out.*
}

for kernel; do
    if [ ! -f "$kernel" ]; then
        echo "FAILED $kernel: no such file"
        bad=$((bad + 1))
        continue
    fi
    compile "$kernel" ""
    sed -n '1,10s,^ *// variants: *,,p' "$kernel" | tr '|' '\n' | sed 's/^ *//; s/ *$//; /^$/d' >"$work/variants"
    while IFS= read -r variant; do
        compile "$kernel" "$variant"
    done <"$work/variants"
done
echo "$# files"
echo "$good passed, $bad failed"
[ "$bad" -eq 0 ]
