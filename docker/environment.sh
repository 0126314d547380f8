# Makes the project's environment; sourced by webui.sh and test.sh, which have set $root and changed into it.
#
#   make_environment NAME FILE...   makes .venv if there is none and installs the requirements of the files, unless that
#                                   was done before: .venv/.NAME holds a hash of all that decides what is installed.
#   $install_option                 one more option of `pip install`, set before if it is wanted.
#   wanted_torch                    prints which torch would be installed on this machine, and from where.
#
# LORALOOM_TORCH names a torch in place of the one that is chosen by NVIDIA's driver: VERSION, VERSION+BUILD (such as
# 2.11.0+cu128, from PyTorch's own index of that build), and after either @INDEX for another index. See docs/gpus.md.

readonly venv=.venv
readonly python=$venv/bin/python
readonly oldest_python='(3, 11)'
readonly oldest_torch='(2, 10)'
readonly pytorch_index=https://download.pytorch.org/whl
driver_file=${driver_file:-/proc/driver/nvidia/version}

say() { printf '%s\n' "$*" >&2; }

die() {
    say "$@"
    exit 1
}

# Where the python $1 keeps a torch that is new enough and sees a GPU; fails if it has none.
machine_torch() {
    "$1" - 2>/dev/null <<PY
import pathlib, torch
assert tuple(map(int, torch.__version__.split(".")[:2])) >= $oldest_torch and torch.cuda.is_available()
print(pathlib.Path(torch.__file__).parent.parent)
PY
}

# The first python that is new enough; one that brings a usable torch goes before the others.
find_python() {
    local candidate found=
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14 python; do
        "$candidate" -c "import sys; sys.exit(sys.version_info < $oldest_python)" 2>/dev/null || continue
        if machine_torch "$candidate" >/dev/null; then
            echo "$candidate"
            return
        fi
        found=${found:-$candidate}
    done
    [ -n "$found" ] || die "Python 3.11 or newer is needed and was not found; install it, or name it: PYTHON=/path/to/python3 $0"
    echo "$found"
}

# apt, where we may use it; fails quietly where we may not or the package cannot be had.
apt_install() {
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || return 1
    say "Installing $* with apt."
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >/dev/null 2>&1
}

# Debian and Ubuntu keep venv in a package of its own.
require_venv() {
    local package
    "$1" -c 'import ensurepip, venv' 2>/dev/null && return
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    apt_install "$package" || apt_install python3-venv || die "Python's venv is missing. Install it and start again: sudo apt-get install $package"
}

# The driver's version by its own file; fails where there is none.
driver_of_file() { grep -oE '\b[0-9]{3,}\.[0-9]+(\.[0-9]+)?\b' "$driver_file" 2>/dev/null | head -n 1 | grep .; }

# NVIDIA's driver and the compute capabilities of the GPUs, as "535.183.01 8.6 8.6"; fails where there is no driver.
nvidia() {
    local table= smi version capabilities
    smi=$(command -v nvidia-smi || command -v /usr/lib/wsl/lib/nvidia-smi) || smi=
    if [ -n "$smi" ]; then
        table=$(timeout 30 "$smi" --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null) || table=
    fi
    version=$(printf '%s\n' "$table" | grep -oE '^[0-9]{3}\.[0-9.]+' | head -n 1) || version=
    # An nvidia-smi that is broken or missing still leaves the driver's own word.
    [ -n "$version" ] || version=$(driver_of_file) || return 1
    capabilities=$(printf '%s\n' "$table" | grep -oE '[0-9]+\.[0-9]+$') || capabilities=
    echo "$version" $capabilities
}

