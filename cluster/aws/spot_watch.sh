#!/usr/bin/env bash
# spot_watch.sh ADDRESS: on a spot instance, wait for AWS's notice that it reclaims the machine, then drain it.
#
# The notice comes two minutes ahead. cluster.yaml starts this beside `ray start` on every spot worker.
set -uo pipefail

address=${1:?usage: spot_watch.sh ADDRESS of the Ray cluster}
metadata=${IMDS:-http://169.254.169.254}/latest
drain=$(dirname "$0")/../drain.sh

ask() { # PATH: the instance metadata there; fails where there is none
    local token
    token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/api/token") || return 1
    curl -sf -m 2 -H "X-aws-ec2-metadata-token: $token" "$metadata/meta-data/$1"
}

seconds_left() { # NOTICE: seconds until the time it names, or 120
    local at
    at=$(sed -n 's/.*"time" *: *"\([^"]*\)".*/\1/p' <<<"$1")
    at=$(date -u -d "${at:-now + 120 seconds}" +%s) || at=$(($(date +%s) + 120))
    at=$((at - $(date +%s)))
    echo $((at > 1 ? at : 1))
}

until notice=$(ask spot/instance-action); do
    sleep "${POLL_S:-5}"
done
exec bash "$drain" "$address" "$(seconds_left "$notice")" "AWS is reclaiming this spot instance: $notice"
