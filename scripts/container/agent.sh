#!/bin/sh
# The agent's entry point in compose.yaml: joins once with the token that `enrol` left, then serves.
set -eu
state=/var/lib/stowage-agent
if [ ! -e "$state/agent.toml" ]; then
    # --allow-http: on the compose network alone; a real fleet gives its managers a certificate.
    stowage-agent join http://manager:8080 - --state-dir "$state" --name "$(hostname)" --allow-http </join/token
fi
exec stowage-agent run --state-dir "$state"
