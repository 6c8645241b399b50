"""How the processes that peers run in are asked: one JSON object a line, which says `what` to
measure and with which arguments; the answer, a line too, has its `value` or an `error`."""
import json
import sys


def answer(call, to=sys.stdout):
    """Until nobody asks any more."""
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            reply = {"value": call(asked.pop("what"), asked)}
        except RuntimeError as error:
            reply = {"error": str(error)}
        print(json.dumps(reply), file=to, flush=True)
