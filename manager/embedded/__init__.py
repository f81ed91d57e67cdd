"""`stowage up`: PostgreSQL, NATS, managers and agents on one machine, in one data folder.

children    starting a process that dies with us, and stopping it in time
identity    which unprivileged user runs the servers, found out by trying
foreign     files in the folders of that user, who may have put links there
lock        one `stowage up` a data folder, and nothing left of the one before
stopping    the signals that ask for an end
ports       which TCP ports are free
postgres    PostgreSQL from its wheel
nats        nats-server from its wheel
layout      where everything lies in the data folder
client      what `up` asks of the manager over HTTP
supervisor  watches the children, starts the dead again, keeps the logs small
up          the start, step by step, and the end
detached    the same in the background, and the end of whatever runs
errors      why a start failed, in words for a person
"""
