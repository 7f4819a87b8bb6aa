#!/bin/sh
# Rendered by llmasos deploy.
set -e
here=$(cd "$(dirname "$0")" && pwd)
exec docker run --name mine \
    --detach \
    --restart unless-stopped \
    --publish 127.0.0.1:8000:8000 \
    --cpus 2 \
    --memory 1770000000 \
    --gpus 1 \
    --read-only \
    --tmpfs /tmp \
    --volume mine-home:/var/lib/llmasos \
    --volume "$here/keys:/etc/llmasos:ro" \
    --cap-drop ALL \
    --security-opt no-new-privileges \
    --stop-timeout 55 \
    llmasos:1.2.3
