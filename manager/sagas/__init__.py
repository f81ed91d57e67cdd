"""Sagas: changes that span the database and the hosts, and that a `kill -9` can neither halve nor lose.

engine          drives any saga: journal, lease, fence, retry, undo, takeover
steps           what the tables of steps are made of, and the few moves that several of them share
add_backend, edit_backend, delete_backend, initialize_backend   the tables
catalog         all of them; tests run every one through every failure, so a new saga is tested by standing there
"""
