"""A plain moto server, seeded as the sandbox is: `python -m tests.moto_region SSH_PORT` prints its port.

It is moto's own EC2, where nothing ever boots. Its instances are at 127.0.0.1 and that port, since the addresses that
moto makes up are those of strangers.
"""

from __future__ import annotations

import sys
from typing import Any

from cloudrun.sandbox.loading import moto_of
from cloudrun.sandbox.services import ACCOUNT_ID

REGION = "us-east-1"


def main(ssh_port: str) -> None:
    with moto_of(REGION):
        from moto.ec2.models import EC2Backend, ec2_backends
        from moto.server import ThreadedMotoServer
        from moto.ssm.models import ssm_backends

        from cloudrun.sandbox.ec2 import SSH_PORT_TAG
        from cloudrun.sandbox.seeds import plant

    run_instances = EC2Backend.run_instances

    def run_here(backend: EC2Backend, *arguments: Any, **keywords: Any) -> Any:
        reservation = run_instances(backend, *arguments, **keywords)
        for instance in reservation.instances:
            instance.nics[0].public_ip = "127.0.0.1"
            instance.add_tags({SSH_PORT_TAG: ssh_port})
        return reservation

    EC2Backend.run_instances = run_here
    plant(ec2_backends[ACCOUNT_ID][REGION], ssm_backends[ACCOUNT_ID][REGION])
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()  # until whoever started it is gone
    server.stop()


if __name__ == "__main__":
    main(sys.argv[1])
