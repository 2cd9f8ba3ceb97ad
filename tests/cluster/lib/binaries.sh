# Kubernetes, etcd, helm and an S3 server, built from Go modules once into the cache. go.mod and go.sum
# pin the first two, the versions below the others. Sourced by ../cluster.

KUBE_VERSION=v1.34.4
HELM=helm.sh/helm/v3/cmd/helm@v3.22.0
VERSITYGW=github.com/versity/versitygw/cmd/versitygw@v1.8.0

# The folder changes with anything that changes its content.
bin_dir() {
    local key
    key=$(cat "$CLUSTER_DIR/go.mod" "$CLUSTER_DIR/go.sum" "$CLUSTER_DIR/lib/binaries.sh" | sha256sum | cut -c1-16)
    echo "$CACHE/kube/$key"
}

# Built beside its place and renamed, so that a folder which exists is whole.
build_binaries() {
    local dir=$1 new=$1.new pkg minor ldflags
    [ ! -d "$dir" ] || return 0
    command -v go >/dev/null || die "Go is not on the PATH; install Go 1.26 or later, or set GOTOOLCHAIN=auto with an older one"
    say "building Kubernetes $KUBE_VERSION, etcd, helm and versitygw into $dir (once; about 8 minutes on 2 cores)"
    rm -rf "$new"
    mkdir -p "$new"
    minor=${KUBE_VERSION#v1.}
    minor=${minor%%.*}
    # Without these the API server calls itself v0.0.0 and clients misjudge it.
    ldflags="-s -w"
    for pkg in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        ldflags+=" -X $pkg.gitVersion=$KUBE_VERSION -X $pkg.gitMajor=1 -X $pkg.gitMinor=$minor"
    done
    (
        cd "$CLUSTER_DIR"
        export CGO_ENABLED=0
        go build -trimpath -ldflags "$ldflags" -o "$new/" tool
        mv "$new/server" "$new/etcd"
        export GOBIN=$new GOFLAGS=
        go install -trimpath -ldflags "-s -w" "$HELM"
        go install -trimpath -ldflags "-s -w" "$VERSITYGW"
    ) >&2
    mv -T "$new" "$dir"
}

binaries() {
    BIN=$(bin_dir)
    [ -d "$BIN" ] || with_lock "$CACHE/kube.lock" build_binaries "$BIN"
}
