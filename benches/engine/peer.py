"""Views of Python lancedb, driven by lines of JSON; it times itself, so that its start does not count."""

import json
import sys
import time

import lancedb


def refresh(db, view, full):
    cpu, wall = time.process_time(), time.perf_counter()
    result = db.open_materialized_view(view).refresh(full=full)
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "mode": str(result.mode),
    }


def answer(db, asked):
    if asked["do"] == "create":
        select = [tuple(column) for column in asked["select"]]
        where = asked["where"]
        db.create_materialized_view(asked["view"], "src", select=select, where=where, with_no_data=True)
        return {}
    return refresh(db, asked["view"], asked["full"])


def main():
    db = lancedb.connect(sys.argv[1])
    print(json.dumps({"version": lancedb.__version__}), flush=True)
    for line in sys.stdin:
        try:
            said = answer(db, json.loads(line))
        except Exception as error:  # whatever it is, it is the answer
            said = {"error": str(error).splitlines()[0]}
        print(json.dumps(said), flush=True)


main()
