"""The one-shot `init` of compose.yaml: what a fleet's parts need to know each other, made once and then kept.

keys/keys.json        the fleet's keys                     manager
config/manager.toml   with the database's password in it   manager
nats/nats.conf        public keys and tokens alone         nats
database/password                                          postgres
"""

import secrets
import sys
from pathlib import Path

from manager import bus_auth
from manager.embedded.layout import toml, write_private
from manager.keys import Keys


def main(root: Path) -> None:
    """Everything exists below `root`; run again, it changes nothing that others have seen."""
    keys = Keys.load_or_create(root / "keys")
    config = bus_auth.server_config(
        keys, data_dir=Path("/data"), host="0.0.0.0", port=4222, ports_file_dir=Path("/tmp")
    )
    nats = root / "nats" / "nats.conf"
    write_private(nats, config)
    nats.chmod(0o644)  # no secret is in it, and the server may run as anybody
    password_file = root / "database" / "password"
    if not password_file.exists():
        write_private(password_file, secrets.token_hex(32))
    manager = {
        "database_url": f"postgresql://stowage:{password_file.read_text()}@postgres:5432/stowage",
        "nats_urls": ["nats://nats:4222"],
        "keys_dir": "/keys",
        "state_dir": "/state",
        "listen": "0.0.0.0:8080",
    }
    write_private(root / "config" / "manager.toml", toml(manager))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "/"))
