#!/usr/bin/env bash
# drain.sh ADDRESS SECONDS WHY: tell the Ray cluster at ADDRESS that this machine goes away in SECONDS.
#
# Ray then starts nothing more here. Until it goes, the machine finishes what it has begun; what it does not finish runs
# elsewhere. Used when a cloud reclaims a spot machine, and before Kubernetes deletes a pod.
set -uo pipefail

if [[ $# != 3 ]]; then
    echo "usage: $0 ADDRESS SECONDS WHY   (ADDRESS of the Ray cluster, such as 10.0.0.1:6379)" >&2
    exit 2
fi

node_ids() { # the ids of this machine's Ray nodes, from their raylets' command lines
    local line
    for line in /proc/[0-9]*/cmdline; do
        tr '\0' '\n' <"$line" 2>/dev/null | sed -n '1{/\/raylet$/!q};s/^--node_id=//p'
    done | sort -u
}

code=0
for id in ${NODE_ID:-$(node_ids)}; do
    echo "$(date -u +%FT%TZ) draining node $id: $3"
    "${RAY:-ray}" drain-node --address "$1" --node-id "$id" --reason DRAIN_NODE_REASON_PREEMPTION \
        --reason-message "$3" --deadline-remaining-seconds "$2" || code=1
done
exit $code
