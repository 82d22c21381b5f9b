# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is written into a picture of a host, whether it is drawn as text or as SVG."""

from __future__ import annotations

from kvmsup import cpulist, sizes
from kvmsup.plan import picture
from kvmsup.plan.picture import Cache, Cpu, Node, Picture, Tenant

ROLES = {
    picture.IDLE: "kept idle beside a vCPU",
    picture.HOUSEKEEPING: "housekeeping: the host, and QEMU's threads but for vCPUs",
    picture.EMULATOR: "threads of a guest's QEMU other than its vCPUs",
    picture.SHARED: "for shared guests",
    picture.FREE: "free",
}


def host(drawn: Picture) -> str:
    """The host in one line."""
    cores = sum(len(cache.cores) for node in drawn.nodes for cache in node.caches)
    cpus = len(picture.cpus_of(drawn))
    return f"{_count(cpus, 'CPU')}, {_count(cores, 'core')}, {_count(len(drawn.nodes), 'node')}"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def node(one: Node, drawn: Picture) -> list[str]:
    """`node 0`, then what is worth saying of it."""
    room = one.room
    parts = [f"node {one.number}"]
    packages = sorted({cache.package for cache in one.caches})
    if packages:
        parts.append(f"package {cpulist.render(packages)}")
    parts.append(f"{amount(room.memory)}, {amount(room.free)} free" if room.memory else "no memory told")
    if not one.caches:
        parts.append("no CPUs")
    pools = [pool for pool in room.hugepages if pool.total]
    parts += [f"{sizes.render(pool.page_size)} pages: {pool.free} of {pool.total} free" for pool in pools]
    if one.guests:
        parts.append(f"memory of {', '.join(one.guests)}")
    if len(drawn.nodes) > 1:
        parts.append(f"distances {' '.join(map(str, one.distances))}")
    return parts


def amount(size: int) -> str:
    """`size` bytes to three digits or so: 31.4G."""
    for unit in "TGM":
        if size >= sizes.UNITS[unit]:
            value = round(size / sizes.UNITS[unit], 1)
            return f"{value:.0f}{unit}" if value >= 100 or value == int(value) else f"{value}{unit}"
    return f"{size >> 10}K"


def cache(one: Cache, around: Node, drawn: Picture) -> str:
    """Which package or die, where that is not clear from the node."""
    packages = {other.package for other in around.caches}
    dies = {(other.package, other.die) for each in drawn.nodes for other in each.caches}
    several_dies = len(dies) > len({package for package, _ in dies})
    said = [f"package {one.package}"] if len(packages) > 1 else []
    return " ".join([*said, *([f"die {one.die}"] if several_dies else [])])


def guest(one: Tenant) -> str:
    """`web`, `web (failed)`; where a shared one may run."""
    state = one.state if one.state != "active" else ""
    if one.dedicated:
        return f"{one.name} ({state})" if state else one.name
    return f"{one.name}: shared{f', {state}' if state else ''}, on CPU {cpulist.render(one.cpus) or '(none)'}"


def cpu(one: Cpu) -> str:
    """Everything about one CPU, in a line."""
    said = {
        picture.VCPU: f"vCPU {cpulist.render(one.vcpus)} of {one.guest}",
        picture.IDLE: f"kept idle beside a vCPU of {one.guest}",
        picture.HOUSEKEEPING: "housekeeping",
        picture.FREE: "free",
    }.get(one.role, "")
    parts = [f"CPU {one.number}", *([said] if said else [])]
    parts += [f"shared guests: {', '.join(one.shared)}"] if one.shared else []
    parts += [f"threads of QEMU: {', '.join(one.emulators)}"] if one.emulators else []
    parts += ["isolated"] if one.isolated else []
    parts += ["nohz_full"] if one.nohz_full else []
    return " · ".join(parts)


def roles(drawn: Picture) -> dict[str, str]:
    """What each role that is seen means, but for what the lines of the guests say."""
    seen = {cpu.role for cpu in picture.cpus_of(drawn)}
    if any(not one.dedicated for one in drawn.guests):
        seen.discard(picture.SHARED)
    return {role: text for role, text in ROLES.items() if role in seen}


def flags(drawn: Picture) -> dict[str, str]:
    """The same for `isolated` and `nohz_full`."""
    cpus = picture.cpus_of(drawn)
    found = {"isolated": "isolated (isolcpus=)"} if any(cpu.isolated for cpu in cpus) else {}
    return found | ({"nohz_full": "nohz_full"} if any(cpu.nohz_full for cpu in cpus) else {})


def shape(drawn: Picture, of_node: str = "") -> str:
    """How the boxes are to be read."""
    caches = [other for one in drawn.nodes for other in one.caches]
    smt = any(len(core.cpus) > 1 for other in caches for core in other.cores)
    said = ["A box is a core" + (", its SMT siblings one above the other" if smt else "")]
    said += ["a frame of boxes shares its last-level cache"] if any(one.shared for one in caches) else []
    said += [f"a {of_node} is a NUMA node"] if of_node else []
    return f"{'; '.join(said)}."


def broken(text: str, width: int, indent: str) -> list[str]:
    """`text` in lines of at most `width` characters, broken behind a space or a comma so that numbers stay whole."""
    lines = []
    rest = text
    while len(rest) > width:
        at = max(rest.rfind(mark, len(indent) + 1, width) for mark in " ,") + 1 or width
        lines.append(rest[:at].rstrip())
        rest = indent + rest[at:]
    return [*lines, rest]
