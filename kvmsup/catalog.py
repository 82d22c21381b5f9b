# SPDX-License-Identifier: LGPL-2.1-or-later
"""The messages that an administrator looks up, by name: each has a MESSAGE_ID= of its own, which never changes.

What they mean, why they come and what to do is in units/kvmsup.catalog, which `journalctl -x` shows. This is imported
only when one of them is said.
"""

from __future__ import annotations

IDS = {
    # A start that setup refuses, and a reload that apply does.
    "no-cpus": "9250a8e0993e4672bd1dbf032dcc93ab",
    "no-pages": "61b89497b92b4eebaf347e3bc5461915",
    "in-use": "941a70f9de8143aeaaac700c5084446b",
    "file-wrong": "bcd5a4fd3b1b4700ba9fcce847cd8cc2",
    "not-loaded": "7777134989cd42bfb5d6837f003abf2c",
    "no-guest": "7035074c3e1d4c5383b189ec8ab05933",
    "start-refused": "9d81d4696a71415f8e7aea4bed67d585",
    "waits": "479eb938a6f644ce9e75b98cd032c47c",
    "cpus-cleared": "c3aee97557c04103b1c5091d04c2181f",
    # Attach.
    "start-failed": "6bc672620fa940abaadfc83f217d974f",
    "pins-wrong": "8329774dd3364e8db9f4d0df8fc119fe",
    "not-isolated": "080de0df7f294e8d8d16daf8c739b37e",
    "pages-elsewhere": "072c90185ebf4cf2b08b6388d240af27",
    # A reload.
    "reload-failed": "bee3b5f4727944678f122aab21a5f380",
    "needs-restart": "a5f2aa5a4d34465d9095e3593d2b5659",
    # The guest's own word.
    "not-ready": "d8379eaedc8d444d8de0018bd07ee349",
    # Its end.
    "shut-down": "b7a84048b2944a0aa4a49e3c6c1729f3",
    "panicked": "6d9f4197c84a449b8716502a293b5eb7",
    "out-of-memory": "df1f072d7cdb4646bbf2404e3a6be972",
    "power-cut": "bcde4eef64d74daf90e86511687e109e",
    "killed": "31c11b740f3e4267bd93c4b1a2fd8120",
    "release-failed": "a48d38cbf34349579ff1919db51faed5",
    "pages-left": "4ca23046831c4b6c8413e87b79a90430",
    # The supervisor.
    "threads-moved": "40cdd4f74297497895cb1bdaecc5a833",
    "threads-unseen": "2dd5f3191a084017bdeb2cfa1e0d3d19",
    "left-paused": "69c92a1fb678459a8791bbb01392588f",
    "balloon": "59d8fa9611ca4bf4a9d05339f4422b9b",
    "balloon-silent": "d4ba5ffb64c74ba0b1e1e35bbd9db00d",
    "ksm": "92e9886dc0754079bb6b8cb0941b902c",
    "ksm-left-alone": "38d0ed27abbf47be89894823ace69d71",
    "no-ksm": "93dd9e30d7224a61ab6b9bb6e1f976ce",
    "supervisor-failed": "ecd892ae95654d50ae8d092f2fd30e17",
}
