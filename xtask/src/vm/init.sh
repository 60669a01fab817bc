#!/bin/busybox sh
# First process of the test machine: makes the host's file system its own, with
# everything written kept in memory, and runs /run.sh in it. Its output is the
# console's; what /run.sh prints goes to the second serial port.
set -e
. /settings.sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev /sbin /lower /upper /all
mount -t proc proc /proc
mount -t devtmpfs dev /dev
modprobe -a $FIRST_MODULES

mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 host /lower
mount -t tmpfs upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work all /all

# The kernel starts modprobe in this root, programs do so in that of the tests.
ln -s /bin/busybox /sbin/modprobe
[ -e /all/sbin/modprobe ] || cp /bin/busybox /all/sbin/modprobe
mkdir -p "/all/lib/modules/$(uname -r)"
for modules in /lib/modules /all/lib/modules; do
    mount --bind "/lower$MODULES" "$modules/$(uname -r)"
done

mount -t proc proc /all/proc
mount -t sysfs sys /all/sys
mount -t bpf bpf /all/sys/fs/bpf
mount -t debugfs debug /all/sys/kernel/debug
mount -t devtmpfs dev /all/dev
mkdir -p /all/dev/pts /all/dev/shm
mount -t devpts pts /all/dev/pts
mount -t tmpfs shm /all/dev/shm
mount -t tmpfs run /all/run
mkdir /all/run/tmp /all/run/netns /all/run/lock
ip link set lo up
hostname machine

cp /run.sh /all/run/run.sh
status=0
chroot /all /usr/bin/env -i PATH="$PROGRAMS:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    HOME=/run TMPDIR=/run/tmp /bin/sh /run/run.sh </dev/null >/dev/ttyS1 2>&1 || status=$?
echo "$MARK $status" >/dev/ttyS1
reboot -f
