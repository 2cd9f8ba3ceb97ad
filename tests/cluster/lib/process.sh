# Processes and the sandbox they live in. Sourced.
#
# A cluster lives in a PID, mount, network and IPC namespace of its own, held by one idle init process.
# So two clusters share no port, no iptables rule, no mount and no socket; and when init dies, the kernel
# ends every process in it (containers and their shims too) and drops its mounts and interfaces. Only
# control groups outlive it; they are removed by hand.
#
# The machine reaches the sandbox over one veth pair whose far end is a port of the pod bridge: it is a
# host on the pod network (.254), and sees the API server (.1), each pod, and services by a route.
# Nothing in a sandbox reaches beyond this machine.
#
# With MODE=control-plane there is no sandbox: two plain processes on a loopback address.

# Field 22 of /proc/PID/stat: with the PID it names a process for ever, PIDs alone come back.
start_time() {
    local stat fields
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    read -ra fields <<<"${stat##*) }"
    [ "${fields[0]}" != Z ] || return 1
    echo "${fields[19]}"
}

# running COMPONENT: sets PID if the process that was stored under that name is still the same and alive.
running() {
    local stored
    read -r PID stored 2>/dev/null <"$STATE/pid/$1" || return 1
    [ "$(start_time "$PID")" = "$stored" ]
}

# Runs in the sandbox's place, before the namespaces' own /proc is mounted, so that /proc/self is the
# machine's view of this process. Written by the process itself: none runs unrecorded.
RECORD='read -ra s </proc/self/stat; echo "${s[0]} ${s[21]}" >"$1.new"; mv "$1.new" "$1"; shift; exec "$@"'

# start COMPONENT COMMAND...: in the background, its output in log/COMPONENT.log. Does nothing if it runs.
start() {
    local component=$1 pid_file=$STATE/pid/$1 log=$STATE/log/$1.log
    shift
    ! running "$component" || return 0
    rm -f "$pid_file"
    if [ "$MODE" = full ]; then
        running init || die "its sandbox is gone; run: $0 up --name $NAME"
        nsenter -t "$PID" -p -- bash -c '"$@" &' _ setsid bash -c "$RECORD" _ "$pid_file" \
            nsenter --mount="/proc/$PID/ns/mnt" --net="/proc/$PID/ns/net" --ipc="/proc/$PID/ns/ipc" -- "$@" \
            >>"$log" 2>&1 </dev/null
    else
        setsid bash -c "$RECORD" _ "$pid_file" "$@" >>"$log" 2>&1 </dev/null &
    fi
    wait_until 5 "start of $component (see $log)" test -s "$pid_file"
}

# stop COMPONENT [SIGNAL]: TERM and, 10 seconds later, KILL; or the given signal alone.
stop() {
    local component=$1 signal=${2:-}
    running "$component" || return 0
    kill -"${signal:-TERM}" "$PID" 2>/dev/null || true
    ended "$component" 10 && return 0
    [ -z "$signal" ] || die "$component (pid $PID) is still there 10 seconds after SIG$signal"
    kill -KILL "$PID" 2>/dev/null || true
    ended "$component" 10 || die "$component (pid $PID) does not end"
}

ended() {
    local i
    for ((i = 0; i < $2 * 50; i++)); do
        running "$1" || return 0
        sleep 0.02
    done
    return 1
}

# inside COMMAND...: in the sandbox, in the foreground.
inside() {
    running init || die "it is not running; run: $0 up --name $NAME"
    nsenter -t "$PID" -m -n -i -p -- "$@"
}

# wait_until SECONDS WHAT COMMAND...
wait_until() {
    local seconds=$1 what=$2 end
    shift 2
    end=$((SECONDS + seconds))
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || die "waited $seconds seconds in vain for $what"
        sleep 0.05
    done
}

# The sandbox's first process: own /proc, and own folders wherever something has a fixed path. Mounts made
# later inside stay inside.
INIT='
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p "$1/var-log/pods" "$1/var-log/containers" /var/lib/cni
mount --bind "$1/var-log" /var/log
mount -t tmpfs tmpfs /var/lib/cni
mount --make-rshared /
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
touch /run/ready
exec /usr/bin/catatonit -P
'

# The sandbox's file system as this machine sees it, once `running init` has set PID.
sandbox_root() { echo "/proc/$PID/root"; }

sandbox() {
    if running init; then
        [ ! -e "$(sandbox_root)/run/whole" ] || return 0
        # Whoever was setting it up was killed.
        stop init KILL
    fi
    sandbox_leftovers
    rm -f "$STATE/pid/"*
    setsid unshare --pid --mount --net --ipc --fork -- \
        bash -c "$RECORD" _ "$STATE/pid/init" bash -euc "$INIT" _ "$STATE" \
        >>"$STATE/log/init.log" 2>&1 </dev/null &
    wait_until 5 "the sandbox (see $STATE/log/init.log)" test -s "$STATE/pid/init"
    running init || die "the sandbox ended at once: $(tail -n 1 "$STATE/log/init.log")"
    wait_until 5 "the sandbox (see $STATE/log/init.log)" test -e "$(sandbox_root)/run/ready"
    # The name is taken on the machine by the kernel, whatever cache folder another cluster lives in.
    ip link add "$LINK" type veth peer name uplink netns "$PID" ||
        die "the interface $LINK is there already; end whatever made it, or run: $0 down --name $NAME"
    # A fixed address: a bridge otherwise takes that of some port, and changes it when pods come and go.
    inside ip link add "$BRIDGE" address 02:88:00:00:00:01 type bridge
    inside ip addr add "$IP/24" dev "$BRIDGE"
    inside ip link set uplink master "$BRIDGE"
    inside ip link set uplink up
    inside ip link set "$BRIDGE" up
    ip addr add "$HOST_IP/24" dev "$LINK"
    ip link set "$LINK" up
    ip route add "$SERVICES" via "$IP" dev "$LINK"
    running init
    make_cgroups
    touch "$(sandbox_root)/run/whole"
}

# kubelets delete pods that they find under their root and do not know: each cluster has a root, in each of
# version 1's hierarchies or in the one of version 2.
make_cgroups() {
    local top controller file
    for top in $(cgroup_tops); do
        if [ -e "$top/cgroup.controllers" ]; then
            # One at a time: what this machine has not got the kubelet may not need.
            for controller in $(cat "$top/cgroup.controllers"); do
                echo "+$controller" >"$top/cgroup.subtree_control" 2>/dev/null || true
            done
        fi
        mkdir -p "$top/$LINK" 2>/dev/null || continue
        for file in cpuset.cpus cpuset.mems; do
            [ ! -e "$top/$file" ] || cat "$top/$file" >"$top/$LINK/$file"
        done
    done
}

cgroup_tops() {
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        echo /sys/fs/cgroup
    else
        printf '%s\n' /sys/fs/cgroup/*
    fi
}

sandbox_leftovers() {
    ip link delete "$LINK" 2>/dev/null || true
    # The kernel may need a moment to let go of the last dead process.
    wait_until 10 "the control groups of $LINK to empty" remove_cgroups
}

remove_cgroups() {
    local top left=0
    for top in $(cgroup_tops); do
        find "$top/$LINK" -depth -type d -exec rmdir {} \; 2>/dev/null
        [ ! -d "$top/$LINK" ] || left=1
    done
    return $left
}
