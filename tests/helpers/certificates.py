"""Certificates of an authority that lives as long as a test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """Makes certificates, with their keys, as files in a folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.ca = str(folder / f"{name}.pem")
        self._write(Path(self.ca), self._name, self._key, days=(-1, 365), names=[], is_authority=True)

    def issue(
        self, name: str, *, days: tuple[float, float] = (-1, 60), names: tuple[str, ...] = ("127.0.0.1",)
    ) -> tuple[str, str]:
        """Return the files of a new certificate and its key; `days` are its begin and end from now."""
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        private = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._write(cert, subject, private, days=days, names=names, is_authority=False)
        form = serialization.PrivateFormat.PKCS8
        key.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        return str(cert), str(key)

    def _write(self, file: Path, subject: x509.Name, key: ec.EllipticCurvePrivateKey, **given: object) -> None:
        begin, end = given["days"]  # type: ignore[misc]
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=begin))
            .not_valid_after(now + timedelta(days=end))
            .add_extension(x509.BasicConstraints(ca=bool(given["is_authority"]), path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if given["is_authority"]:
            usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        names = [_name(one) for one in given["names"]]  # type: ignore[attr-defined]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        content = builder.sign(self._key, hashes.SHA256())
        file.write_bytes(content.public_bytes(serialization.Encoding.PEM))


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)