# The torch for NVIDIA's driver $1 and GPUs of these compute capabilities, as VERSION or VERSION+BUILD.
#
# What is built for CUDA 12 runs with drivers from 525 on, for CUDA 13 from 580 on. The newest torch comes for CUDA 13, for
# Turing (7.5) and later, and for CUDA 12.6, up to Hopper (9.0); for Blackwell and CUDA 12 there is 2.11 with 12.8.
choose_torch() {
    local newest driver=${1%%.*} least=999 most=0 capability
    newest=$(sed -n 's/^torch==//p' requirements.txt)
    shift
    for capability; do
        capability=${capability/./}
        [ "$capability" -ge "$least" ] || least=$capability
        [ "$capability" -le "$most" ] || most=$capability
    done
    if [ "$driver" -lt 525 ]; then
        echo "$newest"
    elif [ "$driver" -ge 580 ] && { [ "$least" -ge 75 ] || [ "$most" -gt 90 ]; }; then
        echo "$newest"
    elif [ "$most" -gt 90 ]; then
        echo "2.11.0+cu128"
    else
        echo "$newest+cu126"
    fi
}

# What is to be installed and, where it is not pip's own, the package index that has it: "2.13.0+cu126 https://...".
wanted_torch() {
    local wish=${LORALOOM_TORCH:-} index= found
    if [ -n "$wish" ]; then
        case $wish in *@*) index=${wish#*@} wish=${wish%%@*} ;; esac
        [[ $wish =~ ^([0-9]+)\.([0-9]+)(\.[0-9]+)?(\+[a-z0-9._]+)?$ ]] ||
            die "LORALOOM_TORCH must be VERSION[+BUILD][@INDEX], such as 2.11.0+cu128, and is $LORALOOM_TORCH"
        (("${BASH_REMATCH[1]}" * 1000 + "${BASH_REMATCH[2]}" >= 2010)) ||
            die "LORALOOM_TORCH is $wish; 2.10 is the oldest that works here"
    elif found=$(nvidia); then
        wish=$(choose_torch $found)
        if [ "${found%%.*}" -lt 525 ]; then
            say "NVIDIA's driver ${found%% *} is too old for every torch that works here, so runs will use the CPU;" \
                "update it to 580 or newer."
        fi
    else
        wish=$(sed -n 's/^torch==//p' requirements.txt)
    fi
    case $index$wish in *://*) ;; *+*) index=$pytorch_index/${wish#*+} ;; esac
    echo "$wish" $index
}

# Whether the installed torch $1, built for CUDA $2, may stay: it is what was asked for or, where nothing was, runs with
# the driver and has code for the GPUs.
torch_fits() {
    local wish=${LORALOOM_TORCH:-} found
    if [ -n "$wish" ]; then
        wish=${wish%%@*}
        [ "$1" = "$wish" ] || [ "${1%%+*}" = "$wish" ]
    elif found=$(nvidia) && [ "${found%%.*}" -ge 525 ]; then
        case "$2 $(choose_torch $found) for $found" in
            13.*+cu12*) return 1 ;;
            12.6*" for "*" 1"[0-9].*) return 1 ;;  # a GPU later than Hopper
            12.* | 13.*) ;;
            *) return 1 ;;
        esac
    fi
}

# Version and CUDA of the environment's torch by its own file, "2.13.0+cu130 13.0"; nothing is loaded.
installed_torch() {
    "$python" - 2>/dev/null <<'PY'
import importlib.util, pathlib, re
text = (pathlib.Path(importlib.util.find_spec("torch").origin).parent / "version.py").read_text()
found = [re.search(rf"^{name}(?:: [^=]*)? = '([^']*)'", text, re.M) for name in ("__version__", "cuda")]
print(*(one[1] if one else "none" for one in found))
PY
}

make_venv() {
    local base torch_home=
    base=$(find_python) || exit 1
    require_venv "$base"
    [ -n "${LORALOOM_TORCH:-}" ] || torch_home=$(machine_torch "$base") || torch_home=
    say "Making $venv with $("$base" --version)."
    "$base" -m venv --clear "$venv" || die "$venv could not be made."
    if [ -n "$torch_home" ]; then
        # Behind the environment's own packages on the path: the machine's torch is found, what is installed here wins.
        say "Keeping this machine's torch in $torch_home."
        echo "$torch_home" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/machine_torch.pth"
    fi
}

pip_install() { "$python" -m pip install --quiet --disable-pip-version-check ${install_option:+"$install_option"} "$@"; }

