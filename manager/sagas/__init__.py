"""Sagas: changes that span the database and the hosts, and that a `kill -9` can neither halve nor lose.

engine          drives any saga: journal, lease, fence, retry, undo, takeover
steps           what the tables of steps are made of, and the few moves that several of them share
moves           commands to many hosts; volume_moves: commands to the one host that works on a volume
add_backend, edit_backend, delete_backend, initialize_backend, evacuate_backend            the tables
create_volume, delete_volume, resize_volume, attach_volume, detach_volume, replace_bytes   those of volumes
catalog         all of them; tests run every one through every failure, so a new saga is tested by standing there
"""
