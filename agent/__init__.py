"""What runs as root on a host: it makes backends usable here, proves them, and keeps no truth of its own.

config         agent.toml and the environment, decoded once; the state folder and its lock
private_files  files that survive power loss whole or not at all, readable by nobody else
errors         the agent's error tree
command        the one place where tools are started
worker_main    the zygote process that forks a child for every job; workers: its client
jobs           what runs in such a child: everything that touches a mount; block_jobs, device_jobs: or a device
job_io         how jobs open files and devices, and tell how far they are
credentials    the folder of credentials, and how they come in and go on
journal        SQLite: fences, answered commands, what is attached
memory         what a driver remembers of one backend
configs        a target's config as the kind's struct
tool_faults    what an exit code and words of a tool mean: one table
probes markers reach        the proof by writing, the mark of the backend, the questions before a mount
mounts mounted_folders      mount and umount; what nfs and smb have in common
portals node_records        which portal is meant; open-iscsi's records as files, for the secrets in them
udev_rule                   what lies on our disks is left to the driver
iscsiadm scsi lvm           sessions, disks, volume groups
lun_memory luns             the way to a LUN and back, and what is remembered of it
lun_content initialization  what lies on a LUN, and a VG of ours made there
volume_groups               a backend's VG: marks, what an add makes, the proof
volumes                     what the volumes of one backend are to the agent; volume_checks: what a command about one must be like
file_volumes                files: file_jobs, file_users (who has one open), qcow2, qemu_img, qemu_jobs
lv_volumes                  LVs: lv_lookup, lv_mappings (what is active here, and for whom), lv_commands
byte_copies copy_jobs       bytes from one volume to another, and their comparison
sources                     images from a folder or an address: image_jobs, download_jobs
uploads                     images that clients send, chunk by chunk
drivers/ catalog            the kinds, and which driver serves which
status         the newest observation of every backend, and how the manager learns of it
host           the verbs: attach, release, trial, probe, deliver
volume_host    the verbs about volumes; works: those that take their time; held_volumes: attachments, and fencing off
rpc            commands from the bus: fence, journal, verb, reply
reconcile      convergence on what is wanted of this host
health         a probe of every attached backend, every half minute
uplink         heartbeats and the renewal of the bus identity
join           enrolment with a one-time token
app            the wiring; __main__: the command line
"""
