# What runs in a cluster, with which settings, and in which order it starts. Sourced.
#
# Settings that are not the ordinary ones say why. Ports are the ordinary ones in every cluster, since each
# has its own network namespace or loopback address.

COMPONENTS=(etcd apiserver)
NODE_COMPONENTS=(controller-manager scheduler containerd kubelet proxy)

write_settings() {
    local conf=$STATE/conf user
    mkdir -p "$conf/cni"
    kubeconfig admin >"$STATE/kubeconfig"
    chmod 600 "$STATE/kubeconfig"
    [ "$MODE" = full ] || return 0

    for user in controller-manager scheduler proxy kubelet; do
        kubeconfig $user >"$conf/$user.kubeconfig"
    done

    # restrict_oom_score_adj: a process without CAP_SYS_RESOURCE may not lower a container's score, and
    # every sandbox would fail. The second plugin's path is shared by all containerds unless told.
    cat >"$conf/containerd.toml" <<TOML
version = 2
root = "$STATE/containerd/root"
state = "$STATE/containerd/state"
[grpc]
address = "$STATE/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "$STATE/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/relance-pause:1"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$conf/cni"
TOML

    # No masquerading: pods reach each other, services and this machine, and nothing else.
    cat >"$conf/cni/10-relance.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "relance", "plugins": [
  {"type": "bridge", "bridge": "$BRIDGE", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "$PODS", "rangeStart": "$PODS_FIRST", "rangeEnd": "$PODS_LAST", "gateway": "$IP"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
JSON

    echo "nameserver $IP" >"$conf/resolv.conf"
    # clusterDNS: there is no DNS server; without an address each pod would carry a warning event, and
    # with this one a look-up is refused at once.
    # Disk: the node shares the machine's, so its fill level is none of the kubelet's business.
    cat >"$conf/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $IP
healthzBindAddress: 127.0.0.1
containerRuntimeEndpoint: unix://$STATE/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $STATE/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $STATE/pki/kubelet.crt
tlsPrivateKeyFile: $STATE/pki/kubelet.key
clusterDomain: cluster.local
clusterDNS: [$IP]
resolvConf: $conf/resolv.conf
cgroupDriver: cgroupfs
cgroupRoot: /$LINK
failSwapOn: false
makeIPTablesUtilChains: false
localStorageCapacityIsolation: false
enableControllerAttachDetach: false
evictionHard: {nodefs.available: "0%", imagefs.available: "0%"}
imageGCHighThresholdPercent: 100
serializeImagePulls: false
registryPullQPS: 0
eventRecordQPS: 0
syncFrequency: 10s
shutdownGracePeriod: 0s
YAML

    # masqueradeAll: a pod that reaches a neighbour on its own bridge through a service needs the answer to
    # come back the same way. conntrack: the limits belong to the machine.
    cat >"$conf/proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: $NODE
clusterCIDR: $PODS
clientConnection: {kubeconfig: $conf/proxy.kubeconfig}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
iptables: {masqueradeAll: true, syncPeriod: 30s, minSyncPeriod: 0.1s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
}

# no-fsync: a test cluster's data need not outlive a power cut; a killed etcd loses nothing by it.
start_etcd() {
    start etcd "$BIN/etcd" --name=etcd --data-dir="$STATE/etcd" --unsafe-no-fsync --log-level=warn \
        --listen-client-urls="http://$ETCD_IP:2379" --advertise-client-urls="http://$ETCD_IP:2379" \
        --listen-peer-urls="http://$ETCD_IP:2380" --initial-advertise-peer-urls="http://$ETCD_IP:2380" \
        --initial-cluster="etcd=http://$ETCD_IP:2380"
}

start_apiserver() {
    local more=()
    if [ "$MODE" = full ]; then
        more=(--kubelet-client-certificate="$STATE/pki/admin.crt" --kubelet-client-key="$STATE/pki/admin.key"
            --kubelet-certificate-authority="$STATE/pki/ca.crt" --kubelet-preferred-address-types=InternalIP)
    else
        # The service `kubernetes` may not have a loopback address behind it.
        more=(--endpoint-reconciler-type=none)
    fi
    if [ -n "${RELANCE_AUDIT:-}" ]; then
        # Who used which verb on what; no bodies. Requests of the cluster's own parts are left out.
        cat >"$STATE/conf/audit.yaml" <<'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: None
    users: ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy"]
  - level: None
    userGroups: ["system:nodes", "system:serviceaccounts:kube-system"]
  - level: None
    nonResourceURLs: ["*"]
  - level: Metadata
YAML
        more+=(--audit-policy-file="$STATE/conf/audit.yaml" --audit-log-path="$STATE/log/audit.log")
    fi
    start apiserver "$BIN/kube-apiserver" --etcd-servers="http://$ETCD_IP:2379" \
        --bind-address="$IP" --advertise-address="$IP" --secure-port=6443 \
        --service-cluster-ip-range="$SERVICES" --allow-privileged=true \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
        --client-ca-file="$STATE/pki/ca.crt" \
        --tls-cert-file="$STATE/pki/apiserver.crt" --tls-private-key-file="$STATE/pki/apiserver.key" \
        --service-account-issuer=https://kubernetes.default.svc \
        --service-account-key-file="$STATE/pki/tokens.pub" --service-account-signing-key-file="$STATE/pki/tokens.key" \
        "${more[@]}"
}

# The client's own throttle would space the controllers' starts out by 5 seconds.
# Leader election off: there is one of each, and a restarted one need not wait for a lease to run out.
start_controller_manager() {
    start controller-manager "$BIN/kube-controller-manager" --kubeconfig="$STATE/conf/controller-manager.kubeconfig" \
        --bind-address=127.0.0.1 --leader-elect=false --use-service-account-credentials=true \
        --kube-api-qps=200 --kube-api-burst=400 \
        --root-ca-file="$STATE/pki/ca.crt" --service-account-private-key-file="$STATE/pki/tokens.key" \
        --cluster-signing-cert-file="$STATE/pki/ca.crt" --cluster-signing-key-file="$STATE/pki/ca.key"
}

start_scheduler() {
    start scheduler "$BIN/kube-scheduler" --kubeconfig="$STATE/conf/scheduler.kubeconfig" \
        --bind-address=127.0.0.1 --leader-elect=false
}

start_containerd() {
    start containerd containerd --config "$STATE/conf/containerd.toml"
}

start_kubelet() {
    start kubelet "$BIN/kubelet" --config="$STATE/conf/kubelet.yaml" --kubeconfig="$STATE/conf/kubelet.kubeconfig" \
        --root-dir="$STATE/kubelet" --hostname-override="$NODE" --node-ip="$IP"
}

start_proxy() {
    start proxy "$BIN/kube-proxy" --config="$STATE/conf/proxy.yaml"
}

start_component() { "start_${1//-/_}"; }

kubectl() { "$BIN/kubectl" --kubeconfig="$STATE/kubeconfig" "$@"; }

start_all() {
    start_etcd
    start_apiserver
    if [ "$MODE" = full ]; then
        start_containerd
        wait_until 20 "containerd (see $STATE/log/containerd.log)" ctr version
        [ -e "$STATE/pause-loaded" ] || load_pause
    fi
    wait_until 60 "the API server (see $STATE/log/apiserver.log)" kubectl get --raw /readyz
    [ "$MODE" = full ] || return 0
    start_kubelet
    start_controller_manager
    start_scheduler
    start_proxy
    wait_until 60 "the node to be Ready (see $STATE/log/kubelet.log)" node_ready
    # Pods are refused in a namespace until its service account is there.
    wait_until 30 "the controller manager (see $STATE/log/controller-manager.log)" kubectl -n default get serviceaccount default
}

node_ready() {
    kubectl get node "$NODE" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' | grep -qx True
}

ctr() { inside ctr --address "$STATE/containerd.sock" --namespace k8s.io "$@"; }
