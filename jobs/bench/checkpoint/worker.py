"""One rank of the checkpoint bench: connects to the bench and carries out the operations it names, until it hangs up.

Owns the rank's loop and the table of operations; what they do stands in `ours.py`, `raw.py` and
`peers.py`. Started by `group.py` once per rank, or called by `ray_train.py` inside a Ray Train worker.
"""

from __future__ import annotations

import json
import socket
import sys
import traceback
from typing import Any


def serve(port: int) -> None:
    """Carry out operations until the bench closes the connection. torch.distributed must be initialised."""
    import torch.distributed as dist

    from jobs.bench.checkpoint.rank import Rank

    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rw") as stream:
        rank = Rank(json.loads(stream.readline()))
        for line in stream:
            asked = json.loads(line)
            answer: dict[str, Any] = {"rank": dist.get_rank()}
            try:
                answer |= rank.do(asked["operation"], asked["arguments"])
            except BaseException:
                answer["error"] = traceback.format_exc()
                raise
            finally:
                stream.write(json.dumps(answer) + "\n")
                stream.flush()
        rank.close()


def main() -> None:
    from tlcore.engine.process import prepare_process

    prepare_process()
    from tlcore.train.group import process_group

    with process_group():
        serve(int(sys.argv[1]))


if __name__ == "__main__":
    main()
