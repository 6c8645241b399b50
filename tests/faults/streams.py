"""Clients of several fronts, as docs/protocol.md describes them, that believe nothing.

Each stream is kept as its owner must: only the highest epoch counts, tokens continue without gaps,
what comes twice is the same, the chain fits, one terminal ends it. Whatever breaks this is written
into `Stream.wrong`. A front that is silent though asked, or whose connection is lost, is left:
its streams go on at another one, under the next epoch.
"""

import hashlib
import os
import struct
import time

import msgpack
import zmq
import zmq.utils.monitor

ASK_AFTER_S = 1.0  # a stream silent for so long is asked about
LEAVE_AFTER_S = 1.0  # a front that then says nothing at all for so long is left
RETRIES = {"unavailable", "overloaded", "not_found", "gone"}


class Stream:
    def __init__(self, number, front, max_tokens):
        self.id, self.owner = os.urandom(16), os.urandom(16)
        self.number = number
        self.front = front
        self.epoch = 0
        seeded = number % 2 == 1
        self.submit = {
            "type": "submit", "stream": self.id, "owner": self.owner, "ignore_eos": True,
            "prompt": f"Here is story number {number + 1}. " + "Once upon a time " * (number % 4),
            "sampling": {"temperature": 0.8 if seeded else 0.0, "top_p": 0.95, "seed": number},
            "max_tokens": max_tokens,
        }
        self.numerics = self.first = self.chain = None
        self.tokens, self.text = [], b""
        self.done = None
        self.accepted = False  # in the present epoch
        self.retry_at = None
        self.heard = self.asked = None
        self.gained = []  # when tokens came
        self.wrong = []
        self.epochs_refused = 0

    def complain(self, text):
        self.wrong.append(f"stream {self.number}, epoch {self.epoch}: {text}")

    def message(self):
        out = dict(self.submit, epoch=self.epoch)
        if self.tokens:
            out.update(resume_tokens=[self.tokens], resume_text_bytes=[len(self.text)],
                       resume_numerics=self.numerics)
        return out

    def take_accepted(self, message):
        if self.first not in (None, message["chain"]):
            self.complain("another first link than before")
        if self.first is None:
            self.first = self.chain = message["chain"]
            self.numerics = message["numerics"]
        self.accepted = True

    def take_chunk(self, message, now):
        """False when something before it misses."""
        held = len(self.tokens) - message["index"]
        if held < 0 or message["text_offset"] > len(self.text):
            return False
        tokens = message["tokens"]
        known = tokens[:held]
        if known != self.tokens[message["index"]:message["index"] + len(known)]:
            self.complain(f"token {message['index']} came again as another")
        text = message["text"].encode()
        again = len(self.text) - message["text_offset"]
        if text[:again] != self.text[message["text_offset"]:message["text_offset"] +
                                     len(text[:again])]:
            self.complain(f"text at byte {message['text_offset']} came again as another")
        new = tokens[held:]
        for token in new:
            self.chain = hashlib.sha256(self.chain + struct.pack("<I", token)).digest()[:16]
        if len(tokens) >= held and self.chain != message["chain"]:
            self.complain(f"the chain is broken at token {len(self.tokens)}")
        self.tokens += new
        self.text += text[again:]
        self.gained += [now] * len(new)
        if self.done and len(self.tokens) > self.done["tokens"][0]:
            self.complain("tokens after the end")
        return True

    def complete(self):
        return (self.done is not None and len(self.tokens) == self.done["tokens"][0]
                and len(self.text) == self.done["text_bytes"][0])

    def pause_s(self):
        return max(b - a for a, b in zip(self.gained, self.gained[1:]))


class Front:
    def __init__(self, context, name, address):
        self.name = name
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvhwm = self.socket.sndhwm = 0
        self.socket.reconnect_ivl, self.socket.reconnect_ivl_max = 50, 500
        # A connection that nobody answers is given up, and made anew.
        self.socket.heartbeat_ivl, self.socket.heartbeat_timeout = 1000, 2000
        self.socket.connect_timeout = 1000
        self.monitor = self.socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.connect(address)
        self.connected = False
        self.heard = 0.0
        self.ready = None  # the last answer to get_health

    def send(self, message):
        self.socket.send(msgpack.packb(message))


