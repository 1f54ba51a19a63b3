"""A Ray cluster on this machine: a head without processors and two nodes with one each, all on the loopback interface.

    python tests/ray_nodes.py      # prints a JSON object; then reads lines: `kill` kills the first node, `add` adds one and
                                   prints the number of its process; at the end of input, all are killed

`address`: of the cluster; `raylets`: the processes that are the nodes, whose children do the work.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Without this, Ray takes the machine's address where it is given 127.0.0.1, and listens on every interface."""

if __name__ == "__main__":
    place = tempfile.mkdtemp(prefix="ray")  # sockets lie there, whose paths must be short
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": place, **LOOPBACK}
    from ray.cluster_utils import Cluster

    one = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**one, "num_cpus": 0})
    try:
        nodes = [cluster.add_node(**one, num_cpus=1) for _ in range(2)]
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)  # noqa: T201
        for line in sys.stdin:
            if line.strip() == "kill":
                cluster.remove_node(nodes.pop(0), allow_graceful=False)
                print(flush=True)  # noqa: T201
            elif line.strip() == "add":
                nodes.append(cluster.add_node(**one, num_cpus=1))
                print(nodes[-1].all_processes["raylet"][0].process.pid, flush=True)  # noqa: T201
    finally:
        cluster.shutdown()
        shutil.rmtree(place, ignore_errors=True)
