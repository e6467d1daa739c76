"""Which volume a command works on: the one that was named, else the user's own."""

from __future__ import annotations

from argparse import Namespace

from leases.embedded import embedded_path
from leases.volume import Volume
from paxos.errors import InvalidUse


class NoVolumeYet(InvalidUse):
    template = "no volume was named, and there is none at {path} yet"
    advice = "name one with --volume, or let the first `leasehold run NAME -- COMMAND` make your own"


def chosen_volume(options: Namespace) -> Volume:
    """Raises NoVolumeYet. Nothing is read."""
    if options.volume:
        return Volume(options.volume)
    path = embedded_path()
    if not path.exists():
        raise NoVolumeYet(path=str(path))
    return Volume(str(path))
