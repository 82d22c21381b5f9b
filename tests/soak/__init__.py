# SPDX-License-Identifier: LGPL-2.1-or-later
"""The soak: the long tests, on real hosts, resumable. `make soak`; docs/reliability.md has what the last one found.

cases        which faults there are: a step, what happens to it, and what happens beside it; pure
expect       what becomes of a guest in each case; pure
faults       one case on a host
crowd        many guests that come, change and go at random
watch        a long time in which nothing happens
look         the program inside the host that writes down what is so, under the claims' lock
consistent   what must be so of what it has seen; pure
fuzz         configuration that nobody means, by grammar, and readback of what is made of it
results      what has been run of this version, as JSON lines in the cache
report       the section of docs/reliability.md
"""
