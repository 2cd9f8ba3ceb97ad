# Debian packages that a step needs. Sourced.

# need_packages NAME...: installs those that are missing; says which when it cannot.
need_packages() {
    local p missing=()
    command -v dpkg-query >/dev/null || {
        say "this is no Debian or Ubuntu; see to it that these are there: $*"
        return 0
    }
    for p in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "missing Debian packages, and only root can install them: sudo apt-get install ${missing[*]}"
    with_lock "$CACHE/apt.lock" install_packages "${missing[@]}"
}

install_packages() {
    say "installing ${*}"
    export DEBIAN_FRONTEND=noninteractive
    # The package lists of a fresh machine may be empty or too old for what the mirrors still have.
    apt-get install -qq -y --no-install-recommends "$@" >/dev/null 2>&1 || {
        apt-get update -qq >&2
        apt-get install -qq -y --no-install-recommends "$@" >&2 ||
            die "apt-get could not install ${*}; its message is above"
    }
}
