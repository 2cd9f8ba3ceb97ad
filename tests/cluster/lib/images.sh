# Images: made by buildah without a daemon, handed to a cluster's containerd as archives. Sourced.
#
# Archives are named after what is in them and kept in the cache, so a second cluster loads what the first
# one built. Nothing is compressed: it all stays on this machine.

PAUSE=localhost/relance-pause:1

# In a mount namespace of its own: buildah leaves a mount behind. Overlay, since the vfs driver copies the
# base for every layer, and containerd needs an overlay file system anyway.
bud() {
    unshare --mount --propagation private \
        buildah --root "$CACHE/images/storage" --runroot "$CACHE/images/run" --storage-driver overlay "$@"
}

digest() { sha256sum "$1" | cut -c1-16; }

# build_image NAME ARCHIVE CONTEXT [ARG...]
build_image() {
    local name=$1 archive=$2 context=$3
    shift 3
    bud build-using-dockerfile --isolation chroot --pull-never --quiet "$@" --tag "$name" "$context" >/dev/null
    [ -z "$archive" ] || {
        # docker-archive: buildah compresses what it puts into an oci-archive, whatever it is told.
        bud push --quiet "$name" "docker-archive:$archive.new:$name"
        mv "$archive.new" "$archive"
    }
}

# The process that holds a pod's namespaces; Debian's catatonit does it.
make_pause() {
    local archive=$1 dir
    [ ! -e "$archive" ] || return 0
    dir=$(mktemp -d)
    cp /usr/bin/catatonit "$dir/"
    printf 'FROM scratch\nCOPY catatonit /catatonit\nENTRYPOINT ["/catatonit", "-P"]\n' >"$dir/Dockerfile"
    build_image "$PAUSE" "$archive" "$dir"
    rm -rf "$dir"
}

load_pause() {
    local archive
    archive=$CACHE/images/pause-$(digest /usr/bin/catatonit).tar
    [ -e "$archive" ] || with_lock "$CACHE/images.lock" make_pause "$archive"
    ctr images import "$archive" >/dev/null
    touch "$STATE/pause-loaded"
}

# A base like the machine that the binary was built on, so that its glibc fits.
# shellcheck source=/dev/null
base_name() { (. /etc/os-release && echo "localhost/relance-base:$VERSION_CODENAME"); }

make_base() {
    local name suite tar dir
    name=$(base_name)
    suite=${name#*:}
    ! bud inspect --type image "$name" >/dev/null 2>&1 || return 0
    tar=$CACHE/images/base-$suite.tar
    if [ ! -e "$tar" ]; then
        need_packages mmdebstrap
        say "making a $suite base image (once; about half a minute)"
        mmdebstrap --quiet --variant=minbase --include=ca-certificates \
            --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
            --dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$tar.new.tar" >&2
        mv "$tar.new.tar" "$tar"
    fi
    dir=$(mktemp -d)
    ln "$tar" "$dir/base.tar" 2>/dev/null || cp "$tar" "$dir/base.tar"
    printf 'FROM scratch\nADD base.tar /\n' >"$dir/Dockerfile"
    build_image "$name" '' "$dir"
    rm -rf "$dir"
}

# base: loads the base image alone, for pods that need a shell, and prints its name.
base() {
    local archive image
    need_packages buildah
    with_lock "$CACHE/images.lock" make_base
    image=$(base_name)
    if ! ctr images ls -q | grep -qxF "$image"; then
        archive=$(mktemp -u "$CACHE/images/base.XXXXXX")
        bud push --quiet "$image" "docker-archive:$archive:$image"
        ctr images import "$archive" >/dev/null
        rm -f "$archive"
    fi
    echo "$image"
}

# make_image BINARY IMAGE ARCHIVE: deploy/Dockerfile around a stripped copy; symbols are most of a debug build.
make_image() {
    local binary=$1 image=$2 archive=$3 dir old
    [ ! -e "$archive" ] || return 0
    make_base
    # Of earlier builds only the archives that a cluster may still load are of use; these two are enough.
    for old in $(ls -t "$CACHE"/images/relance-*.tar 2>/dev/null | tail -n +3); do
        old=${old##*/relance-}
        bud rmi "localhost/relance:${old%.tar}" >/dev/null 2>&1 || true
        rm -f "$CACHE/images/relance-$old"
    done
    dir=$(mktemp -d)
    strip -o "$dir/relance" "$binary"
    cp "$REPO_DIR/deploy/Dockerfile" "$dir/"
    build_image "$image" "$archive" "$dir" --build-arg "BASE=$(base_name)"
    rm -rf "$dir"
}

# image BINARY: builds what is not in the cache, loads what the cluster has not, prints the image's name.
image() {
    local binary=$1 key image archive
    [ -x "$binary" ] || die "there is no binary $binary; run: cargo build"
    need_packages buildah binutils
    key=$(cat "$binary" "$REPO_DIR/deploy/Dockerfile" | sha256sum | cut -c1-16)
    image=localhost/relance:$key
    archive=$CACHE/images/relance-$key.tar
    [ -e "$archive" ] || with_lock "$CACHE/images.lock" make_image "$binary" "$image" "$archive"
    if [ "$(cat "$STATE/image" 2>/dev/null)" != "$image" ]; then
        ctr images import "$archive" >/dev/null
        echo "$image" >"$STATE/image"
    fi
    echo "$image"
}

# load_image ARCHIVE: any image in an OCI or Docker archive.
load_image() { ctr images import "$1"; }
