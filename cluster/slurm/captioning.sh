#!/usr/bin/env bash
# captioning.sh VERB …: one `python -m jobs VERB …` on a Ray that lives for as long as one Slurm job.
#
#   NODES=4 GPUS=2 cluster/slurm/captioning.sh caption /archive/photos -o /archive/captions
#
# On a login node it submits itself to sbatch: NODES machines (2), each with GPUS GPUs (0), CPUS cores (8) and MEMORY
# (the partition's default), for TIME (08:00:00). SBATCH_PARTITION, SBATCH_ACCOUNT and the like are sbatch's own. Five
# minutes before the time is up the run ends cleanly and the job is requeued, to resume where it stopped; REQUEUE=0 turns
# that off. The checkout, with its .venv, must be on a file system that every machine shares.
#
#SBATCH --job-name=captioning
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
set -uo pipefail

say() { echo "captioning.sh: $*" >&2; }

if [[ $# == 0 || $1 == --help ]]; then
    awk 'NR > 1 && /^#SBATCH/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "${BASH_SOURCE[0]}"
    exit 2
fi

if [[ -z ${SLURM_JOB_ID:-} ]]; then
    CAPTIONING_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd) || exit 2
    export CAPTIONING_HOME
    options=(--nodes="${NODES:-2}" --cpus-per-task="${CPUS:-8}" --time="${TIME:-08:00:00}")
    [[ ${GPUS:-0} == 0 ]] || options+=(--gpus-per-node="$GPUS")
    [[ -z ${MEMORY:-} ]] || options+=(--mem="$MEMORY")
    exec sbatch "${options[@]}" "${BASH_SOURCE[0]}" "$@"
fi

# From here on this runs on the first machine of the job.
home=${CAPTIONING_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
python=${PYTHON:-$home/.venv/bin/python}
ray=${RAY:-$(dirname "$python")/ray}
if [[ ! -d $home/jobs || ! -x $python || ! -x $ray ]]; then
    say "no checkout with an environment at $home (looked for $home/jobs, $python and $ray)."
    say "Run \`make setup\` there, or set CAPTIONING_HOME, PYTHON and RAY."
    exit 2
fi
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
if [[ ${#hosts[@]} == 0 ]]; then
    say "scontrol lists no machines for SLURM_JOB_NODELIST=$SLURM_JOB_NODELIST."
    exit 1
fi
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}

# The address at which the other machines reach this one: its host name's, or its first one.
head_ip=${HEAD_IP:-$(getent ahostsv4 "${hosts[0]}" | awk '$1 !~ /^127\./ { print $1; exit }')}
head_ip=${head_ip:-$(hostname -I | awk '{ print $1 }')}
# Ports and a folder derived from the job's id, since other jobs may run on the same machines.
port=$((20000 + SLURM_JOB_ID % 3000 * 4))
address=$head_ip:$port
folder=${RAY_FOLDER:-/tmp/ray-$SLURM_JOB_ID}
ray_log=${SLURM_SUBMIT_DIR:-$PWD}/captioning-$SLURM_JOB_ID-ray.log

# Others have accounts on these machines, so Ray requires the token of ~/.ray/auth_token.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$("$ray" get-auth-token --generate 2>/dev/null)}
export RAY_AUTH_TOKEN
export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH}
export RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
# Ray gets Slurm's allocation, not the whole machine. It counts GPUs itself, since Slurm hides the others.
limits=(--num-cpus="$cpus" --temp-dir="$folder" --dashboard-agent-listen-port=0)
if [[ ${SLURM_MEM_PER_NODE:-0} -gt 0 ]]; then
    limits+=(--memory="$((SLURM_MEM_PER_NODE * 1024 * 1024 * 6 / 10))"
        --object-store-memory="$((SLURM_MEM_PER_NODE * 1024 * 1024 * 2 / 10))")
fi

steps=()
start_node() { # HOST OPTION…: run a Ray node there as an srun step of its own, so that losing it ends no other
    local host=$1
    shift
    srun --nodes=1 --ntasks=1 --nodelist="$host" --cpus-per-task="$cpus" --overlap --kill-on-bad-exit=0 \
        "$ray" start --block "${limits[@]}" "$@" >>"$ray_log" 2>&1 &
    steps+=($!)
}

driver=
signalled=
near_the_end=
finish() { # stop Ray on all machines, and remove its files
    local code=$?
    trap '' USR1 TERM INT
    [[ -z $driver ]] || kill "$driver" 2>/dev/null
    [[ ${#steps[@]} == 0 ]] || kill "${steps[@]}" 2>/dev/null
    # Ray allows itself 30 s to drain a node, and uses all of them for the head.
    for _ in {1..100}; do
        [[ -n $(jobs -pr) ]] || break
        sleep 0.5
    done
    jobs -pr | xargs -r kill -KILL 2>/dev/null
    if [[ $code == 0 || $code == 130 ]]; then
        timeout 60 srun --nodes="${#hosts[@]}" --ntasks="${#hosts[@]}" --overlap rm -rf "$folder" 2>/dev/null
    else
        say "Ray's own logs: $ray_log, and $folder/session_latest/logs on each machine."
    fi
    exit "$code"
}
stop() { # WHY: end the run cleanly, like Ctrl-C
    say "$1: stopping the run; what is finished is kept."
    [[ -n $driver ]] || exit 130
    signalled=1
    kill -TERM "$driver" 2>/dev/null
}
trap finish EXIT
trap 'near_the_end=1; stop "the time limit is near"' USR1
trap 'stop "Slurm is ending this job"' TERM
trap 'stop "interrupted"' INT

say "job $SLURM_JOB_ID on ${#hosts[@]} machine(s), $cpus cores each; Ray at $address, its dashboard at http://$head_ip:$((port + 1))"
start_node "${hosts[0]}" --head --node-ip-address="$head_ip" --port="$port" --dashboard-host=0.0.0.0 \
    --dashboard-port="$((port + 1))" --ray-client-server-port="$((port + 2))"
for _ in {1..60}; do
    "$ray" health-check --address "$address" >/dev/null 2>&1 && up=1 && break
    kill -0 "${steps[0]}" 2>/dev/null || break
    sleep 2
done
if [[ -z ${up:-} ]]; then
    say "Ray did not start on ${hosts[0]}. See $ray_log."
    exit 1
fi
for host in "${hosts[@]:1}"; do
    start_node "$host" --address="$address"
done

# A run is planned for the machines present at its start. Later ones are still used, and missing ones not waited for.
"$python" - "$address" "${#hosts[@]}" "${WAIT_S:-180}" <<'PYTHON'
import sys, time
import ray

address, wanted, patience = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ray.init(address=address, logging_level="error", log_to_driver=False)
until = time.monotonic() + patience
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted and time.monotonic() < until:
    time.sleep(1)
print(f"captioning.sh: {there} of {wanted} machines have joined", file=sys.stderr)
PYTHON

RAY_ADDRESS=$address "$python" -m jobs "$@" &
driver=$!
code=1
while :; do
    signalled=
    wait "$driver"
    got=$?
    # A signal ends a wait too, so wait again. 127: the driver had been waited for already.
    [[ $got == 127 ]] || code=$got
    [[ -n $signalled ]] || break
done
driver=

if [[ -n $near_the_end && $code == 130 && ${REQUEUE:-1} != 0 ]]; then
    if [[ ${SLURM_RESTART_COUNT:-0} -ge ${MAX_RESTARTS:-100} ]]; then
        say "not requeued: it has been requeued ${SLURM_RESTART_COUNT} times already (MAX_RESTARTS)."
    elif scontrol requeue "$SLURM_JOB_ID"; then
        say "requeued; it will resume from here."
    else
        say "could not be requeued. Run the same command again to resume."
    fi
fi
exit "$code"
