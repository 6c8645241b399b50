#!/usr/bin/env python3
"""Streams one completion from a Sluice node, with nothing but pyzmq and msgpack.

    pip install pyzmq msgpack
    stream.py tcp://127.0.0.1:5555 "The capital of France is" [--max-tokens 32] [--subscribe]
              [--server-key node.key --key me.key_secret]

Written from docs/protocol.md alone. Prints the text as it comes, checks that no token is lost,
repeated or reordered (each chunk carries a hash chain over all tokens before), and prints the
receipt. With --subscribe, chunks are taken from the publisher instead of the connection that
submitted; what was published before the subscription held is asked for with `attach`.
"""

import argparse
import hashlib
import os
import struct
import sys

import msgpack
import zmq
import zmq.auth


def fail(text):
    sys.exit(f"stream.py: {text}")


class Stream:
    """Puts one stream together again, whatever order its chunks come in."""

    def __init__(self, chain):
        self.chain = chain  # the link before token `index`
        self.index = 0  # tokens held
        self.text = b""
        self.done = None

    def take(self, chunk):
        """Takes a chunk. Returns the text that is new, or None if something before it misses."""
        held = self.index - chunk["index"]
        if held < 0 or chunk["text_offset"] > len(self.text):
            return None
        tokens = chunk["tokens"]
        if len(tokens) < held:
            return ""  # all of it is held already
        for token in tokens[held:]:
            self.chain = hashlib.sha256(self.chain + struct.pack("<I", token)).digest()[:16]
        if self.chain != chunk["chain"]:
            fail(f"the chain is broken at token {self.index}")
        self.index += len(tokens) - held
        new = chunk["text"].encode()[len(self.text) - chunk["text_offset"]:]
        self.text += new
        return new.decode()

    def complete(self):
        return (self.done is not None and self.index == self.done["tokens"][0]
                and len(self.text) == self.done["text_bytes"][0])


class Node:
    """A connection to a node's two sockets."""

    def __init__(self, address, server_key=None, key=None, timeout_ms=10_000):
        self.context = zmq.Context()
        self.address = address
        self.requests = self.context.socket(zmq.DEALER)
        self.requests.linger = 1000
        self.requests.rcvhwm = 0  # docs/protocol.md says why
        self.subscriptions = self.context.socket(zmq.SUB)
        self.subscriptions.rcvhwm = 0
        if server_key:  # the node speaks CURVE: files of `sluice keygen`
            for socket in (self.requests, self.subscriptions):
                socket.curve_serverkey = zmq.auth.load_certificate(server_key)[0]
                socket.curve_publickey, socket.curve_secretkey = zmq.auth.load_certificate(key)
        self.requests.connect(address)
        self.poller = zmq.Poller()
        self.poller.register(self.requests, zmq.POLLIN)
        self.poller.register(self.subscriptions, zmq.POLLIN)
        self.send({"type": "hello", "version_min": 1, "version_max": 1, "client": "stream.py"})
        self.welcome = self.receive(timeout_ms)
        if self.welcome is None:
            self.requests.linger = 0
            fail(f"no answer from {address}: is a node running there, does it want keys, or not "
                 "these?")
        if self.welcome["type"] == "error":
            fail(f"{self.welcome['code']}: {self.welcome['message']}")

    def send(self, message):
        self.requests.send(msgpack.packb(message))

    def receive(self, timeout_ms):
        ready = dict(self.poller.poll(timeout_ms))
        for socket in (self.requests, self.subscriptions):
            if socket in ready:
                return msgpack.unpackb(socket.recv_multipart()[-1])  # before it: the topic, if any
        return None

    def subscribe(self, stream):
        publish = self.welcome["publish"]
        # A node that listens everywhere names no host: it is where we reached it.
        for anywhere in ("tcp://0.0.0.0:", "tcp://*:", "tcp://[::]:"):
            if publish.startswith(anywhere):
                publish = self.address.rsplit(":", 1)[0] + ":" + publish[len(anywhere):]
        self.subscriptions.connect(publish)
        self.subscriptions.subscribe(stream)


def run(arguments):
    node = Node(arguments.endpoint, arguments.server_key, arguments.key)
    identity, owner = os.urandom(16), os.urandom(16)
    submit = {
        "type": "submit", "stream": identity, "owner": owner, "prompt": arguments.prompt,
        "sampling": {"temperature": arguments.temperature, "seed": arguments.seed},
        "max_tokens": arguments.max_tokens,
    }
    reader = node
    if arguments.subscribe:
        # Another client, which knows the stream's id only.
        reader = Node(arguments.endpoint, arguments.server_key, arguments.key)
        reader.subscribe(identity)
    node.send(submit)
    stream = None
    acknowledged = 0
    silence = 0
    while True:
        message = (node if stream is None else reader).receive(1000)
        if message is None:
            silence += 1
            if silence >= arguments.timeout:
                fail(f"nothing came for {silence} s")
            if arguments.subscribe and stream is not None:  # the end may have been missed
                reader.send({"type": "attach", "stream": identity, "index": stream.index,
                             "live": False})
            continue
        silence = 0
        if message.get("stream") not in (identity, None):
            continue
        if message["type"] == "error":
            fail(f"{message['code']}: {message['message']}")
        if message["type"] == "accepted":
            stream = Stream(message["chain"])
            if arguments.subscribe:
                reader.send({"type": "attach", "stream": identity, "index": 0, "live": False})
        elif message["type"] == "chunk" and stream is not None:
            text = stream.take(message)
            if text is None:  # a hole: everything from the first missing token on, please
                reader.send({"type": "attach", "stream": identity, "index": stream.index,
                             "live": not arguments.subscribe})
                continue
            sys.stdout.write(text)
            sys.stdout.flush()
            if stream.index - acknowledged >= node.welcome["window_tokens"] // 2:
                acknowledged = stream.index
                node.send({"type": "ack", "stream": identity, "owner": owner,
                           "index": stream.index})
        elif message["type"] == "done" and stream is not None:
            stream.done = message
            if not stream.complete():
                reader.send({"type": "attach", "stream": identity, "index": stream.index,
                             "live": False})
        if stream is not None and stream.complete():
            node.send({"type": "ack", "stream": identity, "owner": owner, "index": stream.index,
                       "terminal": True})
            break
    receipt = stream.done["receipt"]
    print(f"\n{stream.index} tokens, chain {stream.chain.hex()}, "
          f"finish {stream.done['finish'][0]}, "
          f"{receipt['queue_ms'] + receipt['prefill_ms'] + receipt['decode_ms']:.0f} ms "
          f"on {receipt['backend']} at {receipt['site']}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("endpoint", help="where the node listens, e.g. tcp://127.0.0.1:5555")
    parser.add_argument("prompt")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--subscribe", action="store_true", help="read from the publisher")
    parser.add_argument("--server-key", metavar="FILE", help="the node's public key: speak CURVE")
    parser.add_argument("--key", metavar="FILE", help="your own secret key file, then too")
    parser.add_argument("--timeout", type=int, default=60, help="seconds without news")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
