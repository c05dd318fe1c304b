"""DICOM's message services over a network, each by itself: they take callables, and know no database and no user.

Only here is pynetdicom imported.
"""

import socket

from pynetdicom import _config
from pynetdicom.association import Association

# pynetdicom's own handlers write whole data sets, names of patients included, to its log.
_config.LOG_HANDLER_LEVEL = "none"


MOST_PDU = 1 << 20  # bytes that we take in one piece; what we ask of a peer, and hold it to


def bound(association: Association) -> None:
    """Have a peer that announces a larger piece than was agreed on be cut off, before memory is taken for it."""
    held = association.dul.socket
    if held is None:
        return
    take = held.recv

    def recv(nr_bytes: int) -> bytearray:
        if nr_bytes > MOST_PDU + 6:
            raise OSError(f"a PDU of {nr_bytes} bytes was announced; at most {MOST_PDU} were agreed on")
        return take(nr_bytes)

    held.recv = recv  # type: ignore[method-assign]


def answer_at_once(association: Association) -> None:
    """Have short messages sent at once: held back until the last one is acknowledged, each would wait 40 ms."""
    held = association.dul.socket
    if held is not None and held.socket is not None:
        held.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
