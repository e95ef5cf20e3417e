"""A consumer written with another library (paho-mqtt, 1.6 or 2), by the contract alone: subscribes to everything of a node and checks that
each message holds what is promised. Prints `subscribed` once it is, and what is wrong; ends with 0 if nothing is.

usage: consumer.py PORT 3|5 PREFIX CAMERA COUNT
"""

import json
import re
import sys
import threading

import paho.mqtt.client as mqtt

PORT, VERSION, PREFIX, CAMERA, COUNT = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
PATIENCE = 60

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def whole(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def share(value):
    return number(value) and 0 <= value <= 1


def text(value):
    return isinstance(value, str)


def one_of(*names):
    return lambda value: value in names


def like(pattern):
    return lambda value: text(value) and pattern.fullmatch(value) is not None


def fields(promised):
    """Each key is there and is what it must be; more keys may be there."""

    def check(value):
        if not isinstance(value, dict):
            return False
        for key, right in promised.items():
            if key not in value or not right(value[key]):
                raise ValueError(f"{key} is {value.get(key, 'missing')!r}")
        return True

    return check


def each(right):
    return lambda value: isinstance(value, list) and all(right(item) for item in value)


def corners(right):
    inner = fields(dict.fromkeys(("x_min", "y_min", "x_max", "y_max"), right))
    return lambda value: inner(value) and value["x_min"] <= value["x_max"] and value["y_min"] <= value["y_max"]


DETECTION = fields({
    "label": text,
    "score": share,
    "score_kind": one_of("token_probability"),
    "locs": lambda value: len(value) == 4 and all(whole(loc) and loc < 1024 for loc in value),
    "box": corners(share),
    "pixels": corners(whole),
})

DETECTIONS = fields({
    "schema": one_of(1),
    "camera": one_of(CAMERA),
    "run": like(UUID),
    "seq": lambda value: whole(value) and value > 0,
    "time": like(TIME),
    "epoch": number,
    "time_source": one_of("ntp", "pipeline", "file"),
    "frame": fields({"width": whole, "height": whole}),
    "prompt": text,
    "prompt_id": text,
    "model": text,
    "latency_ms": fields({"queue": number, "inference": number, "total": number}),
    "raw": text,
    "finish": one_of("eos", "length"),
    "tokens": whole,
    "drafts_accepted": whole,
    "detections": each(DETECTION),
    "dropped": each(fields({"text": text, "why": text})),
})

EVENT = fields({
    "schema": one_of(1),
    "event_id": like(UUID),
    "type": one_of("new", "update", "end"),
    "camera": one_of(CAMERA),
    "track_id": text,
    "label": text,
    "score": share,
    "top_score": share,
    "start_time": like(TIME),
    "end_time": lambda value: value is None or like(TIME)(value),
    "time": like(TIME),
    "epoch": number,
    "box": corners(share),
    "pixels": corners(whole),
    "stationary": lambda value: isinstance(value, bool),
    "zones": each(text),
    "entered_zones": each(text),
    "reason": one_of("first seen", "moved", "zone", "score", "heartbeat", "lost"),
    "prompt_id": text,
})

STATUS = fields({
    "state": one_of("connecting", "running", "stalled", "backoff", "failed", "disabled"),
    "reason": text,
    "since": like(TIME),
    "fps": number,
})

def perhaps(right):
    return lambda value: value is None or right(value)


CAMERA_STATS = fields(dict.fromkeys(("frames_in", "sampled", "gated", "analysed", "dropped", "reconnects"), whole) | {"fps": number})

STATS = fields({
    "schema": one_of(1),
    "time": like(TIME),
    "epoch": number,
    "cameras": lambda value: CAMERA in value and all(CAMERA_STATS(camera) for camera in value.values()),
    "inference_ms": fields(dict.fromkeys(("p50", "p90", "p99"), perhaps(number))),
    "outbox": fields({"records": whole, "bytes": whole}),
})

COUNT_TOPIC = re.compile(re.escape(CAMERA) + r"/count/[a-z0-9_]+")

# What must have come before the consumer is content.
ALL = {"status", "stats", *(f"{CAMERA}/{what}" for what in ("status", "detections", "events", "prompt/state", "detect/state", "count/cat"))}

wrong, sequence, lives, seen, done = [], [], {}, set(), threading.Event()


def check(message):
    topic = message.topic[len(PREFIX) + 1:]
    if topic == "status":
        # The broker's last word may be from before.
        if message.payload not in (b"online", b"offline"):
            wrong.append(f"{message.topic} says {message.payload!r}")
    elif topic == "stats":
        STATS(json.loads(message.payload))
        if message.retain or message.qos != 0:
            wrong.append(f"{message.topic} came with retain {message.retain} and QoS {message.qos}")
    elif topic == f"{CAMERA}/prompt/state":
        if not message.payload.decode() or len(message.payload) > 512:
            wrong.append(f"{message.topic} says {message.payload!r}")
    elif topic == f"{CAMERA}/detect/state":
        if message.payload not in (b"ON", b"OFF"):
            wrong.append(f"{message.topic} says {message.payload!r}")
    elif COUNT_TOPIC.fullmatch(topic):
        if not re.fullmatch(rb"0|[1-9][0-9]*", message.payload):
            wrong.append(f"{message.topic} says {message.payload!r}")
    elif topic == f"{CAMERA}/status":
        STATUS(json.loads(message.payload))
    elif topic == f"{CAMERA}/detections":
        value = json.loads(message.payload)
        DETECTIONS(value)
        if message.retain or message.qos != 1:
            wrong.append(f"{message.topic} came with retain {message.retain} and QoS {message.qos}")
        # At least once: what comes again is known by its number.
        if value["seq"] not in sequence:
            sequence.append(value["seq"])
    elif topic == f"{CAMERA}/events":
        value = json.loads(message.payload)
        EVENT(value)
        if message.retain or message.qos != 1:
            wrong.append(f"{message.topic} came with retain {message.retain} and QoS {message.qos}")
        if (value["type"] == "end") != (value["end_time"] is not None):
            wrong.append(f"{value['type']} ends at {value['end_time']}")
        # At least once: what comes again is known by its id.
        lives.setdefault(value["track_id"], {})[value["event_id"]] = value["type"]
    else:
        return
    seen.add(topic)


def on_message(client, userdata, message):
    try:
        check(message)
    except Exception as error:
        wrong.append(f"{message.topic}: {error}: {message.payload[:300]!r}")
    if wrong or (len(sequence) == COUNT and seen >= ALL):
        done.set()


def on_connect(client, userdata, flags, reason, properties=None):
    if reason != 0:
        wrong.append(f"the broker refused: {reason}")
        done.set()
    client.subscribe(f"{PREFIX}/#", qos=1)


def on_subscribe(client, userdata, mid, reasons, properties=None):
    print("subscribed", flush=True)


protocol = mqtt.MQTTv5 if VERSION == "5" else mqtt.MQTTv311
# Version 2 of the library asks which form of callbacks is meant.
versions = getattr(mqtt, "CallbackAPIVersion", None)
client = mqtt.Client(*([versions.VERSION2] if versions else []), client_id=f"paho-{VERSION}", protocol=protocol)
client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
client.connect("127.0.0.1", PORT)
client.loop_start()
if not done.wait(PATIENCE):
    wrong.append(f"after {PATIENCE} s {len(sequence)} of {COUNT} detections had come, and something on {sorted(seen)}")
client.disconnect()
client.loop_stop()
if not wrong and sequence != list(range(1, COUNT + 1)):
    wrong.append(f"seq came as {sequence}")
for track, kinds in lives.items():
    kinds = list(kinds.values())
    if kinds[0] != "new" or kinds[-1] != "end":
        wrong.append(f"track {track} came as {kinds}")
for line in wrong:
    print(line)
sys.exit(1 if wrong else 0)
