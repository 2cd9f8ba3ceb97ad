# Places for tables that pods and this machine both reach. Sourced.

# storage NAMESPACE CLAIM: a claim in that namespace, bound to the folder that is printed. Pod security
# refuses hostPath volumes in pods, not claims of a volume of that type. What root writes into the folder
# is writable by the pods' user, and the other way round.
storage() {
    local namespace=$1 claim=$2 dir=$STATE/storage/$1/$2
    if [ ! -d "$dir" ]; then
        need_packages acl
        mkdir -p "$dir.new"
        chown 65532:65532 "$dir.new"
        setfacl -m u:65532:rwx,d:u:65532:rwx,d:u:0:rwx "$dir.new"
        mv "$dir.new" "$dir"
    fi
    # A claim that was deleted leaves its volume bound to it; a new claim of that name needs a new one.
    if [ "$(kubectl get pv "$namespace-$claim" --ignore-not-found -o 'jsonpath={.status.phase}')" = Released ]; then
        kubectl delete pv "$namespace-$claim" >/dev/null
    fi
    kubectl apply --server-side --force-conflicts -f - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolume
metadata: {name: $namespace-$claim}
spec:
  capacity: {storage: 100Gi}
  accessModes: [ReadWriteMany]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  hostPath: {path: $dir}
  claimRef: {namespace: $namespace, name: $claim}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {namespace: $namespace, name: $claim}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: ""
  volumeName: $namespace-$claim
  resources: {requests: {storage: 100Gi}}
YAML
    echo "$dir"
}

# An S3 server over a folder, on the pod bridge: pods and this machine reach it by one URL.
start_s3() {
    local secret=$STATE/conf/s3.env
    mkdir -p "$STATE/s3"
    if [ ! -e "$secret" ]; then
        (umask 077 && printf 'ROOT_ACCESS_KEY=relance\nROOT_SECRET_KEY=%s\n' "$(openssl rand -hex 20)" >"$secret")
    fi
    # Its keys come from its environment, or they would stand in the process list.
    # shellcheck disable=SC2016
    start s3 bash -c 'set -a; . "$1"; shift; exec "$@"' _ "$secret" \
        "$BIN/versitygw" --port "$IP:7070" --quiet posix "$STATE/s3"
    wait_until 10 "the S3 server (see $STATE/log/s3.log)" curl -s -o /dev/null "http://$IP:7070/"
}

# s3_env: shell lines with which S3 clients find it, after bringing it up.
s3_env() {
    local ROOT_ACCESS_KEY ROOT_SECRET_KEY
    start_s3
    # shellcheck source=/dev/null
    . "$STATE/conf/s3.env"
    cat <<SH
export AWS_ENDPOINT_URL=http://$IP:7070
export AWS_ACCESS_KEY_ID=$ROOT_ACCESS_KEY
export AWS_SECRET_ACCESS_KEY=$ROOT_SECRET_KEY
export AWS_REGION=us-east-1
export AWS_ALLOW_HTTP=true
export RELANCE_TEST_S3_DIR='$STATE/s3'
SH
}
