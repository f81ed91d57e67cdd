"""What the tests of smb have in common."""

from tests.lab.host import STATE_DIR, Host
from tests.lab.leaks import Secrets
from tests.lab.nfs import options_of
from tests.lab.storage import ADDRESS, Storage

Login = dict[str, str]

#: Seconds in which a server that is not there has to be told of: three attempts of an add, each up to 7 s under emulation.
BOUND_S = 40.0
#: What the kernel shows for each choice of the kind, with a server that speaks them all.
SHOWN = {
    "default": "vers=3.1.1",
    "2.0": "vers=2.0",
    "2.1": "vers=2.1",
    "3": "vers=3.1.1",
    "3.0": "vers=3.0",
    "3.11": "vers=3.1.1",
}


def smb(share: str, server: str = ADDRESS, **more: str) -> dict[str, str]:
    """A config."""
    return {"server": server, "share": share, **more}


def user_of(host: Host, where: str) -> str:
    """Whom the kernel shows as the mount's user; empty for a guest."""
    shown = (option.partition("=") for option in options_of(host, where))
    return next((value for name, _, value in shown if name == "username"), "")


def files_with(host: Host, text: str) -> list[str]:
    """Files of the host that hold the text, outside of /proc and /sys."""
    host.courier.put("/run/needle", text + "\n", 0o600)
    found = host.courier.run("grep -rlaFf /run/needle /var /etc /tmp /run /root /dev/shm 2>/dev/null; true").out.split()
    host.courier.run("rm /run/needle")
    return sorted(path for path in found if path != "/run/needle")


def readable_by_others(host: Host) -> list[str]:
    """Files of the agent's that somebody but root may read or write."""
    return host.courier.run(f"find {STATE_DIR} -xdev -type f -perm /077").out.split()


def login_of(user: str, storage: Storage, secrets: Secrets) -> Login:
    """The user can log in with this, and with no other password."""
    password = secrets(storage.unique("lab-Pass:") + "-of-" + user)
    storage.set_password(user, password)
    return {"username": user, "password": password}


def changed(login: Login, storage: Storage, secrets: Secrets) -> Login:
    """The user's login, after the server has been given another password for it."""
    return login_of(login["username"], storage, secrets)


def wrong(login: Login, secrets: Secrets) -> Login:
    return login | {"password": secrets(login["password"] + "-not")}
