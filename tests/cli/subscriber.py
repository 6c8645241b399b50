#!/usr/bin/env python3
"""Prints the text of a stream that somebody else started: subscriber.py ENDPOINT STREAM

Subscribes, asks for what was published before, and leaves with the stream's end. Tokens must come
gapless, and their chain must hold from the first chunk on. Run by tests/cli/four_processes.cpp.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples" / "python"))
import stream as example  # noqa: E402


def main():
    endpoint, identity = sys.argv[1], bytes.fromhex(sys.argv[2])
    node = example.Node(endpoint)
    node.subscribe(identity)
    node.send({"type": "attach", "stream": identity, "index": 0, "live": False})
    held = None
    while held is None or not held.complete():
        message = node.receive(20_000)
        if message is None:
            example.fail("nothing came")
        if message.get("stream") != identity:
            continue
        if message["type"] == "chunk" and message["tokens"]:
            if held is None:
                if message["index"] != 0:
                    continue  # live, ahead of the replay
                held = example.Stream(b"")
                held.chain, held.index = message["chain"], len(message["tokens"])
                held.text = message["text"].encode()
            elif held.take(message) is None:
                node.send({"type": "attach", "stream": identity, "index": held.index,
                           "live": False})
        elif message["type"] == "chunk" and held is not None:
            held.take(message)
        elif message["type"] == "done":
            if held is None or message["tokens"][0] > held.index:
                node.send({"type": "attach", "stream": identity,
                           "index": held.index if held else 0, "live": False})
            if held is not None:
                held.done = message
        elif message["type"] == "error":
            example.fail(f"{message['code']}: {message['message']}")
    print(held.text.decode())


if __name__ == "__main__":
    main()