# xformers is linked with the CUDA that it was built for: the one of PyPI with 12, the one of PyTorch's index with 13.
install_xformers() {
    local line own
    line=$(cat "$@" | grep '^xformers==') || return 0
    own=$("$python" -c 'import importlib.util, json, pathlib
print(json.loads((pathlib.Path(importlib.util.find_spec("xformers").origin).parent / "cpp_lib.json").read_text())["version"]["cuda"])' 2>/dev/null) || own=
    case $(installed_torch) in
        *" 13."*)
            [[ $own != 13* ]] || return 0
            [ -z "$own" ] || "$python" -m pip uninstall --quiet --yes xformers
            pip_install --no-deps --index-url "$pytorch_index/cu130" "$line" 2>/dev/null ||
                say "xformers for CUDA 13 cannot be had from $pytorch_index/cu130, so it is left out;" \
                    "PyTorch's own attention does without."
            ;;
        *)
            pip_install --no-deps "$line" ||
                say "xformers could not be installed and is left out; PyTorch's own attention does without."
            ;;
    esac
}

install_requirements() {
    local limits=$venv/constraints.txt wish index
    # torch first and fixed from then on, so that nothing that depends on it brings another build.
    if ! installed_torch >/dev/null; then
        read -r wish index <<<"$(wanted_torch)"
        [ -n "$wish" ] || exit 1
        say "Installing torch $wish. This takes a few minutes."
        pip_install "torch==$wish" ${index:+--extra-index-url "$index"} ||
            die "torch $wish could not be installed${index:+ from $index}; see above." \
                "LORALOOM_TORCH names another (docs/gpus.md)."
    fi
    echo "torch==$("$python" -c 'from importlib.metadata import version; print(version("torch"))')" >"$limits"
    say "Installing the rest."
    cat "$@" | grep -v -e '^torch==' -e '^xformers==' >"$venv/requirements.txt"
    pip_install -r "$venv/requirements.txt" -c "$limits" || die "The requirements could not be installed; see above."
    install_xformers "$@"
}

# A hash of the files, of the python that the environment was made with, and of the torch that was asked for.
fingerprint() {
    { cat "$@" docker/environment.sh && readlink -f "$python" && echo "${LORALOOM_TORCH:-}"; } | sha256sum | cut -d' ' -f1
}

# The driver's number before the point; "none" where there is none.
driver() { driver_of_file | cut -d. -f1 | grep . || echo none; }

# Whether nothing is to be done: $1 is the stamp, the others are the files. A stamp's second line is the driver that it was
# made beside, so that a torch that does not run with another one is replaced, and tried only once.
is_ready() {
    local stamp=$1 made=
    shift
    [ -x "$python" ] && [ "$(head -n 1 "$stamp" 2>/dev/null)" = "$(fingerprint "$@")" ] || return 1
    made=$(sed -n 2p "$stamp")
    [ "$made" = "$(driver)" ] || torch_fits $(installed_torch)
}

make_environment() {
    local stamp=$venv/.$1 torch
    shift
    if is_ready "$stamp" "$@"; then
        return
    fi
    # One of several shells does the work, the others wait for it. The lock is on a file that is there in any case.
    exec 9<requirements.txt
    if command -v flock >/dev/null && ! flock -n 9; then
        say "Another shell is setting up; waiting."
        flock 9
    fi
    if ! is_ready "$stamp" "$@"; then
        wanted_torch >/dev/null || exit 1  # a mistake in what was asked for shows before anything is done
        # Made only once it is whole: a half-made one has no working pip.
        if ! "$python" -m pip --version >/dev/null 2>&1; then
            make_venv
        elif torch=$(installed_torch) && ! torch_fits $torch &&
            [ "$(wanted_torch 2>/dev/null | cut -d' ' -f1)" != "${torch%% *}" ]; then
            # With it go the gigabytes of CUDA's libraries that it brought along.
            say "torch ${torch%% *} does not fit this machine's GPU or what was asked for, so $venv is made anew."
            make_venv
        fi
        rm -f "$stamp"
        install_requirements "$@"
        { fingerprint "$@" && driver; } >"$stamp"
    fi
    exec 9<&-
}
