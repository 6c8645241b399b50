"""The checks of streams.py on messages that must be refused, so that they cannot pass idly."""

import hashlib
import struct

import streams


class Silent:
    """A front that only listens."""

    name = "front"
    connected = True
    heard = 0.0

    def send(self, message):
        pass


def told(*changes):
    """What a stream of three tokens in two chunks complains of, with some keys changed: a change is
    the number of a message and its new keys; message 4 is the end again."""
    stream = streams.Stream(0, "front", 3)
    client = object.__new__(streams.Clients)
    client.fronts = {"front": Silent()}
    link, links = b"\0" * 16, []
    for token in (5, 6, 7):
        link = hashlib.sha256(link + struct.pack("<I", token)).digest()[:16]
        links.append(link)
    messages = [
        {"type": "accepted", "chain": b"\0" * 16, "numerics": "0"},
        {"type": "chunk", "index": 0, "tokens": [5, 6], "text": "ab", "text_offset": 0,
         "chain": links[1]},
        {"type": "chunk", "index": 2, "tokens": [7], "text": "c", "text_offset": 2,
         "chain": links[2]},
        {"type": "done", "tokens": [3], "text_bytes": [3], "finish": ["length"]},
    ]
    for number, keys in changes:
        if number == len(messages):
            messages.append(messages[-1])
        messages[number] = {**messages[number], **keys}
    for message in messages:
        client.take(client.fronts["front"], stream, {"epoch": 0, **message}, 1.0)
    return stream.wrong or ([] if stream.complete() else ["incomplete"])


def check():
    assert told() == [], told()
    for what, changes in {
        "a lost token": [(2, {"index": 3})],
        "another token": [(2, {"tokens": [8]})],
        "a doubled token": [(2, {"tokens": [7, 7]})],
        "a token that came again as another": [(2, {"index": 1, "tokens": [5, 7]})],
        "text that came again as another": [(2, {"text": "xc", "text_offset": 1})],
        "a lost byte": [(2, {"text": ""})],
        "another first link": [(0, {"chain": b"\1" * 16})],
        "a second end": [(4, {"finish": ["stop"]})],
        "an error after the end": [(4, {"type": "error", "code": "unavailable", "message": "",
                                        "retry_after_ms": 0})],
        "a token after the end": [(4, {"type": "chunk", "index": 3, "tokens": [8], "text": "",
                                       "text_offset": 3, "chain": b"\2" * 16})],
        "an end that counts fewer": [(3, {"tokens": [2]})],
        "an end too soon": [(3, {"tokens": [4]})],
        "an epoch that nobody submitted": [(2, {"epoch": 1})],
        "an error that nothing mends": [(2, {"type": "error", "code": "internal", "message": ""})],
    }.items():
        assert told(*changes), f"the checks let pass: {what}"
