# SPDX-License-Identifier: LGPL-2.1-or-later
"""Texts of TOML files by number: sound ones with values that try to be something else, odd ones, and broken ones."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

# What systemd, QEMU, a shell, a terminal or a log could take for something of their own.
HOSTILE = (
    *("-device", "--", "-S", "\\", "\\\\", "\\n", "\\x41", '"', "'", "$", "$HOME", "${KVMSUP_AIO}", "$$", "%n", "%%"),
    *(";", "|", "&", "`id`", "$(id)", ",", ",,", ",if=none", "file=", "=", "[Service]", "ExecStart=/bin/false", "#"),
    *("~", "*", "?", "..", "/", "//", ":", "@", "!", "+", "on", "é", "日本", "\u2028", "\x1b[2J", "\x7f", "\x85", "%"),
    *("\t", "\n", "\r\n", "\0", " ", "  ", "a", "b", "x" * 50, "{", "}", "\ufeff", "e\u0301", "<0>", "\U0001f600"),
)  # fmt: skip
PRINTABLE = tuple(one for one in HOSTILE if one.isprintable())
# Values of TOML as they are written, of every kind, and some that are none.
ODD = (
    *('""', "0", "-1", "1", "4097", "true", "false", "[]", "[[]]", "{}", "{a = 1}", "1.5", "nan", "1979-05-27"),
    *("9223372036854775808", "0x" + "f" * 99, "[1, 'a']", '["+a", "+a"]', '"0-8191"', '"1,1"', '"3-1"', '"0-3:1/2"'),
    *('"8GB"', '"1.5G"', '"9999T"', '"1G 512M"', '"fifo:100"', '"rr:1"', '"/"', '"/a/../b"', "'a\\b'", "{a.b = {}}"),
    *('"""\na"""', "'''\na'''", "=", "", "[", "1e400", "+1", "0b1", '"\\q"', '"\\ud800"', "07:32:00"),
)  # fmt: skip
BITS = ("[", "]", "[[", "]]", "{", "}", "=", ".", ",", '"', "'", '"""', "'''", "#", "\n", "\\", "\0", "a", "1", "\t")
NAMES = ("a", "b0", "c-d", "root", "io0", "x" * 12)
BAD_NAMES = ("x" * 16, "A", "-a", "a.b", "0", "mem0", "", "a\x1b[2J", "a,b", "a b", "%n", "$x")
COUNTS = (1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 8, 8, 16, 16, 288)
# systemd takes neither in the path of a credential.
NOT_IN_CREDENTIALS = " \\"

Lines = list[tuple[str, str]]


