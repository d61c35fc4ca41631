#!/usr/bin/env python3
"""Compares filtered searches of `shardex` with those of Qdrant Edge and LanceDB, on the same data in one run.

  python3 -m venv VENV && VENV/bin/pip install numpy lancedb qdrant-edge-py
  cargo build --release --features cli
  VENV/bin/python tests/peers/filtered.py --bin target/release/shardex --data rows.npy --queries queries.npy --work DIR

Each filter lets a share of the rows pass: drawn at random, or the nearest or the farthest of one row ("near" and "far", which
follow the clusters of the data). The rows of a filter carry a tag (shardex), a keyword (Qdrant Edge, indexed) or a flag (LanceDB,
with a bitmap index). Vectors are normalised and compared by dot product. One thread, one query at a time, k = 10.

shardex is asked for the target recall. Of a peer the setting with the least effort counts whose measured recall reaches the
target; "-" if none does. What a peer's call costs with a filter that nothing passes is taken off its time, in its favour. The
filter of shardex is evaluated before the measurement; the copies that it makes of what passes are measured. The median of the
rounds counts.
"""
import argparse, json, os, shutil, subprocess, time
import numpy as np

p = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
p.add_argument("--bin", required=True)
p.add_argument("--data", required=True)
p.add_argument("--queries", required=True)
p.add_argument("--work", required=True, help="directory for the indexes; it is kept")
p.add_argument("--shares", default="0.0001,0.001,0.01,0.1,0.5,0.9")
p.add_argument("--kinds", default="random,near,far")
p.add_argument("--recall", type=float, default=0.95)
p.add_argument("--queries-used", type=int, default=1000)
p.add_argument("--rounds", type=int, default=3)
a = p.parse_args()

K = 10
os.makedirs(a.work, exist_ok=True)
base = np.load(a.data).astype(np.float32)
base /= np.linalg.norm(base, axis=1, keepdims=True)
queries = np.load(a.queries).astype(np.float32)[: a.queries_used]
queries /= np.linalg.norm(queries, axis=1, keepdims=True)
n, dimension = base.shape
order = np.argsort(-(base @ base[77 % n]), kind="stable")
rng = np.random.default_rng(5)
sets = []
for share in map(float, a.shares.split(",")):
    count = max(1, round(n * share))
    for kind in a.kinds.split(","):
        rows = rng.choice(n, count, replace=False) if kind == "random" else order[:count] if kind == "near" else order[n - count:]
        sets.append((f"{share:.2%} {kind}", np.sort(rows)))
assert len(sets) < 63, "a tag has 64 bits"
scores = queries @ base.T
truth = []
for _, rows in sets:
    best = np.argsort(-scores[:, rows], axis=1, kind="stable")[:, :K]
    truth.append(rows[best])

def recall(found, of):
    wanted = truth[of]
    return sum(len(set(map(int, f)) & set(map(int, t))) for f, t in zip(found, wanted)) / wanted.size

rows_file, query_file, tag_file = (f"{a.work}/{name}.npy" for name in ("rows", "queries", "tags"))
np.save(rows_file, base)
np.save(query_file, queries)
tags = np.zeros(n, dtype=np.uint64)
for i, (_, rows) in enumerate(sets):
    tags[rows] |= np.uint64(1 << i)
np.save(tag_file, tags)

