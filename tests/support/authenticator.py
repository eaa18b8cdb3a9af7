"""An authenticator for passkeys in software (W3C Web Authentication, Level 2), which can be told to lie."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

USER_PRESENT, USER_VERIFIED, HAS_CREDENTIAL = 0x01, 0x04, 0x40


def encode(value: bytes) -> str:
    """Encode bytes as Base64 for URLs, without padding."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass
class SoftwareAuthenticator:
    """One passkey: `create` makes it, `get` signs with it; both return what a browser would submit.

    :ivar origin: the origin of the page, as the browser sees it.
    """

    origin: str = "http://localhost"
    flags: int = USER_PRESENT | USER_VERIFIED
    sign_count: int = 0
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    credential_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    user_handle: bytes = b""
    rp_id: str = ""

    def create(self, options: dict[str, Any]) -> str:
        """Respond to the options of `navigator.credentials.create()`."""
        self.user_handle, self.rp_id = decode(options["user"]["id"]), options["rp"]["id"]
        numbers = self.key.public_key().public_numbers()
        public_key = {1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}
        credential = bytes(16) + len(self.credential_id).to_bytes(2, "big") + self.credential_id
        auth_data = self._auth_data(HAS_CREDENTIAL) + credential + cbor2.dumps(public_key)
        attestation = {"fmt": "none", "attStmt": {}, "authData": auth_data}
        return self._respond(
            attestationObject=encode(cbor2.dumps(attestation)),
            clientDataJSON=encode(self._client_data("webauthn.create", options)),
            transports=["internal"],
        )

    def get(self, options: dict[str, Any]) -> str:
        """Respond to the options of `navigator.credentials.get()`."""
        self.sign_count += 1
        client_data, auth_data = self._client_data("webauthn.get", options), self._auth_data()
        signature = self.key.sign(auth_data + hashlib.sha256(client_data).digest(), ec.ECDSA(SHA256()))
        return self._respond(
            authenticatorData=encode(auth_data),
            clientDataJSON=encode(client_data),
            signature=encode(signature),
            userHandle=encode(self.user_handle),
        )

    def _auth_data(self, more_flags: int = 0) -> bytes:
        flags = (self.flags | more_flags).to_bytes(1, "big")
        return hashlib.sha256(self.rp_id.encode()).digest() + flags + self.sign_count.to_bytes(4, "big")

    def _client_data(self, kind: str, options: dict[str, Any]) -> bytes:
        return json.dumps({"type": kind, "challenge": options["challenge"], "origin": self.origin}).encode()

    def _respond(self, **response: Any) -> str:
        credential_id = encode(self.credential_id)
        return json.dumps({"id": credential_id, "rawId": credential_id, "type": "public-key", "response": response})
