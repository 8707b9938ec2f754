#!/bin/sh
# Installs what is missing, builds in six ways, runs every test on every backend there is, and ends with the line
# "N passed, N failed, N skipped". Exit 0 only if none failed.
#
#   tools/check.sh [--quick] [--no-install]
#
# --quick: the default build and its tests alone. Logs stay in build-check/.
set -eu
cd "$(dirname "$0")/.."
. tools/setup.sh

quick=''
install=yes
for argument in "$@"; do
    case $argument in
    --quick) quick=yes ;;
    --no-install) install='' ;;
    *) echo "usage: tools/check.sh [--quick] [--no-install]" >&2; exit 2 ;;
    esac
done

if [ -n "$install" ]; then
    need gcc g++ libc6-dev meson ninja-build pkg-config python3 python3-numpy check libzip-dev libhdf5-dev \
        ocl-icd-opencl-dev opencl-headers
    want libclblast-dev pocl-opencl-icd mesa-opencl-icd oclgrind libopenmpi-dev openmpi-bin
    [ -n "$quick" ] || want clang libomp-dev clang-15 llvm-spirv-15 clang-format python3-faiss
fi

# The tests compare with NumPy; where another python3 stands first on the path, the system's has it.
if ! python3 -c 'import numpy' 2> /dev/null && /usr/bin/python3 -c 'import numpy' 2> /dev/null; then
    PATH=/usr/bin:$PATH
fi

out=build-check
mkdir -p $out
results=$out/results.tsv
rm -rf $out/kernel-cache # which all builds share
: > $results

# note JOB BACKEND PASSED FAILED SKIPPED: a line of the summary
note() { printf '%s\t%s\t%s\t%s\t%s\n' "$@" >> $results; }

# have JOB COMMAND...: whether the commands are there; where one is not, the job is a skip that says so
have() {
    name=$1
    shift
    for tool in "$@"; do
        command -v "$tool" > /dev/null && continue
        note "$name" - 0 0 1
        printf '%-10s skipped: %s is not installed\n' "$name" "$tool"
        return 1
    done
}

# run NAME COMMAND...: a job that is one check, with its log; exit 77 is a skip
run() {
    name=$1
    shift
    start=$(date +%s)
    # In the background, because a condition would switch "set -e" off within.
    (set -e; "$@") > "$out/$name.log" 2>&1 &
    verdict=ok
    wait $! || { [ $? = 77 ] && verdict=skipped || verdict=FAILED; }
    # A script that counts its own checks ends with "N passed, N failed".
    counts=$(sed -n '$s/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$out/$name.log")
    case "$verdict $counts" in
    skipped*) note "$name" - 0 0 1 ;;
    "ok "[0-9]*) note "$name" - "${counts% *}" 0 0 ;;
    "FAILED "*" "[1-9]*) note "$name" - "${counts% *}" "${counts#* }" 0 ;;
    "ok "*) note "$name" - 1 0 0 ;;
    *) note "$name" - 0 1 0 ;;
    esac
    printf '%-10s %s, %d s\n' "$name" "$verdict" $(($(date +%s) - start))
    [ $verdict = ok ] || tail -n 30 "$out/$name.log" | sed 's/^/  /'
}

# The tests draw fresh data for each change and, but for seed_name, each build, and the same whenever that is checked again: a seed of the
# caller's own (FLASHGMM_TEST_SEED) aside, it is made of the sources and the build's name.
sources=$(find include lib cl cpu tests -name '*.[ch]' -o -name '*.cl*' | LC_ALL=C sort | xargs cat | cksum | cut -d' ' -f1)
seed_of() { echo "${FLASHGMM_TEST_SEED:-$(echo "$sources $1" | cksum | cut -d' ' -f1)}"; }

