# Certificates, one key pair for service-account tokens, and kubeconfigs. Sourced.

# certificate FILE SUBJECT [SAN]: signed by the cluster's CA, for both ends of a connection.
certificate() {
    local file=$STATE/pki/$1 subject=$2 san=${3:-}
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$file.key" -subj "$subject" 2>/dev/null |
        openssl x509 -req -CA "$STATE/pki/ca.crt" -CAkey "$STATE/pki/ca.key" -CAcreateserial -days 3650 -out "$file.crt" \
            -extfile <(printf 'keyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n%s\n' "${san:+subjectAltName=$san}") 2>/dev/null
}

make_pki() {
    local pki=$STATE/pki
    [ ! -e "$pki/done" ] || return 0
    mkdir -p "$pki"
    chmod 700 "$pki"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
        -keyout "$pki/ca.key" -out "$pki/ca.crt" -subj "/CN=relance-$NAME" 2>/dev/null
    certificate apiserver /CN=kube-apiserver \
        "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:$SERVICE_IP,IP:$IP"
    certificate admin /O=system:masters/CN=admin
    if [ "$MODE" = full ]; then
        certificate controller-manager /CN=system:kube-controller-manager
        certificate scheduler /CN=system:kube-scheduler
        certificate proxy /CN=system:kube-proxy
        certificate kubelet "/O=system:nodes/CN=system:node:$NODE" "DNS:$NODE,IP:$IP"
    fi
    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$pki/tokens.key" 2>/dev/null
    openssl pkey -in "$pki/tokens.key" -pubout -out "$pki/tokens.pub"
    touch "$pki/done"
}

# kubeconfig USER > FILE: everything inline, so that it may be copied, or put into a Secret.
kubeconfig() {
    local pki=$STATE/pki
    cat <<YAML
apiVersion: v1
kind: Config
clusters:
- name: $NAME
  cluster:
    server: https://$IP:6443
    certificate-authority-data: $(base64 -w0 "$pki/ca.crt")
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w0 "$pki/$1.crt")
    client-key-data: $(base64 -w0 "$pki/$1.key")
contexts:
- name: $NAME
  context: {cluster: $NAME, user: $1}
current-context: $NAME
YAML
}
