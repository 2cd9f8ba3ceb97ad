"""Does with Python lancedb what standard input says: a JSON object a line, and one back for each."""

import json
import sys

import lancedb


def create(folder, view, select, where):
    db = lancedb.connect(folder)
    columns = [name if name == expression else (name, expression) for name, expression in select]
    db.create_materialized_view(view, "src", select=columns, where=where, with_no_data=True)
    return {}


def refresh(folder, view):
    return {"mode": str(lancedb.connect(folder).open_materialized_view(view).refresh().mode)}


for line in sys.stdin:
    asked = json.loads(line)
    try:
        answer = {"create": create, "refresh": refresh}[asked.pop("do")](**asked)
    except Exception as error:  # whatever it is, it is the answer
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