# build_and_test NAME SUITES SETUP-ARGUMENT...: a build of its own and its tests, each counted; SUITES "" is all of them
build_and_test() {
    name=$1
    suites=''
    for suite in $2; do suites="$suites --suite $suite"; done
    shift 2
    start=$(date +%s)
    rm -rf "${out:?}/$name"
    if meson setup "$out/$name" --werror "-Dkernel_cache=$PWD/$out/kernel-cache" "$@" > "$out/$name.log" 2>&1 && ninja -C "$out/$name" >> "$out/$name.log" 2>&1; then
        # shellcheck disable=SC2086 # suites are words
        FLASHGMM_TEST_SEED=$(seed_of "${seed_name:-$name}") meson test -C "$out/$name" --no-rebuild --print-errorlogs $suites >> "$out/$name.log" 2>&1 || true
        python3 tools/check_tally.py collect "$name" "$out/$name/meson-logs/testlog.json" >> $results
        python3 tools/check_tally.py tell "$out/$name/meson-logs/testlog.json"
    else
        note "$name" build 0 1 0
        echo "$name: the build failed"
        grep -v '^\[' "$out/$name.log" | tail -n 30
    fi
    printf '%-10s done, %d s\n' "$name" $(($(date +%s) - start))
}

# shellcheck disable=SC2046 # flags are words
# The installed library is what users link to: found by pkg-config, shared and static.
installed() {
    prefix=$PWD/$out/installed
    rm -rf "$prefix"
    DESTDIR=$prefix meson install -C $out/gcc --no-rebuild
    pc=$(dirname "$(find "$prefix" -name flashgmm.pc)")
    flags() { PKG_CONFIG_PATH=$pc pkg-config --define-variable=prefix="$prefix/usr/local" "$@" flashgmm; }
    library=$(flags --variable=libdir)
    cc -std=c11 tests/example_fit.c -o $out/example-shared $(flags --cflags --libs)
    LD_LIBRARY_PATH=$library $out/example-shared data/digits/X.npy $out/example.npz
    cc -std=c11 tests/example_fit.c -o $out/example-static $(flags --cflags) "$library/libflashgmm.a" \
        $(flags --libs --static | sed 's/-lflashgmm//g') -fopenmp
    $out/example-static data/digits/X.npy $out/example.npz
    LD_LIBRARY_PATH=$library "$prefix/usr/local/bin/flashgmm" info $out/example.npz
}

format() { find include lib cl cpu tests tools -name '*.[ch]' -print0 | xargs -0 clang-format --dry-run -Werror; }

# Of the many problems of the conformance tests each run takes a part that its seed chooses (tests/harness.h): a ninth of
# them in the first build, a twelfth in those that are there for the compiler, an option or a sanitizer, where the CPU counts as a slow device.
export FLASHGMM_TEST_SHORT=9
build_and_test gcc "" -Dhdf5=enabled
export FLASHGMM_TEST_SHORT=12 FLASHGMM_TEST_SCALE=9e5
run cli tools/check-cli.sh $out/gcc/tools/flashgmm
run installed installed
if [ -z "$quick" ]; then
    if have clang clang; then
        (export CC=clang; build_and_test clang "cpu-avx2 cpu-avx512 cpu-neon files house")
    fi
    build_and_test builtin "house" -Dopencl=builtin
    build_and_test noopencl "files house mpi" -Dopencl=disabled -Dmpi=auto
    # PoCL alone: Mesa's older driver leaks in a library that it unloads, which no suppression can name.
    # LLVM gives a thread that compiles a signal stack of its own, which the sanitizer would then unmap as its own.
    # A part of the first build's problems, whose kernels are there by now.
    (export OCL_ICD_VENDORS=pocl.icd FLASHGMM_TEST_SHORT=36 ASAN_OPTIONS=use_sigaltstack=0 seed_name=gcc
     build_and_test asan "cpu-scalar cpu-avx2 cpu-avx512 cpu-neon opencl-pocl files" \
         -Dbuildtype=debugoptimized -Db_sanitize=address,undefined)
    # gcc's OpenMP hides its barriers from the thread sanitizer; clang's shows them through Archer.
    archer=$(find /usr/lib/llvm-*/lib -maxdepth 1 -name libarcher.so 2> /dev/null | sort -V | tail -n 1)
    if have tsan clang "${archer:-libarcher.so}"; then
        (export CC=clang OMP_TOOL_LIBRARIES="$archer" TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1
            build_and_test tsan "cpu-avx2 cpu-neon" -Dbuildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false \
                -Dopencl=disabled)
    fi
    run kernels tools/check-kernels.sh
    if have format clang-format; then run format format; fi
fi

echo
python3 tools/check_tally.py summary $results
