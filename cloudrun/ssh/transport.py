"""A paramiko transport that says nothing about a channel after its end."""

from __future__ import annotations

from typing import Any

import paramiko
from paramiko.common import MSG_CHANNEL_CLOSE, MSG_CHANNEL_REQUEST, MSG_CHANNEL_WINDOW_ADJUST

_HEAD_BYTES = 5  # the kind of a message and the number of its channel
_OF_A_CHANNEL = range(MSG_CHANNEL_WINDOW_ADJUST, MSG_CHANNEL_REQUEST + 1)


class Transport(paramiko.Transport):
    """paramiko makes a message under its channel's lock and sends it outside. Where a command ends in between, the
    answer to the server's CLOSE overtakes it; and OpenSSH breaks off a whole connection on which data or an EOF are
    sent to a channel that is no more ("packet referred to nonexistent channel"). Such a message is dropped here.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.ended: set[int] = set()  # the server's numbers of channels whose CLOSE was sent
        super().__init__(*arguments, **options)

    def open_channel(self, *arguments: Any, **options: Any) -> paramiko.Channel:
        channel = super().open_channel(*arguments, **options)
        if not channel.closed:
            self.ended.discard(channel.remote_chanid)  # the server gives numbers again
        return channel

    def _send_message(self, data: paramiko.Message) -> None:
        """One at a time: paramiko holds a lock, as long as it is about a channel."""
        head = data.asbytes()[:_HEAD_BYTES]
        if head[0] in _OF_A_CHANNEL:
            channel = int.from_bytes(head[1:], "big")
            if channel in self.ended:
                return
            if head[0] == MSG_CHANNEL_CLOSE:
                self.ended.add(channel)
        super()._send_message(data)  # type: ignore[misc]