class Clients:
    def __init__(self, endpoints):
        self.context = zmq.Context()
        self.fronts = {n: Front(self.context, n, at) for n, at in endpoints.items()}
        self.streams = {}
        self.poller = zmq.Poller()
        for front in self.fronts.values():
            self.poller.register(front.socket, zmq.POLLIN)
            self.poller.register(front.monitor, zmq.POLLIN)

    def begin(self, streams):
        """The former ones are forgotten."""
        self.streams = {stream.id: stream for stream in streams}
        for stream in streams:
            self.submit(stream, time.monotonic())

    def submit(self, stream, now):
        stream.heard, stream.asked, stream.retry_at = now, None, None
        stream.accepted = False
        self.fronts[stream.front].send(stream.message())

    def again(self, stream, now, elsewhere):
        """Under the next epoch, with what is held."""
        if elsewhere:
            names = list(self.fronts)
            start = names.index(stream.front) + 1
            others = names[start:] + names[:start - 1]
            stream.front = next((n for n in others if self.fronts[n].connected), others[0])
        stream.epoch += 1
        self.submit(stream, now)

    def step(self, timeout_s):
        """Whatever came; then whatever is due."""
        ready = dict(self.poller.poll(timeout_s * 1000))
        now = time.monotonic()
        for front in self.fronts.values():
            if front.monitor in ready:
                self.watch(front, now)
            if front.socket in ready:
                self.receive(front, now)
        for stream in self.streams.values():
            if not stream.complete():
                self.tend(stream, now)

    def watch(self, front, now):
        while front.monitor.poll(0):
            event = zmq.utils.monitor.recv_monitor_message(front.monitor)["event"]
            front.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            front.heard = now
        for stream in self.streams.values():
            if stream.front != front.name or stream.complete():
                continue
            if not front.connected:
                self.again(stream, now, elsewhere=True)
            elif stream.accepted:  # the front knows this connection by a new name
                self.attach(stream, now)

    def attach(self, stream, now):
        stream.asked = now
        self.fronts[stream.front].send({"type": "attach", "stream": stream.id,
                                        "owner": stream.owner, "index": len(stream.tokens)})

    def tend(self, stream, now):
        front = self.fronts[stream.front]
        if stream.retry_at is not None:
            if now >= stream.retry_at:
                # Not for ever at one that may never see its engine again.
                self.again(stream, now, elsewhere=stream.epochs_refused % 3 == 0)
        elif stream.asked is not None:
            if now - max(stream.asked, front.heard) > LEAVE_AFTER_S:
                self.again(stream, now, elsewhere=True)
            elif now - stream.asked > LEAVE_AFTER_S:
                stream.asked = None  # alive, but said nothing of this one: ask again
        elif now - stream.heard > ASK_AFTER_S:
            if stream.accepted:
                self.attach(stream, now)
            else:  # the same again: answered as the first time
                front.send(stream.message())
                stream.asked = now

    def receive(self, front, now):
        front.heard = now
        while True:
            try:
                message = msgpack.unpackb(front.socket.recv(zmq.DONTWAIT))
            except zmq.Again:
                return
            if message["type"] == "health":
                front.ready = message["ready"]
            stream = self.streams.get(message.get("stream"))
            if stream is not None:
                self.take(front, stream, message, now)

    def take(self, front, stream, message, now):
        if message["epoch"] > stream.epoch:
            stream.complain(f"{message['type']} of epoch {message['epoch']}, never submitted")
        if message["epoch"] != stream.epoch:
            return  # a front that was left speaks on: the highest epoch alone counts
        if front.name != stream.front:
            stream.complain(f"{message['type']} of an epoch that was submitted elsewhere")
        stream.heard, stream.asked = now, None
        kind = message["type"]
        if kind == "accepted":
            stream.take_accepted(message)
        elif kind == "chunk":
            held = len(stream.tokens)
            if not stream.take_chunk(message, now):
                self.attach(stream, now)
            elif not message["tokens"] and len(stream.tokens) == held:
                front.send({"type": "ack", "stream": stream.id, "owner": stream.owner,
                            "index": held})
            if len(stream.tokens) > held:
                stream.epochs_refused = 0
        elif kind == "done":
            if stream.done not in (None, message):
                stream.complain("two different ends")
            stream.done = message
            if not stream.complete():
                self.attach(stream, now)
        elif kind == "error":
            if stream.done:
                stream.complain(f"an error after the end: {message['code']}")
            elif message["code"] in RETRIES:
                stream.epochs_refused += 1
                stream.retry_at = now + max(message["retry_after_ms"], 50) / 1000
            else:
                stream.complain(f"ended with {message['code']}: {message['message']}")
                stream.done = {"tokens": [len(stream.tokens)], "text_bytes": [len(stream.text)]}
        if stream.complete():
            front.send({"type": "ack", "stream": stream.id, "owner": stream.owner,
                        "index": len(stream.tokens), "terminal": True})

    def ask_health(self):
        for front in self.fronts.values():
            front.ready = None
            front.send({"type": "get_health"})