def command(*args):
    run = subprocess.run([a.bin, *args, "--json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])

index = f"{a.work}/shardex"
shutil.rmtree(index, ignore_errors=True)
t = time.time()
command("ingest", index, rows_file, "--metric", "dot", "--tags", tag_file, "--optimize")
print(f"# shardex built in {time.time() - t:.0f} s", flush=True)

def ours(i, exact):
    truth_file = f"{a.work}/truth.npy"
    wanted = truth[i]
    np.save(truth_file, np.pad(wanted, ((0, 0), (0, K - wanted.shape[1])), constant_values=-1).astype(np.int64))
    how = ["--exact"] if exact else ["--recall", str(a.recall)]
    done = command("search", index, query_file, "-k", str(K), "--quiet", "--filter", f"all({1 << i})", "--truth", truth_file, *how)
    return done["qps"], done["recall"] * K / wanted.shape[1]

def qdrant():
    import qdrant_edge as q
    path = f"{a.work}/qdrant"
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    hnsw = q.HnswIndexConfig(m=16, ef_construct=128, full_scan_threshold=1000)
    config = q.EdgeConfig(vectors=q.EdgeVectorParams(dimension, q.Distance.Dot), hnsw_config=hnsw, max_search_threads=1)
    shard = q.EdgeShard.create(path, config)
    names = [[] for _ in range(n)]
    for i, (_, rows) in enumerate(sets):
        for row in rows:
            names[row].append(f"s{i}")
    t = time.time()
    shard.update(q.UpdateOperation.create_field_index("sets", q.PayloadSchemaType.Keyword))
    for at in range(0, n, 2000):
        points = [q.Point(r, base[r].tolist(), {"sets": names[r]}) for r in range(at, min(at + 2000, n))]
        shard.update(q.UpdateOperation.upsert_points(points))
    shard.optimize()
    shard.flush()
    print(f"# qdrant-edge built in {time.time() - t:.0f} s", flush=True)
    lists = [query.tolist() for query in queries]
    def search(name, ef):
        only = q.Filter(must=[q.FieldCondition("sets", match=q.MatchValue(name))])
        params = q.SearchParams(hnsw_ef=ef)
        start = time.perf_counter()
        found = [shard.search(q.SearchRequest(q.Query.Nearest(query), K, filter=only, params=params)) for query in lists]
        return time.perf_counter() - start, [[point.id for point in one] for one in found]
    return [16, 32, 64, 128, 256, 512], search

def lance():
    os.environ.setdefault("LANCE_LOG", "error")
    import lancedb, pyarrow as pa
    path = f"{a.work}/lance"
    shutil.rmtree(path, ignore_errors=True)
    columns = {"id": pa.array(np.arange(n)), "vector": pa.FixedSizeListArray.from_arrays(pa.array(base.ravel()), dimension)}
    for i, (_, rows) in enumerate(sets):
        flags = np.zeros(n, dtype=bool)
        flags[rows] = True
        columns[f"s{i}"] = pa.array(flags)
    columns["none"] = pa.array(np.zeros(n, dtype=bool))
    t = time.time()
    table = lancedb.connect(path).create_table("rows", pa.table(columns))
    table.create_index(metric="dot", vector_column_name="vector", index_type="IVF_HNSW_SQ")
    for name in [*(f"s{i}" for i in range(len(sets))), "none"]:
        table.create_scalar_index(name, index_type="BITMAP")
    print(f"# lancedb built in {time.time() - t:.0f} s", flush=True)
    def search(name, setting):
        ef, probes, refine = setting
        start = time.perf_counter()
        found = []
        for query in queries:
            one = table.search(query).distance_type("dot").where(f"{name} = true", prefilter=True).limit(K)
            found.append(one.nprobes(probes).ef(ef).refine_factor(refine).select(["id", "_distance"]).to_arrow()["id"].to_pylist())
        return time.perf_counter() - start, found
    return [(16, 20, 1), (64, 20, 2), (128, 20, 4), (256, 50, 4), (512, 100, 8)], search

peers = {}
for name, make in (("qdrant-edge", qdrant), ("lancedb", lance)):
    settings, search = make()
    search("none", settings[0])
    overhead = min(search("none", settings[0])[0] for _ in range(3))
    print(f"# a call of {name} that finds nothing takes {overhead / len(queries) * 1e6:.0f} µs", flush=True)
    peers[name] = (settings, search, overhead)

print(f"# {n} rows, {dimension} dimensions, {len(queries)} queries, k = {K}, recall {a.recall}")
print("| rows that pass | shardex | recall | exact scan | " + " | ".join(peers) + " | ratio to the better |\n" + "|---" * (5 + len(peers)) + "|")
for i, (name, rows) in enumerate(sets):
    rounds = [(ours(i, False), ours(i, True)) for _ in range(a.rounds)]
    qps, exact = (float(np.median([r[j][0] for r in rounds])) for j in (0, 1))
    cells, best = [], 0.0
    for settings, search, overhead in peers.values():
        fastest = None
        for setting in settings:
            first, found = search(f"s{i}", setting)
            reached = recall(found, i)
            if reached >= a.recall:
                times = [first, *(search(f"s{i}", setting)[0] for _ in range(a.rounds - 1))]
                fastest = (len(queries) / max(float(np.median(times)) - overhead, 1e-9), reached)
                break
        best = max(best, fastest[0] if fastest else 0.0)
        cells.append(f"{fastest[0]:,.0f} ({fastest[1]:.3f})" if fastest else "-")
    ratio = f"{qps / best:.2f}" if best else "-"
    print(f"| {name} | {qps:,.0f} | {rounds[0][0][1]:.3f} | {exact:,.0f} | " + " | ".join(cells) + f" | {ratio} |", flush=True)
