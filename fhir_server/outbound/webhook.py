"""Signed notifications, as the Standard Webhooks specification has them, so that receivers find libraries.

The signature covers the id, the time and the body. The id is the same in every attempt, so that a receiver that has
heard already can tell. While a secret is being replaced, both sign. Source: github.com/standard-webhooks, spec 1.0.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime
from secrets import token_bytes

from fhir_server.outbound.remote import Remote, require_good
from imaging.errors import AppError, Category

SECRET_PREFIX = "whsec_"  # noqa: S105 -- how every such secret begins
SECRET_BYTES = 32
MOST_ANSWER_BYTES = 1 << 20


def new_secret() -> str:
    """Return a secret to share with a receiver."""
    return SECRET_PREFIX + base64.b64encode(token_bytes(SECRET_BYTES)).decode()


def signature(secret: str, identifier: str, timestamp_s: int, body: bytes) -> str:
    """Return the value of the header `webhook-signature`. Raises INVALID for a secret that is none."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise AppError(Category.INVALID, "the secret has to be base64 after whsec_", where="webhook") from None
    signed = f"{identifier}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def send(
    remote: Remote, identifier: str, body: bytes, *, secrets: Sequence[str], content_type: str, now: datetime
) -> int:
    """Send a notification, signed with each secret, and return the status, which is a good one.

    Raises BUSY and what `require_good` raises.
    """
    timestamp_s = int(now.timestamp())
    headers = {
        "Content-Type": content_type,
        "webhook-id": identifier,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(signature(each, identifier, timestamp_s, body) for each in secrets),
    }
    answer = remote.exchange("POST", "", headers=headers, body=body, most_bytes=MOST_ANSWER_BYTES)
    require_good(answer.status, remote.name)
    return answer.status
