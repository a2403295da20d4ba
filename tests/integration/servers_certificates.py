"""
Certificates for one test run: a root, and leaves with every fault a server's can have.

Made by the ``openssl`` program; elliptic curves, so that this takes no time.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_SECTIONS = """
[req]
prompt = no
distinguished_name = name
[name]
CN = {name}
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {host}
"""


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, as paths for settings."""

    cert: str
    key: str


class Authority:
    """A root that signs leaves into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / name
        self._folder.mkdir()
        self.own = self._make("root", "root", "IP:127.0.0.1")

    def issue(self, name: str, *, host: str = "IP:127.0.0.1", days: int = 2) -> Pair:
        """Return a leaf for this host; of a past day when ``days`` is negative."""
        signer = ("-CA", self.own.cert, "-CAkey", self.own.key)
        return self._make(name, "leaf", host, *signer, days=days)

    def _make(self, name: str, section: str, host: str, *signer: str, days: int = 2) -> Pair:
        settings = self._folder / f"{name}.conf"
        settings.write_text(_SECTIONS.format(name=name, host=host))
        made = Pair(str(self._folder / f"{name}.crt"), str(self._folder / f"{name}.key"))
        request = self._folder / f"{name}.csr"
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        files = ("-config", str(settings), "-keyout", made.key, "-out", str(request))
        self._run("req", "-new", *curve, *files)
        how = signer or ("-signkey", made.key)
        files = ("-in", str(request), "-out", made.cert, "-extfile", str(settings))
        self._run("x509", "-req", *files, "-extensions", section, "-days", str(days), *how)
        return made

    def _run(self, *words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=self._folder)
