# SPDX-License-Identifier: MIT
"""Live frames in DuckDB and Polars without a copy: they read the pages, which come home when they are done."""

from pagepool import probe
from pagepool.drivers.loopback import LoopbackQueue, UdpFlows
from pagepool.integrations.arrow import FIVE_TUPLE, METADATA, arrow_stream, to_arrow

QUERY = "select src_ip, count(*) as frames, sum(length) as bytes from packets group by 1 order by 1"
missing = [answer.reason for name in ("duckdb", "polars") if not (answer := probe.probe(name))]

with LoopbackQueue(UdpFlows(flows=3, count=50_000)) as queue:
    if missing:
        print("; ".join(missing))
    else:
        import duckdb
        import polars as pl

        packets = arrow_stream(queue, columns=METADATA + FIVE_TUPLE)  # every frame, as it comes
        for row in duckdb.execute(QUERY).fetchall():  # DuckDB polls the queue, and lets go of the pages as it goes on
            print(row)
        queue.claim()  # whoever reads owns the queue; now we do again

with LoopbackQueue(UdpFlows(count=64)) as queue:
    batch = queue.poll(64)
    assert batch is not None
    frames = to_arrow(batch, columns=METADATA + FIVE_TUPLE)  # a record batch that holds their pages
    print(frames)
    if not missing:
        print(pl.DataFrame(frames).filter(pl.col("src_port") == 1030)["payload"].bin.encode("hex").head(1).to_list())
