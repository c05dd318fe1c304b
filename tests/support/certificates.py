"""Certificates of an authority made for a test, as files that we and DCMTK read."""

import subprocess
from pathlib import Path

import trustme


def identity(
    folder: Path, authority: trustme.CA, *believed: trustme.CA, names: tuple[str, ...] = ("localhost", "127.0.0.1")
) -> Path:
    """Write a certificate for `names` into a folder, and return it.

    `certificate.pem`, `key.pem`, `ca.pem` of whom it believes (its own authority without `believed`), and
    `authorities`, the same as DCMTK wants it: a file named by its hash for each.
    """
    folder.mkdir(parents=True)
    made = authority.issue_cert(*names)
    (folder / "certificate.pem").write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
    made.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "authorities").mkdir()
    for number, each in enumerate(believed or (authority,)):
        each.cert_pem.write_to_path(folder / "ca.pem", append=True)
        one = folder / "authorities" / f"{number}.pem"
        each.cert_pem.write_to_path(one)
    subprocess.run(["openssl", "rehash", folder / "authorities"], check=True, capture_output=True)
    return folder
