#!/usr/bin/env bash
# Runs a command in an image's root file system as a pod under the "restricted" level would: a read-only root, tmpfs for
# /tmp, the home folder and /dev/shm, an unprivileged user with no capability and no way to gain one, and no network but
# its own loopback. Called as root, in name spaces of its own:
#
#   unshare --mount --uts --net --pid --fork --kill-child sandbox.sh ROOT UID GID HOME FILES COMMAND [ARGUMENT...]
#
# FILES is a folder that the command sees as /mnt.
set -euo pipefail
root=$1 uid=$2 gid=$3 home=$4 files=$5
shift 5

mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind "$files" "$root/mnt"
mount -o remount,bind,ro "$root/mnt"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
for device in null zero random urandom; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777,nosuid,nodev,size=2g tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"
mount -t tmpfs -o "mode=700,uid=$uid,gid=$gid,nosuid,nodev" tmpfs "$root$home"
# The kubelet gives a pod its own /etc/hosts, and so does this.
hostname pod
printf '127.0.0.1 localhost pod\n' > "$root/dev/shm/hosts"
touch "$root/etc/hosts"
mount --bind "$root/dev/shm/hosts" "$root/etc/hosts"
mount -o remount,bind,ro "$root"
ip link set lo up

exec chroot "$root" setpriv --reuid="$uid" --regid="$gid" --clear-groups --no-new-privs --bounding-set=-all \
  --inh-caps=-all "$@"
