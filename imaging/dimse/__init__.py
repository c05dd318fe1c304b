"""DICOM's message services over a network, each by itself: they take callables, and know no database and no user.

Only here is pynetdicom imported.
"""

import socket

from pynetdicom import _config
from pynetdicom.association import Association

# pynetdicom's own handlers write whole data sets, names of patients included, to its log.
_config.LOG_HANDLER_LEVEL = "none"


def answer_at_once(association: Association) -> None:
    """Have short messages sent at once: held back until the last one is acknowledged, each would wait 40 ms."""
    held = association.dul.socket
    if held is not None and held.socket is not None:
        held.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
