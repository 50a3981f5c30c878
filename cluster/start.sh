#!/bin/sh
# sh cluster/start.sh VERB …: runs a verb of `jobs` with the Python of this node's Ray.
#
# Ray runs a job's command in a shell with the environment of `ray start`, whose PATH need not contain that Python.
# This script uses the first Python with Ray among: the environment that Ray activated for this job (pip, conda); the
# one on the command line of the raylet, which starts all workers with it; the one from which the job's supervisor has
# loaded Ray; and those on the PATH.

has_ray() {
    "$1" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("ray") is None)' >/dev/null 2>&1
}

parent_of() {
    if [ -r "/proc/$1/status" ]; then
        sed -n 's/^PPid:[[:space:]]*//p' "/proc/$1/status"
    else
        ps -o ppid= -p "$1" 2>/dev/null | tr -d ' '
    fi
}

arguments_of() {
    if [ -r "/proc/$1/cmdline" ]; then
        tr '\0' '\n' <"/proc/$1/cmdline"
    else
        ps -ww -o args= -p "$1" 2>/dev/null | sed 's/ --/\
--/g'
    fi
}

# The first word of the raylet's --python_worker_command, which is quoted if it contains blanks.
worker_python() {
    arguments_of "$1" | sed -n \
        -e 's/^--python_worker_command="\([^"]*\)".*/\1/p' -e t \
        -e 's/^--python_worker_command=\([^ ]*\).*/\1/p'
}

loaded_python() {
    [ -r "/proc/$1/maps" ] || return
    sed -n 's|^[^/]*\(/.*\)/lib/python[0-9.]*/[a-z]*-packages/ray/_raylet\.so$|\1/bin/python|p' "/proc/$1/maps" | head -n 1
    readlink "/proc/$1/exe"
}

candidates() {
    [ -n "$VIRTUAL_ENV" ] && echo "$VIRTUAL_ENV/bin/python"
    [ -n "$CONDA_PREFIX" ] && echo "$CONDA_PREFIX/bin/python"
    process=$PPID
    for _ in 1 2 3 4 5; do
        { [ -n "$process" ] && [ "$process" -gt 1 ]; } || break
        worker_python "$process"
        process=$(parent_of "$process")
    done
    loaded_python "$PPID"
    command -v python3
    command -v python
}

python=$(candidates | while IFS= read -r each; do
    if [ -x "$each" ] && has_ray "$each"; then
        echo "$each"
        break
    fi
done)
if [ -z "$python" ]; then
    echo "Error: no Python with Ray was found on this node, neither its raylet's nor one on the PATH ($PATH)." >&2
    exit 1
fi
exec "$python" -m cluster.start "$@"
