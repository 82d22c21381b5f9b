# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest that says over vsock whatever a test wants: a small Linux whose only program takes its lines from hvc0.

It finds where to speak as systemd does, in the firmware's OEM strings. busybox has no vsock, so the program is Perl's.
"""

from __future__ import annotations

import shlex

from tests.host import guests
from tests.lab.host import Host

NAME = "talk"
CONFIGURATION = """
[machine]
type = "pc-q35-7.2"
kernel = "/vmlinuz"
initrd = "/var/lib/talk/initramfs"
cmdline = "console=ttyS0 quiet panic=-1"
[memory]
size = "256M"
[guest]
ready = true
"""

_BUILD = r"""
set -eu
output=/var/lib/talk/initramfs
release=$(basename "$(readlink -f /vmlinuz)")
release=${release#vmlinuz-}
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree/bin" "$tree/lib" "$tree/proc" "$tree/sys" "$tree/dev"
cp "$(command -v busybox)" "$tree/bin/busybox"
ln -s busybox "$tree/bin/sh"
cp --parents -L "$(command -v perl)" $(ldd "$(command -v perl)" | grep -o '/[^ ]*') "$tree"
for module in vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do
    xz -dc "/lib/modules/$release/kernel/net/vmw_vsock/$module.ko.xz" >"$tree/lib/$module.ko"
done
cat >"$tree/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc p /proc; $b mount -t sysfs s /sys; $b mount -t devtmpfs d /dev
for m in vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do $b insmod /lib/$m.ko; done
$b stty -F /dev/hvc0 raw -echo 2>/dev/null
exec /usr/bin/perl /talk </dev/hvc0 >/dev/ttyS0 2>&1
INIT
cat >"$tree/talk" <<'TALK'
# Lines of "PORT TEXT" from standard input: TEXT is said from that port, with | for the ends of lines in it.
$| = 1;
open(my $table, "<:raw", "/sys/firmware/dmi/tables/DMI") or die "DMI: $!";
local $/; my $all = <$table>; $/ = "\n";
$all =~ /io\.systemd\.credential:vmm\.notify_socket=vsock-stream:(\d+):(\d+)\0/ or die "no credential";
my ($cid, $port) = ($1, $2);
print "talk: to $cid:$port\n";
while (my $line = <STDIN>) {
    my ($from, $text) = $line =~ /^(\d+) ([^\r\n]*)/ or next;
    $text =~ tr/|/\n/;
    socket(my $s, 40, 1, 0) or die "socket: $!";
    bind($s, pack("SSLLx4", 40, 0, $from, 0xffffffff)) or print "talk: bind: $!\n";
    connect($s, pack("SSLLx4", 40, 0, $port, $cid)) or print "talk: connect: $!\n";
    syswrite($s, $text); shutdown($s, 1);
    my $end = sysread($s, my $nothing, 1);
    print "talk: said from $from: ", defined $end ? $end : $!, "\n";
}
print "talk: end of hvc0\n";
sleep;
TALK
chmod 755 "$tree/init"
mkdir -p "$(dirname "$output")"
(cd "$tree" && find . | cpio --quiet -o -H newc | gzip -1) >"$output"
chmod 644 "$output"
"""

# Writes each of its arguments to the guest's console as a line.
_SAY = """
import socket, sys, time
console = socket.socket(socket.AF_UNIX)
console.connect(sys.argv[1])
for line in sys.argv[2:]:
    console.sendall(line.encode() + b"\\n")
    time.sleep(0.3)
time.sleep(1)
"""


def install(host: Host) -> None:
    """Build the guest's initramfs on the host, from the host's own programs, and configure it."""
    host.put(_BUILD.encode(), "/root/build-talk")
    host.run("sh /root/build-talk", timeout=120)
    host.put(_SAY.encode(), "/root/say.py")
    guests.configure(host, {NAME: CONFIGURATION})


def up(host: Host) -> None:
    """Start it, and wait until it listens to its console."""
    guests.start(host, NAME)
    host.wait_for_line(f"--unit=kvm@{NAME}", "talk: to 2:", timeout=150)


def say(host: Host, port: int, text: str) -> None:
    """Have the guest say `text`, with | for the ends of lines in it, from `port`; returns when it has been heard."""
    before = _said(host)
    line = shlex.quote(f"{port} {text}")
    host.run(f"python3 /root/say.py /run/kvmsup/guests/{NAME}/console {line}")
    host.wait_for_line(f"--unit=kvm@{NAME}", "talk: said", times=before + 1)


def _said(host: Host) -> int:
    return int(host.run(f"journalctl -b -u kvm@{NAME} -o cat | grep -c 'talk: said'", check=False).stdout)
