# shellcheck shell=sh
# A login shell (KubeRay starts Ray with `bash -lc`) sets PATH anew in /etc/profile, which then reads this file.
PATH=/opt/phasetune/bin:$PATH
export PATH
