#!/bin/sh
# enter.sh FOLDER TAR EMULATOR ADDRESS: becomes the first process of an emulated device.
#
# Runs as root of a new user namespace, first in a new process namespace, with the host's files in
# sight; everything that it mounts is seen by the device alone and gone with it. FOLDER is the
# device's, TAR its packages. EMULATOR, where it is not empty, is registered with the kernel for
# this user namespace alone. ADDRESS, where it is not empty, is what eth0 is given. The kernel's
# settings are the host's: the device sees them, and its root, who may be the host's, cannot set them.
set -eu
folder=$1 tar=$2 emulator=$3 address=$4
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

mkdir "$folder/root"
cd "$folder/root"
tar --extract --file "$tar" --exclude './dev/*' --numeric-owner
cp --recursive --no-dereference --preserve=mode "$folder/files/." .
chown -R 0:0 root
chown -R 1000:1000 home/pi
hostname "$(cat etc/hostname)"

mount --bind . .
cd "$folder/root"
mount -t proc -o nosuid,nodev,noexec proc proc
mount --bind "$folder/cpuinfo" proc/cpuinfo
mount --rbind /sys sys
mount --make-rslave sys
# The board's name, where a board with a device tree has it; and nothing of the host's clocks and
# temperatures, which would pass for the device's.
mount -t tmpfs tmpfs sys/firmware
mkdir -p sys/firmware/devicetree
cp -R "$folder/devicetree" sys/firmware/devicetree/base
for hidden in sys/class/thermal sys/devices/system/cpu/cpufreq; do
    [ ! -d "$hidden" ] || mount -t tmpfs -o ro tmpfs "$hidden"
done
mount -t tmpfs -o mode=755,nosuid tmpfs dev
for node in null zero full random urandom tty; do
    : >"dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
mount -t tmpfs -o mode=755 tmpfs run

if [ -n "$emulator" ]; then
    mount -t binfmt_misc binfmt_misc proc/sys/fs/binfmt_misc
    # The header of a 64-bit little-endian Arm program. F: opened now, so that it needs no path in
    # the device; O and C: set-user-ID programs work; P: the program's own name is kept.
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":aarch64:M::$magic:$mask:$emulator:POCF" >proc/sys/fs/binfmt_misc/register
fi
for path in acpi bus fs irq mtrr scsi sys sysrq-trigger; do
    [ ! -e "proc/$path" ] || mount --rbind "proc/$path" "proc/$path"
done
here=$(pwd -P)
mounts=$(cat proc/self/mountinfo)
while read -r _ _ _ _ escaped options _; do
    path=$(printf '%b' "$escaped")
    case $path in
    "$here/proc" | "$here/proc/cpuinfo") continue ;;
    "$here/proc/"* | "$here/sys" | "$here/sys/"*) ;;
    *) continue ;;
    esac
    # What another mount covers is no mount point any more. The other options are the host's, and
    # must not be taken away.
    [ -f "$path" ] || mountpoint -q "$path" || continue
    mount -o "remount,bind,$options,ro" "$path"
done <<END
$mounts
END
if [ -n "$address" ]; then
    ip link set lo up
    ip address add "$address" dev eth0
    ip link set eth0 up
fi

# From here on the host's files are out of sight, and what runs is the device's own.
pivot_root . mnt
umount -l /mnt
exec /usr/local/sbin/device-init
