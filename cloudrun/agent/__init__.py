"""The program that runs on a unit: standard library, `core.rundir` and `core.wire` only, Python 3.9 and up.

It travels as one archive (`cloudrun.ssh.archive`). `serve` answers a client over one SSH channel and dies with it;
`supervisor` is a process per job that does not. What they share is the run directory, so any later client finds it all.
"""
