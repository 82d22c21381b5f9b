# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup status GUEST: each thread with wanted and actual CPUs, and where the memory is."""

from __future__ import annotations

from kvmsup import sizes
from kvmsup.cli import show
from kvmsup.effects import configs, glance
from kvmsup.errors import HostError
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from typing import Any


def run(asked: argparse.Namespace) -> int:
    """Print what is true of the guest, once or again and again; 1 when it has failed or is not as it should be."""
    if asked.watch:
        from kvmsup.cli import watch

        return watch.run(lambda: look(asked.guest, watched=True), asked.watch, json=asked.json)
    return show.once(look(asked.guest, watched=False, noise=asked.noise), json=asked.json)


def look(guest: str, *, watched: bool, noise: float = 0.0) -> show.Look:
    """The guest now; while it is `watched`, nothing in it is asked. Its isolated CPUs are listened to for `noise`
    seconds. Raises KvmsupError.
    """
    seen = glance.guests("", [guest])[0]
    if not seen.configured and not seen.claim:
        raise configs.no_guest("", guest)
    found = at_rest(seen)
    if seen.claim or seen.pid:
        from kvmsup.cli import report

        found |= report.describe(seen, report.WATCHED if watched else report.ASKED, noise)
    elif noise:
        raise HostError(f"guest {guest} does not run: nothing is isolated for it")
    wrong = seen.active == "failed" or found["drift"] or found["state"] in _BROKEN
    return show.Look(found, _lines(found), 1 if wrong else 0)


_WHILE_RUNNING = (
    "state",
    "vnc",
    "placement",
    "cpu",
    "balloon",
    "ksm",
    "ready",
    "agent",
    "changed",
    "qemu",
    "isolation",
)
_LISTS = ("memory", "resident", "nets", "threads", "foreign")


def at_rest(seen: glance.Seen) -> dict[str, Any]:
    """The guest for programs, as far as one that is down has anything to tell."""
    return {
        "name": seen.name,
        "description": seen.description,
        "active": seen.active,
        "sub": seen.sub,
        "result": seen.result,
        "since": seen.since or None,
        "pid": seen.pid or None,
        **dict.fromkeys(_WHILE_RUNNING),
        **{key: [] for key in _LISTS},
        "drift": False,
    }


def _ksm_line(found: dict[str, Any]) -> str:
    profit = "" if found["profit"] is None else f", profit {show.amount(max(0, found['profit']))}"
    return (
        f"  ksm        {show.amount(found['merged'])} merged{profit}; merging is {'on' if found['running'] else 'off'}"
    )


# States of QEMU in which systemd sees a service that runs, and no guest does.
_BROKEN = {
    "internal-error": "KVM could not run it any further, the journal has QEMU's words; systemctl restart kvm@{name}",
    "guest-panicked": "its kernel has panicked; systemctl restart kvm@{name}",
    "io-error": "an error of a disk has stopped it, such as no space left",
}
_HELD = {"paused": "it is paused", "suspended": "it is asleep", "prelaunch": "it has not begun to run"}


def _state_lines(report: dict[str, Any]) -> list[str]:
    """Nothing of a guest that simply runs, or is down."""
    state = report["state"]
    if state in _BROKEN:
        return [f"  guest      {show.paint('failed', state)}: {_BROKEN[state].format(name=report['name'])}"]
    return [f"  guest      {_HELD[state]}"] if state in _HELD else []


def _vnc_lines(report: dict[str, Any]) -> list[str]:
    path = report["vnc"]
    return [f"  vnc        ssh -L 5900:{path} root@HOST, and then a viewer at localhost:5900"] if path else []


def _lines(report: dict[str, Any]) -> list[str]:
    pid = f", QEMU {report['pid']}" if report["pid"] else ""
    since = f" since {report['since']}" if report["since"] else ""
    lines = [
        f"{report['name']}: {report['description']}",
        f"  state      {show.paint(report['active'])} ({report['sub']}){since}{pid}",
        *_state_lines(report),
        *_vnc_lines(report),
    ]
    placement = report["placement"]
    if placement:
        scheduler = f", {placement['scheduler']}" if placement["scheduler"] else ""
        node = f", memory on node {placement['nodes']}" if placement["nodes"] else ""
        lines.append(f"  placement  {placement['kind']}{scheduler}{node}")
    if cpu := report["cpu"]:
        lacks = f", {show.paint('drift')}: it lacks {', '.join(cpu['missing'])}" if cpu["missing"] else ""
        lines.append(f"  cpu        {' '.join((cpu['model'], *cpu['features']))}{lacks}")
    if report["qemu"] and report["qemu"]["differs"]:
        lines.append(f"  qemu       {show.other_qemu(report['qemu'])}")
    lines += _changed_lines(report["changed"]) if report["changed"] else []
    if report["balloon"]:
        lines.append(f"  balloon    {show.balloon(report['balloon'])}")
    if report["ksm"]:
        lines.append(_ksm_line(report["ksm"]))
    lines += _inside_lines(report)
    for entry in report["memory"]:
        size = sizes.render(entry["page_size"])
        lines.append(
            f"  hugepages  node {entry['node']}: {entry['held']} of {entry['claimed']} pages of {size} in use;"
            f" {entry['added']} were added to the pool, now {entry['pool']} with {entry['free']} free"
        )
    lines += [_resident(one) for one in report["resident"]]
    lines += _net_lines(report["nets"])
    if report["isolation"]:
        from kvmsup.cli import isolation  # few guests are isolated

        lines += isolation.lines(report["isolation"])
    return lines + _thread_lines(report["threads"]) + _foreign_lines(report["foreign"], bool(report["isolation"]))


