# Shared by every file here: where things live, how to speak, how to hold a lock.
# Sourced, never run.

CLUSTER_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
REPO_DIR=$(cd "$CLUSTER_DIR/../.." && pwd)
CACHE=${RELANCE_CACHE:-$HOME/.cache/relance}

say() { printf 'cluster%s: %s\n' "${NAME:+ $NAME}" "$*" >&2; }
die() { say "$*"; exit 1; }

# with_lock FILE COMMAND...: one process at a time runs COMMAND; the others wait. The kernel drops the
# lock when the holder dies, so nothing is left behind by a kill; children do not inherit it.
with_lock() {
    local file=$1 fd
    shift
    mkdir -p "$(dirname "$file")"
    exec {fd}>"$file"
    flock "$fd"
    # No `||` here: it would switch `set -e` off in all that COMMAND does.
    "$@" {fd}>&-
    exec {fd}>&-
}
