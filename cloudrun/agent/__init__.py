"""The program that runs on a unit: standard library, `core.rundir` and `core.wire` only, Python 3.9 and up.

It travels as one archive (`cloudrun.ssh.archive`). `serve` answers a client over one SSH channel and dies with it. What
does not: the unit's one `warden`, which guards its runs and carries out its owner's orders; a `supervisor` for
each job; and a `parent` that forks jobs. What they share is the run directory, so any later client finds it all.
"""
