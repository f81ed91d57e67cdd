"""One module a kind, behind the interface in base.py; agent/catalog.py is the only place that lists them.

base        the verbs of a driver, and what it may use: Commands, Workers, a Workspace
local_file  a folder of this host
nfs         an NFS export, mounted
smb         an SMB share, mounted
iscsi_lvm   a volume group on an iSCSI LUN
"""