def _net_lines(nets: list[dict[str, Any]]) -> list[str]:
    if not nets:
        return []
    rows = []
    for one in nets:
        over = f"{one['kind']} {one['over']}" if one["over"] else one["kind"]
        rows.append([one["name"], one["mac"], one["link"], over, one["state"], *_traffic(one["traffic"])])
    lines = show.table(("NET", "MAC", "ON THE HOST", "AT", "STATE", "RECEIVED", "SENT (BYTES IN PACKETS)"), rows)
    wrong = [f"  {show.paint('drift')}: net.{one['name']}: {one['wrong']}" for one in nets if one["wrong"]]
    return ["", *(f"  {line}" for line in lines), *wrong]


def _traffic(told: dict[str, int] | None) -> tuple[str, str]:
    if told is None:
        return "", ""
    received, sent = (
        f"{show.amount(told[f'{way}_bytes'])} in {told[f'{way}_packets']}" for way in ("received", "sent")
    )
    return received, sent


def _resident(one: dict[str, Any]) -> str:
    astray = f", {show.paint('drift')}: {show.amount(one['astray'])} of them may not be there" if one["astray"] else ""
    pages = sizes.render(one["page_size"])
    return f"  memory     node {one['node']}: {show.amount(one['size'])} touched, in pages of {pages}{astray}"


def _changed_lines(changed: list[dict[str, Any]]) -> list[str]:
    """What its file says otherwise, each with what applies it."""
    from kvmsup.plan.changes import LIVE, Change

    lines: list[str] = []
    for one in changed:
        applies = "systemctl reload" if one["how"] == LIVE else "restart" + (one["why"] and f", {one['why']}")
        head = "configured differently:" if not lines else " " * len("configured differently:")
        lines.append(f"  {head} {Change(**one).told} ({applies})")
    return lines


def _inside_lines(report: dict[str, Any]) -> list[str]:
    """What the guest says of itself: in its own words, and through its agent."""
    lines = []
    if said := report["ready"]:
        status = f": {said['status']}" if said["status"] else ""
        lines.append(f"  ready      {'yes' if said['reached'] else 'not yet'}{status}")
    if found := report["agent"]:
        who = ", ".join(filter(None, (found["hostname"], found["system"])))
        state = who or "answers" if found["state"] == "answers" else found["state"]
        lines.append(f"  agent      {'file systems are frozen' if state == 'frozen' else state}")
        shown = [one for one in found["interfaces"] if one["addresses"] and one["name"] != "lo"]
        lines += [f"  address    {one['name']}: {', '.join(one['addresses'])}" for one in shown]
    return lines


def _thread_lines(threads: list[dict[str, Any]]) -> list[str]:
    if not threads:
        return []
    rows = [
        [
            one["role"],
            str(one["tid"]),
            one["name"],
            one["wanted"],
            one["actual"],
            one["scheduler"],
            str(one["last"]),
            "drift" if one["drift"] else "ok",
        ]
        for one in threads
    ]
    heads = ("ROLE", "TID", "THREAD", "WANTED", "ACTUAL", "SCHEDULER", "LAST RAN ON", "")
    return ["", *(f"  {line}" for line in show.table(heads, rows))]


def _foreign_lines(foreign: list[dict[str, Any]], named: bool) -> list[str]:
    """Who else ran on the guest's own CPUs; kernel threads that belong to these are counted, where not `named`."""
    bound = 0 if named else sum(one["bound"] for one in foreign)
    rows = [
        [str(one["cpu"]), str(one["tid"]), one["name"], "the kernel" if one["kernel"] else one["group"]]
        for one in foreign
        if not one["bound"]
    ]
    heads = ("CPU", "TID", "NOT THE GUEST'S, LAST RAN THERE", "BELONGS TO")
    lines = [f"  {line}" for line in show.table(heads, rows)] if rows else []
    if bound:
        threads = "kernel thread that belongs" if bound == 1 else "kernel threads that belong"
        lines.append(f"  {bound} {threads} to its CPUs ran there too")
    return ["", *lines] if lines else []
