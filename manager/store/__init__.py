"""All SQL of the manager, a module a subject: functions that take a connection and return structs.

pool, migrate   connections and schema
backends        backends and what each host saw of them
hosts           hosts and join tokens
operations      the saga journal
places          where one saga at a time makes its marks
volumes         volumes, images, snapshots, and what operations make in between; attachments: who may use which
leases          who may change a VG now
events          outbox and audit log
tokens          API tokens
capacity        samples of how full backends were
idempotency     answers kept for a repeated request
"""
