"""A security key in software, made by hand from the standard.

Sources: W3C Web Authentication Level 2, 6.1 (authenticator data), 5.8.1 (client data), 8.7 (attestation `none`);
RFC 9053 7.1.1 and RFC 8949 (the key in COSE and CBOR).
"""

import base64
import hashlib
import json
import secrets
import struct
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

PRESENT, VERIFIED, ATTESTED = 0x01, 0x04, 0x40


@dataclass
class Authenticator:
    """Makes one credential and signs with it, at the page of an origin. What it says can be changed for bad ones."""

    origin: str
    rp_id: str
    counts: bool = True
    counter: int = 0
    flags: int = PRESENT | VERIFIED
    algorithm: bytes = b"\x26"  # -7, ES256, in CBOR
    id: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    handle: bytes = b""

    def create(self, options: dict[str, Any], **client_data: Any) -> str:
        """Answer `navigator.credentials.create`."""
        self.handle = _bytes(options["user"]["id"])
        credential = bytes(16) + struct.pack(">H", len(self.id)) + self.id + self._cose()
        data = self._data(self.flags | ATTESTED) + credential
        attestation = b"\xa3\x63fmt\x64none\x67attStmt\xa0\x68authData\x59" + struct.pack(">H", len(data)) + data
        return self._answer(
            clientDataJSON=self._client("webauthn.create", options, client_data), attestationObject=attestation
        )

    def get(self, options: dict[str, Any], **client_data: Any) -> str:
        """Answer `navigator.credentials.get`."""
        data, client = self._data(self.flags), self._client("webauthn.get", options, client_data)
        signature = self.key.sign(data + hashlib.sha256(client).digest(), ec.ECDSA(SHA256()))
        return self._answer(clientDataJSON=client, authenticatorData=data, signature=signature, userHandle=self.handle)

    def _data(self, flags: int) -> bytes:
        self.counter += self.counts
        return hashlib.sha256(self.rp_id.encode()).digest() + struct.pack(">BI", flags, self.counter)

    def _client(self, kind: str, options: dict[str, Any], changes: dict[str, Any]) -> bytes:
        said = {"type": kind, "challenge": options["challenge"], "origin": self.origin, "crossOrigin": False}
        return json.dumps({**said, **changes}).encode()

    def _cose(self) -> bytes:
        point = self.key.public_key().public_numbers()
        x, y = (each.to_bytes(32, "big") for each in (point.x, point.y))
        return b"\xa5\x01\x02\x03" + self.algorithm + b"\x20\x01\x21\x58\x20" + x + b"\x22\x58\x20" + y

    def _answer(self, **response: bytes) -> str:
        said = {name: text(value) for name, value in response.items()}
        own = text(self.id)
        return json.dumps({"id": own, "rawId": own, "type": "public-key", "response": said})


def text(value: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _bytes(value: str) -> bytes:
    return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
