#!/bin/sh
# Adds the one user that everything runs as, with fixed ids, and the folders it owns: a named
# volume takes owner and mode from the folder of the image that it is mounted on.
#
#   user.sh FOLDER..
set -eu

grep -q '^fedcare:' /etc/passwd || {
    echo 'fedcare:x:10001:10001:FedCare:/tmp:/usr/sbin/nologin' >>/etc/passwd
    echo 'fedcare:x:10001:' >>/etc/group
}
for folder in "$@"; do
    mkdir -p "$folder"
    chown 10001:10001 "$folder"
    chmod 0700 "$folder"
done
