#!/usr/bin/env python3
"""Laws of the house: laws.py LAW SOURCE BUILD. Exit 0 kept, 1 broken (each breach on a line), 77 not checked.

    includes  include <- lib <- {cl, cpu} <- {tools, tests}; cl and cpu never see each other
    names     file names are unique in the tree
    quiet     the library neither prints nor exits nor aborts, and lib/ knows no OpenCL and no SIMD
    symbols   the libraries export fgmm_* and nothing else
    headers   each public header compiles alone, as C11 and as C++17
    readme    the README's example is tests/example_fit.c
"""
import pathlib
import re
import shutil
import subprocess
import sys

SKIP = 77
CODE = {".c", ".h", ".cl", ".clh"}
# What a folder's files may include from, itself aside.
MAY_SEE = {
    "include": set(),
    "lib": {"include"},
    "cpu": {"include", "lib"},
    "cl": {"include", "lib"},
    "tools": {"include", "lib", "cl", "cpu"},
    "tests": {"include", "lib", "cl", "cpu"},
}
# What a backend may see of lib/: it links to nothing there.
BACKEND_SEES = {"lib/backend.h", "lib/clones.h", "lib/convert.h"}


def code_files(root, *folders):
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in CODE:
                yield path


def without_comments(text):
    """Comments and string contents blanked, line numbers kept."""
    pattern = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"'
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.S)


def includes(root, _build):
    # File names are unique, so one is enough to know a quoted include by, whatever the include paths are.
    by_name = {path.name: path for path in code_files(root, *MAY_SEE)}
    for path in code_files(root, *MAY_SEE):
        folder = path.relative_to(root).parts[0]
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
            if not match:
                continue
            target = None
            if match[2].startswith("flashgmm/"):
                target = root / "include" / match[2]
            elif match[1] == '"':
                target = by_name.get(pathlib.Path(match[2]).name, root / match[2])
            if target is None:
                continue
            where = f"{path.relative_to(root)}:{number}"
            if not target.exists():
                yield f"{where}: {match[2]} is not in the tree"
                continue
            seen = str(target.resolve().relative_to(root))
            other = seen.split("/")[0]
            if other != folder and other not in MAY_SEE[folder]:
                yield f"{where}: {folder}/ may not see {seen}"
            if folder in ("cl", "cpu") and other == "lib" and seen not in BACKEND_SEES:
                yield f"{where}: a backend sees only {', '.join(sorted(BACKEND_SEES))} of lib/, not {seen}"


def names(root, _build):
    seen = {}
    for folder in list(MAY_SEE) + ["docs"]:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in CODE | {".py", ".sh", ".md"} or path.name == "README.md":
                continue
            if path.name in seen:
                yield f"{path.relative_to(root)} has the name of {seen[path.name]}"
            seen[path.name] = path.relative_to(root)
            if re.search(r"util|common|helper|private", path.stem):
                yield f"{path.relative_to(root)}: the name does not tell what is in it"


def quiet(root, _build):
    loud = re.compile(r"\b(printf|fprintf|puts|putchar|perror|exit|_exit|abort|assert|system)\s*\(|\bstd(out|err)\b")
    foreign = re.compile(r"#\s*include\s*<(CL/|immintrin|x86intrin|arm_neon|.*clblast)|vector_size|\b_mm\d*_|\bcl[A-Z]\w+\(")
    for path in code_files(root, "include", "lib", "cl", "cpu"):
        code = without_comments(path.read_text())
        for number, line in enumerate(code.splitlines(), 1):
            where = f"{path.relative_to(root)}:{number}"
            if path.suffix in (".c", ".h") and loud.search(line):
                yield f"{where}: {line.strip()}"
            if path.relative_to(root).parts[0] in ("include", "lib") and foreign.search(line):
                yield f"{where}: OpenCL or SIMD: {line.strip()}"


def symbols(_root, build):
    # clang gives the lock of its OpenMP reductions a name that all libraries share.
    allowed = {"libflashgmm.so": r"fgmm_(?!backend|fail$|alloc$)|\.gomp_critical_user_\.reduction\.var$",
               "libflashgmm_opencl.so": r"fgmm_backend_module$"}
    checked = 0
    for name, pattern in allowed.items():
        library = build / name
        if not library.exists():
            continue
        checked += 1
        found = subprocess.run(["nm", "-D", "--defined-only", str(library)], check=True, capture_output=True, text=True)
        for line in found.stdout.splitlines():
            symbol = line.split()[-1].split("@")[0]
            if not re.match(pattern, symbol):
                yield f"{name} exports {symbol}"
    if not checked:
        raise LookupError("no shared library in the build folder")


def headers(root, _build):
    strict = ["-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", str(root / "include")]
    uses = "#include <flashgmm/%s>\nint main(void) { %s return 0; }\n"
    inits = " ".join(f"fgmm_{name} {name} = FGMM_{name.upper()}_INIT; (void){name};" for name in (
        "context_options", "rows_callback", "compute_options", "fit_options", "finalize_options", "report",
        "kmeans_options", "online_options", "assign_options"))
    ivf = " ".join(f"fgmm_{name} {name} = FGMM_{name.upper()}_INIT; (void){name};" for name in (
        "ivf_train_options", "ivf_assign_options", "ivf_options", "ivf_search_options"))
    checked = 0
    for compiler, language, standard in (("gcc", "c", "c11"), ("clang", "c", "c11"), ("g++", "c++", "c++17"),
                                         ("clang++", "c++", "c++17")):
        if not shutil.which(compiler):
            continue
        checked += 1
        for header in ("flashgmm.h", "opencl.h", "ivf.h"):
            command = [compiler, "-x", language, f"-std={standard}", *strict, "-"]
            done = subprocess.run(command, input=uses % (header, inits + ivf * (header == "ivf.h")), capture_output=True, text=True)
            if done.returncode:
                yield f"{header} with {compiler} -std={standard}:\n{done.stderr}"
    if not checked:
        raise LookupError("no compiler by the name of gcc or clang")


def readme(root, _build):
    blocks = re.findall(r"```c\n(.*?)```", (root / "README.md").read_text(), flags=re.S)
    example = (root / "tests/example_fit.c").read_text()
    if example.strip() not in [block.strip() for block in blocks]:
        yield "no C block of README.md is tests/example_fit.c"


LAWS = {law.__name__: law for law in (includes, names, quiet, symbols, headers, readme)}


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in LAWS:
        sys.exit(__doc__)
    try:
        breaches = list(LAWS[sys.argv[1]](pathlib.Path(sys.argv[2]).resolve(), pathlib.Path(sys.argv[3]).resolve()))
    except (LookupError, FileNotFoundError) as why:
        print(f"skipped: {why}")
        sys.exit(SKIP)
    print("\n".join(breaches) or f"{sys.argv[1]}: kept")
    sys.exit(1 if breaches else 0)


if __name__ == "__main__":
    main()
