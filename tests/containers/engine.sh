#!/bin/bash
# A Docker engine and a base image for tests/containers, where the machine has none.
#
#   engine.sh start    uses the engine that answers; else, as root on Debian, installs one, starts
#                      it and remembers its process id. Then sees that the base image is there:
#                      pulled, or made with debootstrap where no registry answers.
#   engine.sh stop     ends the engine that `start` started, and no other
#
# Exit code 77: there is no engine and none can be had here; standard error says why.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

BASE_IMAGE=${BASE_IMAGE:-python:3.11-slim-bookworm}
STATE=build/engine
PID_FILE=$STATE/dockerd.pid
LOG=$STATE/dockerd.log

say() { echo "engine: $*" >&2; }
cannot() {
    say "$*"
    exit 77
}
answers() { docker info >/dev/null 2>&1; }

install_packages() {
    local missing=()
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    say "installing ${missing[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
        >"$STATE/apt.log" 2>&1 || cannot "apt-get could not install ${missing[*]}; see $STATE/apt.log"
}

start_engine() {
    [ "$(id -u)" = 0 ] || cannot "no Docker engine answers, and without root none can be started"
    command -v apt-get >/dev/null || cannot "no Docker engine answers, and this is no Debian to install one on"
    install_packages docker.io iptables
    # In a session of its own: it outlives this script, and `stop` ends it.
    setsid dockerd >"$LOG" 2>&1 </dev/null &
    echo $! >"$PID_FILE"
    for _ in $(seq 60); do
        answers && say "started, process $(cat "$PID_FILE")" && return
        kill -0 "$(cat "$PID_FILE")" 2>/dev/null || break
        sleep 0.5
    done
    stop_engine
    cannot "dockerd does not come up: $(grep -E 'level=(error|fatal)|failed' "$LOG" | tail -1)"
}

# The mirror that this machine's own apt uses; both forms of its sources are read.
mirror() {
    {
        sed -nE 's/^URIs: *([^ ]+).*/\1/p' /etc/apt/sources.list.d/*.sources
        sed -nE 's/^deb (\[[^]]*\] )?([^ ]+) bookworm main.*/\2/p' /etc/apt/sources.list /etc/apt/sources.list.d/*.list
    } 2>/dev/null | grep -m1 '/debian/*$'
}

make_base_image() {
    docker image inspect "$BASE_IMAGE" >/dev/null 2>&1 && return
    timeout 120 docker pull -q "$BASE_IMAGE" >/dev/null 2>&1 && say "pulled $BASE_IMAGE" && return
    [ "$(id -u)" = 0 ] || cannot "no registry has $BASE_IMAGE, and making it needs root"
    command -v apt-get >/dev/null || cannot "no registry has $BASE_IMAGE, and this is no Debian to make it on"
    install_packages debootstrap
    local root
    root=$(mktemp -d)
    say "no registry answers: making $BASE_IMAGE with debootstrap (about a minute)"
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$root" "$(mirror)" \
        >"$STATE/debootstrap.log" 2>&1 || cannot "debootstrap failed; see $STATE/debootstrap.log"
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    tar -C "$root" --one-file-system -c . | docker import - "$BASE_IMAGE" >/dev/null
    rm -rf "$root"
}

stop_engine() {
    [ -f "$PID_FILE" ] || return 0
    local pid
    pid=$(cat "$PID_FILE")
    rm -f "$PID_FILE"
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ] || return 0
    kill "$pid"
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.2
    done
    say "process $pid does not end"
}

mkdir -p "$STATE"
case "${1:-}" in
start)
    answers || start_engine
    docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null ||
        { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && install_packages docker-compose; } ||
        cannot "neither docker compose nor docker-compose is installed"
    make_base_image
    ;;
stop) stop_engine ;;
*)
    echo "usage: engine.sh start|stop" >&2
    exit 4
    ;;
esac