class Writer:
    """Writes one file, by what `random` gives."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.vcpus = random.choice(COUNTS)
        self.threads = 2 if self.vcpus % 2 == 0 and random.random() < 0.2 else 1
        self.dedicated = random.random() < 0.4
        self.mib = random.choice((512, 1024, 8192, 16384))
        self.names = random.sample(NAMES if random.random() < 0.95 else BAD_NAMES, 3)

    def one(self, *these: str) -> str:
        return self.random.choice(these)

    def maybe(self, chance: float) -> bool:
        return self.random.random() < chance

    def hostile(self) -> str:
        """Some text, nearly always of what can be printed."""
        alphabet = PRINTABLE if self.maybe(0.97) else HOSTILE
        return "".join(self.random.choices(alphabet, k=self.random.randrange(6)))

    def string(self, text: str) -> str:
        """`text` as TOML, in one of its ways where that can be."""
        if text.isprintable() and "'" not in text and self.maybe(0.3):
            return f"'{text}'"
        return f'"{self._escaped(text)}"' if self.maybe(0.9) else f'"""\n{self._escaped(text)}"""'

    def _escaped(self, text: str) -> str:
        return "".join(char if char.isalnum() else f"\\U{ord(char):08x}" for char in text)

    def key(self, name: str) -> str:
        """`name` as a key, in quotes or without where that can be."""
        bare = name.replace("-", "").isalnum() and name.isascii() and self.maybe(0.9)
        return name if bare else f'"{self._escaped(name)}"'

    def path(self, without: str = "") -> str:
        """A path that is sound, but for the accident of /../ in it; without any of the characters of `without`."""
        name = "".join(char for char in self.hostile() if char not in without)
        while "//" in name:
            name = name.replace("//", "/")
        return self.string(f"/{self.one('srv', 'srv', 'dev/shm', 'etc')}/a{name}b")

    def cpus(self) -> str:
        first = self.random.randrange(6)
        return f'"{first}-{first + self.random.randrange(4)}"' if self.maybe(0.5) else f'"{first}"'

    def switch(self) -> str:
        return self.one("true", "false")

    def machine(self) -> Lines:
        found = [("type", self.one('"pc-q35-7.2"', '"q35"', '"pc-i440fx-7.2"', '"pc-q35-10.0"'))]
        found += [("accel", '"tcg"')] if self.maybe(0.3) else []
        found += [("firmware", '"uefi"')] if self.maybe(0.2) else []
        if self.maybe(0.5):
            found += [("kernel", self.path()), ("cmdline", self.string(self.hostile())), ("initrd", self.path())]
        return found

    def cpu(self) -> Lines:
        found = [("vcpus", str(self.vcpus))]
        found += [("threads", "2")] if self.threads == 2 else []
        if self.maybe(0.1):
            found += [("sockets", "1"), ("dies", "1"), ("cores", str(self.vcpus // self.threads))]
        elif self.maybe(0.1):
            found += [("maxcpus", str(2 * self.vcpus))]
        found += [("model", self.one('"max"', '"qemu64"', '"EPYC-v3"'))] if self.maybe(0.4) else []
        return found + ([("features", self.one('["+pdpe1gb", "-svm"]', "[]", '["+a_b"]'))] if self.maybe(0.3) else [])

    def placement(self) -> Lines:
        found = [("cpus", '"dedicated"')] if self.dedicated else []
        found += (
            [("smt", self.one('"prefer"', '"require"', '"isolate"'))] if self.dedicated and self.maybe(0.4) else []
        )
        found += [("nodes", self.one('"0"', '"1"', '"0-1"', '"0-3"'))] if self.maybe(0.2) else []
        found += [("emulator", self.cpus())] if self.maybe(0.2) else []
        found += [("scheduler", '"fifo:10"')] if self.dedicated and self.maybe(0.2) else []
        found += [("core-scheduling", self.switch())] if self.maybe(0.1) else []
        found += [("isolate", self.switch())] if self.dedicated and self.maybe(0.3) else []
        if self.maybe(0.25):
            found += [(f"vcpu.{index}", f'"{index + 1}"') for index in range(self.vcpus)]
        return found

    def memory(self) -> Lines:
        found = [("size", f'"{self.mib}M"' if self.mib < 1024 else f'"{self.mib // 1024}G"')]
        found += [("ksm", self.switch())] if self.maybe(0.2) else []
        if self.maybe(0.2):
            return [*found, ("balloon.min", '"256M"'), ("balloon.auto", self.switch())]
        found += [("hugepages", self.one('"2M"', '"1G"'))] if self.maybe(0.2) else []
        return found + ([("lock", self.switch())] if self.maybe(0.2) else [])

    def iothread(self) -> Lines:
        return [("cpus", self.cpus())] if self.maybe(0.5) else []

    def disk(self) -> Lines:
        own = self.maybe(0.4)
        path = self.string(f"{self.one('a', 'b', 'c')}.img") if own else self.path()
        found = [("path", path if self.maybe(0.9) else self.string(f"/dev/disk/by-id/a{self.hostile()}b"))]
        found += [("format", self.one('"raw"', '"qcow2"'))]
        found += [("bus", self.one('"virtio-blk"', '"virtio-scsi"', '"cdrom"'))] if self.maybe(0.4) else []
        found += [("read-only", "true")] if self.maybe(0.2) else []
        found += [("iothread", self.string(self.names[0]))] if self.maybe(0.05) else []
        found += [("cache", self.one('"none"', '"writeback"', '"unsafe"'))] if self.maybe(0.2) else []
        found += [("aio", self.one('"io_uring"', '"native"', '"threads"'))] if self.maybe(0.2) else []
        found += [("discard", self.switch())] if self.maybe(0.1) else []
        if own and self.maybe(0.4):
            found += [("base", self.path()), ("base-format", self.one('"raw"', '"qcow2"')), ("size", '"20G"')]
        return found + ([("boot", str(self.random.randrange(1, 9)))] if self.maybe(0.2) else [])

    def net(self) -> Lines:
        over = self.string(self.one("br0", "eth0", "tap0", "a.b", "x_y-z") if self.maybe(0.97) else self.hostile())
        kind = self.one("bridge", "bridge", "macvtap", "tap", "user")
        found = [(kind, "true" if kind == "user" else over)]
        found += [("mac", self.one('"52:54:00:12:34:56"', '"02:00:00:00:00:01"'))] if self.maybe(0.1) else []
        found += [("boot", str(self.random.randrange(1, 9)))] if self.maybe(0.1) else []
        return found + ([("queues", self.one("1", "2"))] if self.maybe(0.2) else [])

    def credentials(self) -> Lines:
        names = self.random.sample(("a", "system.hostname", "b_c", "d@e+f"), 2)
        names += [self.hostile()] if self.maybe(0.1) else []
        return [(self.key(name), self.path(NOT_IN_CREDENTIALS if self.maybe(0.95) else "")) for name in names]

    def cloud_init(self) -> Lines:
        names = self.random.sample(("user-data", "meta-data", "network-config"), self.random.randrange(4))
        return [(name, self.path(NOT_IN_CREDENTIALS)) for name in names]

    def numa(self) -> list[str]:
        """All nodes, as they share the vCPUs."""
        half = self.vcpus // 2
        rows = [f"0-{half - 1}", f"{half}-{self.vcpus - 1}"] if half else ["0"]
        found = [f'[numa.{number}]\nvcpus = "{row}"' for number, row in enumerate(rows)]
        if self.maybe(0.2):
            found = [f'{one}\nmemory = "{self.mib // len(rows)}M"' for one in found]
        if half and self.maybe(0.3):
            found = [f"{one}\ndistances = {far}" for one, far in zip(found, ("[10, 20]", "[20, 10]"), strict=True)]
        return [f"{one}\nhost-node = {self.one('0', '1')}" if self.maybe(0.3) else one for one in found]

    def several(self, table: str, lines: Callable[[], Lines]) -> list[str]:
        count = self.random.choice((0, 0, 0, 1, 1, 2, 3))
        return [self.section(f"{table}.{self.key(name)}", lines()) for name in self.names[:count]]

    def section(self, name: str, lines: Lines) -> str:
        """The table, in which now and then a value is another one, or a key is not there or none that is known."""
        written = [f"[{name}]"]
        for key, good in lines:
            value = good
            if self.maybe(0.01):
                value = self.random.choice(ODD) if self.maybe(0.5) else self.string(self.hostile())
            if not self.maybe(0.005):
                written.append(f"{key if not self.maybe(0.005) else key + 'x'} = {value}")
        return "\n".join(written)

    def guest(self) -> str:
        parts = [self.section("machine", self.machine()), self.section("cpu", self.cpu())]
        parts += [self.section("placement", self.placement()), self.section("memory", self.memory())]
        parts += self.several("iothread", self.iothread) + self.several("disk", self.disk)
        parts += self.several("net", self.net)
        parts += self.numa() if self.maybe(0.2) else []
        parts += [self.section("credentials", self.credentials())] if self.maybe(0.3) else []
        parts += [self.section("cloud-init", self.cloud_init())] if self.maybe(0.2) else []
        inside = [("ready", self.one("true", '"unit:a.target"')), ("agent", "true")]
        parts += [self.section("guest", inside)] if self.maybe(0.3) else []
        parts += [self.section("console", [("serial", '"interactive"')])] if self.maybe(0.2) else []
        parts += [self.section("display", [("vnc", self.switch())])] if self.maybe(0.2) else []
        self.random.shuffle(parts)
        return "\n".join([f"description = {self.string(self.hostile())}", *parts, ""])

    def host(self) -> str:
        parts = [self.section("cpu", [("housekeeping", self.cpus())])] if self.maybe(0.6) else []
        policy = self.one('"pressure"', '"always"', '"never"')
        return "\n".join([*parts, self.section("ksm", [("policy", policy)]), ""])

    def broken(self, text: str) -> bytes:
        """`text` after a few accidents."""
        content = text.encode()
        for _ in range(self.random.randrange(1, 4)):
            start = self.random.randrange(len(content) + 1)
            end = min(len(content), start + self.random.randrange(1, 40))
            piece = content[start:end]
            content = self.random.choice(
                (
                    content[:start] + content[end:],
                    content[:end] + piece * self.random.randrange(1, 9) + content[end:],
                    content[:start] + self.one(*BITS, *ODD).encode() + content[start:],
                    content[:start] + self.random.randbytes(1) + content[start + 1 :],
                    content[:start],
                    piece + content,
                )
            )
        return content


def guest(random: Random) -> bytes:
    """A guest's file: two in three as `Writer` means it, one in three after accidents, a few of TOML's signs alone."""
    drawn = random.random()
    if drawn < 0.03:
        return "".join(random.choices(BITS, k=random.randrange(60))).encode()
    writer = Writer(random)
    text = writer.guest()
    return writer.broken(text) if drawn < 0.33 else text.encode()


def host(random: Random) -> bytes:
    """The host's file, likewise."""
    writer = Writer(random)
    return writer.broken(writer.host()) if random.random() < 0.3 else writer.host().encode()
