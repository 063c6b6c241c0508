"""A region on localhost: EC2's API is moto's, every instance a real SSH host. No AWS account, no root, no Docker.

One daemon per user holds it. `client` starts, finds and stops the daemon; everything else here runs inside it:
`gate` (who may call), `services` (moto), `ec2` (what moto does otherwise than EC2), `seeds` (images and parameters),
`hypervisor` and `machine` (instances become machines), `metadata`, `spot` (interruptions),
`mirror` (packages), `environments` (kept ones).
"""

from __future__ import annotations

# The lists of what differs from AWS. `cloudrun sandbox status` prints them.
NOT_EMULATED = (
    "services other than EC2, S3, SSM and STS, and accounts, users, roles and permissions: one key may do everything",
    "other regions: a request signed for one is refused",
    "instance sizes: any type runs on this computer's processor, memory and disk; an arm64 type runs as what this is",
    "GPUs: a type with one has none, and its image no drivers",
    "a new machine's emptiness: environments built before are there already, read-only, as if baked into the image",
    "volumes, snapshots and the disks of stopped instances beyond the unit's own directory",
    "limits on a machine's processes and memory beyond this computer's",
    "spot markets: an instance is taken back on request only, by `cloudrun sandbox interrupt`",
    "throttling, prices and bills; capacity and quotas are without limit but for `cloudrun sandbox shortage`",
    "RunInstances with MaxCount above MinCount: MinCount instances are launched",
)
# Beside those: for machines that are booted from a root file system of their own, and for all others.
NOT_EMULATED_BOOTED = (
    "the contents of images: every machine is a Debian of this computer's own release, whatever was asked for",
    "networks: security groups are kept and not enforced",
)
NOT_EMULATED_UNBOOTED = (
    "the contents of images: every machine has this computer's programs, read-only",
    "networks: units share this computer's network; security groups are kept and not enforced",
    "cloud-init beyond bootcmd, runcmd, write_files, users' SSH keys and host keys",
    "systemd beyond timers at an absolute time, their services, power-off, reboot and reloading ssh",
)


def not_emulated(driver: str) -> list[str]:
    """What a region with machines of this kind leaves out, in sentences for the user."""
    return [*NOT_EMULATED, *(NOT_EMULATED_BOOTED if driver == "nspawn" else NOT_EMULATED_UNBOOTED)]
