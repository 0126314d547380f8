# Makes the project's environment; sourced by webui.sh and test.sh, which have set $root and changed into it.
#
#   make_environment NAME FILE...   makes .venv if there is none and installs the requirements of the files, unless that
#                                   was done before: .venv/.NAME holds a hash of all that decides what is installed.
#   $install_option                 one more option of `pip install`, set before if it is wanted.

readonly venv=.venv
readonly python=$venv/bin/python
readonly oldest_python='(3, 11)'
readonly oldest_torch='(2, 10)'

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

make_venv() {
    local base torch_home
    base=$(find_python) || exit 1
    require_venv "$base"
    torch_home=$(machine_torch "$base") || torch_home=
    say "Making $venv with $("$base" --version)."
    "$base" -m venv --clear "$venv" || die "$venv could not be made."
    if [ -n "$torch_home" ]; then
        # Behind the environment's own packages on the path: the machine's torch is found, what is installed here wins.
        say "Keeping this machine's torch in $torch_home."
        echo "$torch_home" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/machine_torch.pth"
    fi
}

pip_install() { "$python" -m pip install --quiet --disable-pip-version-check ${install_option:+"$install_option"} "$@"; }

torch_version() { "$python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null; }

install_requirements() {
    local limits=$venv/constraints.txt
    # torch first and fixed from then on, so that nothing that depends on it brings another build.
    if ! torch_version >/dev/null; then
        say "Installing torch. This takes a few minutes."
        pip_install "$(grep '^torch==' requirements.txt)" || die "torch could not be installed; see above."
    fi
    echo "torch==$(torch_version)" >"$limits"
    say "Installing the rest."
    cat "$@" | grep -v '^torch==' >"$venv/requirements.txt"
    pip_install -r "$venv/requirements.txt" -c "$limits" || die "The requirements could not be installed; see above."
}

# A hash of the files and of the python that the environment was made with.
fingerprint() { { cat "$@" docker/environment.sh && readlink -f "$python"; } | sha256sum | cut -d' ' -f1; }

make_environment() {
    local stamp=$venv/.$1
    shift
    if [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint "$@")" ]; then
        return
    fi
    # One of several shells does the work, the others wait for it. The lock is on a file that is there in any case.
    exec 9<requirements.txt
    if command -v flock >/dev/null && ! flock -n 9; then
        say "Another shell is setting up; waiting."
        flock 9
    fi
    if [ ! -x "$python" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$(fingerprint "$@")" ]; then
        # Made only once it is whole: a half-made one has no working pip.
        "$python" -m pip --version >/dev/null 2>&1 || make_venv
        rm -f "$stamp"
        install_requirements "$@"
        fingerprint "$@" >"$stamp"
    fi
    exec 9<&-
}
